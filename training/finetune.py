r"""Fine-tune a quality model from photographs: `tiny`, QualiCLIP or BPCLIP, in one loop.

    accelerate launch -m iqguide.training.finetune --config recipes/configs/qualiclip.toml --data DATA --out runs/mine
    accelerate launch -m iqguide.training.finetune --data DATA --out runs/tiny-guidance \
        --init runs/tiny/tiny.safetensors --denoised denoised.pt --steps 1500 --lr 5e-4

The config says which of these a step sees: ladders of degraded crops (ranking; for QualiCLIP its three ranking losses),
human-scored crops (regression), degraded pictures whose gradient must point back to the clean one and whose score may
not rise further than they come nearer to it, and, when a cache is given, denoised predictions of a diffusion model at
many noise levels. A full-reference model sees each of them beside its undistorted twin.

OUT holds the result as safetensors, run.json (settings and figures; `--config OUT/run.json` runs it again) and the last
checkpoint. `--resume` goes on from it as if the run had never stopped: what a step draws depends on the seed, the step
and the place in the batch alone, so neither does it matter how many processes share a batch. `--split ten` trains ten
times, each on another split, and writes the mean and the spread.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import FOR_PEOPLE, one_sentence
from ..models.create import create_model
from ..models.hub import save_model
from ..models.raw_scale import RAW_UNIT
from . import calibrate, loop, objectives, training_model
from .batch_dataset import CENTRE, BatchDataset, TrainingData, draws, gather
from .batches import ladders
from .checkpoints import State, read_checkpoint, written
from .config import FinetuneConfig, parse_config
from .loop import Diverged, Task, gather_with_grad
from .optimizer import CompensatedAdamW
from .options import jsonable
from .parts import Parts, uses_clean, uses_scores
from .run_record import RECORD, listed, only_run, refuse_used, ten_splits, write_record
from .run_settings import Started
from .seen import write_seen

START = Started()


def start(config: FinetuneConfig, accelerator: Accelerator) -> State:
    """A model with random weights, or those of `config.init`, and all that training it needs."""
    torch.manual_seed(config.seed)
    model = training_model.make(config)
    average = copy.deepcopy(model).requires_grad_(False).to(accelerator.device) if config.ema else model
    if config.gradient_checkpointing:
        training_model.checkpoint_activations(model)
    optimiser = CompensatedAdamW(
        training_model.groups(model, config), config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    return State(wrapped, average, optimiser)


@torch.no_grad()
def centre(state: State, training_data: TrainingData, config: FinetuneConfig, accelerator: Accelerator) -> None:
    """Standardise the inputs of the head of `tiny` on ladders; equal in every process."""
    model, pooled = accelerator.unwrap_model(state.model).model, []
    for number in range(64):
        images, _, _ = ladders(
            training_data.crops, 1, config.ladder_levels, config.crop, *draws(config, CENTRE, number)
        )
        pooled.append(model.pooled(images.to(accelerator.device)))
    model.standardise(torch.cat(pooled))
    state.average.load_state_dict(accelerator.unwrap_model(state.model).state_dict())


def losses(
    model: nn.Module, batch: dict[str, Tensor], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Every objective that the batch has pictures for, weighted, over the batches of all processes."""
    parts: dict[str, Tensor] = {}

    def whole(values: Tensor) -> Tensor:
        return gather_with_grad(values, accelerator)

    if "ladders" in batch:
        severities = batch["severities"]
        levels = whole(model(batch["ladders"], batch["originals"]).float().view(severities.shape))
        severities = whole(severities)
        parts["ranking"] = config.ranking_weight * objectives.ladder_ranking(levels, severities)
        parts["severity"] = config.severity_weight * F.smooth_l1_loss(levels, -severities)
    if "scored" in batch:
        scores, labels = whole(model(batch["scored"], batch.get("references")).float()), whole(batch["labels"])
        agreement = F.smooth_l1_loss(scores, labels) + objectives.correlation(scores, labels)
        parts["mos"] = config.mos_weight * agreement
        parts["squared"] = config.squared_weight * F.mse_loss(scores * RAW_UNIT / 100, labels * RAW_UNIT / 100)
    if "twins" in batch:
        twins = batch["twins"]
        positive, negative = (
            whole(x.view(twins.shape[:3])) for x in model(twins.flatten(0, 2), what="prompts").float().unbind(1)
        )
        margins = config.consistency_margin, config.rank_margin
        ranked = objectives.prompt_ranking(positive, negative, *margins, whole(batch["order"]))
        parts |= zip(("consistency", "positive", "negative"), (config.prompt_weight * x for x in ranked), strict=True)
    if "worse" in batch:
        better = batch["better"]
        both = model(torch.cat([better, batch["worse"]]), torch.cat([better, better])).float().view(2, -1).T
        costs = torch.stack([torch.zeros_like(batch["cost"]), batch["cost"]], 1)
        parts["denoised"] = config.denoised_weight * objectives.ladder_ranking(whole(both), whole(costs))
    if "degraded" in batch:
        parts |= guidance_losses(model, batch, config, accelerator)
    return parts


def guidance_losses(
    model: nn.Module, batch: dict[str, Tensor], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, Tensor]:
    """What makes a score fit for guidance: a small gradient that points at the clean picture."""
    degraded, clean, severity = batch["degraded"], batch["clean"], batch["severity"]
    # in full precision: this is the gradient that guidance will see
    misalignment, energy, gradient = objectives.restoration(lambda x: model(x, clean, "exact").float(), degraded, clean)
    climbed = objectives.climb(degraded, gradient.detach(), batch["step"])
    after, before = model(torch.cat([climbed, degraded]), torch.cat([clean, clean])).float().chunk(2)
    claims = objectives.overclaim(after - before, degraded, climbed, clean, severity)
    return {
        "alignment": config.alignment_weight * gather_with_grad(misalignment, accelerator).mean(),
        "penalty": config.penalty_weight * (gather_with_grad(energy, accelerator) * degraded[0].numel()).mean(),
        "attack": config.attack_weight * gather_with_grad(claims, accelerator).mean(),
    }


def train_step(
    state: State, batches: list[dict[str, Tensor]], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, float]:
    """One optimiser step on its batches, in place; returns the weighted losses. Raises as `loop.optimise`."""
    return loop.optimise(
        state, batches, config, accelerator, lambda model, batch: losses(model, batch, config, accelerator)
    )


def report(state: State, config: FinetuneConfig, training_data: TrainingData, processes: int) -> dict[str, float]:
    """Calibrate and measure the best result, write it and OUT/run.json; returns the figures in it."""
    parts = training_data.parts
    model = create_model(config.model, weights=config.result, device=next(state.average.parameters()).device)
    training_model.finish(model, config, parts)
    save_model(model, config.result)
    write_seen(config.result, [p.path for p in (*parts.learnt, *parts.clean)], training_data.seen)
    figures = measure(model, config, parts) if config.measure else {}
    best = {"step": state.best_step, "srcc": state.best} if state.best_step else None
    record = {"config": jsonable(config), "step": state.step, "validation": best, "held_out": figures}
    write_record(config.out / RECORD, **record, processes=processes)
    return figures


def measure(model: nn.Module, config: FinetuneConfig, parts: Parts) -> dict[str, float]:
    """Figures of a model on the held-out pictures, see `calibrate.measure`; what there are none for is left out."""
    scored = parts.held_out if uses_scores(config) else []
    clean = parts.clean_held_out if uses_clean(config) else []
    sizes = {"size": config.working_side, "crop": config.crop, "seed": config.seed}
    return calibrate.measure(model, scored, clean, **sizes, full_reference=config.full_reference)


def prepare(
    config: FinetuneConfig, started: Started = START
) -> tuple[FinetuneConfig, Accelerator, TrainingData, State]:
    """Everything that can go wrong before the first step; the settings come back with the steps that epochs make.

    Raises:
        FileNotFoundError: data is missing, or with `resume` a checkpoint.
        OSError: OUT cannot be written.
        ValueError: data, a setting, the tracker or, with `resume`, the checkpoint is not what it should be, or OUT
            holds the results of a former run.
        WeightsError: the file to start from cannot be used.
    """
    if not (started.resume or started.overwrite):
        ways_out = "go on with --resume, replace them with --overwrite"
        refuse_used(config.out, (config.result.name, RECORD, "checkpoint-" + 7 * "[0-9]"), ways_out)
    accelerator = loop.start_accelerator(config)
    training_data = gather(config)
    count, batch = (len(training_data.parts.learnt), config.scored) if config.uses_mos else (
        len(training_data.parts.clean), config.ladders)  # fmt: skip
    config = dataclasses.replace(config, steps=loop.steps_of(config, count, batch, accelerator.num_processes))
    state = start(config, accelerator)
    if started.resume:
        read_checkpoint(accelerator, config, state, training_data.parts.fingerprint())
    if started.overwrite and accelerator.is_main_process:
        for former in written(config.out):
            shutil.rmtree(former)
    return config, accelerator, training_data, state


def run(
    config: FinetuneConfig, accelerator: Accelerator, training_data: TrainingData, state: State
) -> dict[str, float]:
    """The loop, and what comes after it; returns the figures of the result."""
    dataset = BatchDataset(training_data, config, accelerator.process_index, accelerator.num_processes)
    if state.step == 0 and config.model == "tiny" and training_data.crops is not None:
        centre(state, training_data, config, accelerator)
    validation = training_data.parts.validation

    def validate(model: nn.Module) -> dict[str, float]:
        return calibrate.agreement(model.model, validation, config.working_side) if validation else {}

    task = Task(
        name=config.model,
        batches=dataset,
        pictures=training_data.parts.fingerprint(),
        step=lambda state, batches: train_step(state, batches, config, accelerator),
        validate=validate,
        save=lambda model: save_model(model.model, config.result),
    )
    loop.run(config, accelerator, state, task)
    figures: dict[str, float] = {}
    if accelerator.is_main_process:
        figures = report(state, config, training_data, accelerator.num_processes)
        tqdm.write(f"held out: {listed(figures) or 'not measured'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


def train(config: FinetuneConfig, started: Started = START) -> State:
    """Run, or go on with, a fine-tuning; returns the last state; raises as `prepare` and `loop.run`."""
    with only_run(config.out):
        prepared = prepare(config, started)
        run(*prepared)
    return prepared[-1]


def train_ten(config: FinetuneConfig, started: Started = START) -> dict[str, dict[str, float]]:
    """A run on each of ten seeded splits, in OUT/split-N; OUT/run.json gets mean and standard deviation.

    With `resume` finished splits are kept and the first unfinished one goes on.
    """

    def one(number: int) -> dict[str, float]:
        part = dataclasses.replace(config, split=str(number), out=config.out / f"split-{number}")
        if started.resume and (part.out / RECORD).is_file():
            return json.loads((part.out / RECORD).read_text("utf-8"))["held_out"]
        with only_run(part.out):
            return run(*prepare(part, Started(started.resume and bool(written(part.out)), started.overwrite)))

    return ten_splits(one, config.out / RECORD, jsonable(config), started)


def main(arguments: list[str] | None = None) -> None:
    """Train with the settings on the command line; what is wrong with data or settings is said in one sentence."""
    config, started = parse_config(arguments)
    if config.split == "ten":
        with one_sentence((*FOR_PEOPLE, Diverged)):
            train_ten(config, started)
        return
    with ExitStack() as stack:
        with one_sentence():
            stack.enter_context(only_run(config.out))
            prepared = prepare(config, started)
        with one_sentence((OSError, Diverged)):  # a full disk; the traceback of anything else is wanted
            run(*prepared)


if __name__ == "__main__":
    main()
