r"""Fine-tune a quality model from photographs: `tiny`, QualiCLIP or BPCLIP, in one loop.

    accelerate launch -m iqguide.training.finetune --config recipes/configs/qualiclip.toml --data DATA --out runs/mine
    accelerate launch -m iqguide.training.finetune --data DATA --out runs/tiny-guidance \
        --init runs/tiny/tiny.safetensors --denoised denoised.pt --steps 1500 --lr 5e-4

The config says which of these a step sees: ladders of degraded crops (ranking; for QualiCLIP its three ranking losses),
human-scored crops (regression), degraded pictures whose gradient must point back to the clean one and must not be
climbed for nothing, and, when a cache is given, denoised predictions of a diffusion model at many noise levels. A
full-reference model sees each of them beside its undistorted twin.

OUT holds the result as safetensors, run.json (settings and figures; `--config OUT/run.json` runs it again) and the last
checkpoint. `--resume` goes on from it as if the run had never stopped: what a step draws depends on the seed, the step
and the place in the batch alone, so neither does it matter how many processes share a batch.
"""

from __future__ import annotations

import copy
import json
import math

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import atomic_write, make_folder, one_sentence
from ..models.create import create_model
from ..models.hub import save_model
from . import calibrate, objectives, training_model
from .batch_dataset import CENTRE, BatchDataset, TrainingData, draws, gather, numbers
from .batches import RAW_UNIT, ladders
from .checkpoints import State, read_checkpoint, write_checkpoint
from .config import FinetuneConfig, jsonable, parse_config


def start(config: FinetuneConfig, accelerator: Accelerator) -> State:
    """A model with random weights, or those of `config.init`, and all that training it needs."""
    torch.manual_seed(config.seed)
    model = training_model.make(config)
    average = copy.deepcopy(model).requires_grad_(False).to(accelerator.device) if config.ema else model
    if config.gradient_checkpointing:
        training_model.checkpoint_activations(model)
    optimiser = torch.optim.AdamW(
        training_model.groups(model, config), config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    state = State(wrapped, average, optimiser)
    accelerator.register_for_checkpointing(state)
    return state


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


def gather_with_grad(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Values (n, ...) of all processes (P n, ...), those of this one differentiable: losses of the whole batch."""
    if accelerator.num_processes == 1:
        return values
    everything = accelerator.gather(values.detach().contiguous())
    first = accelerator.process_index * len(values)
    return torch.cat([everything[:first], values, everything[first + len(values) :]])


def losses(
    model: nn.Module, batch: dict[str, Tensor], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Every objective that the batch has pictures for, weighted, over the batches of all processes."""
    batch, found = {name: value.to(accelerator.device) for name, value in batch.items()}, {}

    def whole(values: Tensor) -> Tensor:
        return gather_with_grad(values, accelerator)

    if "ladders" in batch:
        severities = batch["severities"]
        levels = whole(model(batch["ladders"], batch["originals"]).float().view(severities.shape))
        severities = whole(severities)
        found["ranking"] = config.ranking_weight * objectives.ladder_ranking(levels, severities)
        found["severity"] = config.severity_weight * F.smooth_l1_loss(levels, -severities)
    if "scored" in batch:
        scores, labels = whole(model(batch["scored"], batch.get("references")).float()), whole(batch["labels"])
        agreement = F.smooth_l1_loss(scores, labels) + objectives.correlation(scores, labels)
        found["mos"] = config.mos_weight * agreement
        found["squared"] = config.squared_weight * F.mse_loss(scores * RAW_UNIT / 100, labels * RAW_UNIT / 100)
    if "twins" in batch:
        twins = batch["twins"]
        positive, negative = (
            whole(x.view(twins.shape[:3])) for x in model(twins.flatten(0, 2), what="prompts").float().unbind(1)
        )
        margins = config.consistency_margin, config.rank_margin
        ranked = objectives.prompt_ranking(positive, negative, *margins, whole(batch["order"]))
        found |= zip(("consistency", "positive", "negative"), (config.prompt_weight * x for x in ranked), strict=True)
    if "worse" in batch:
        better = batch["better"]
        both = model(torch.cat([better, batch["worse"]]), torch.cat([better, better])).float().view(2, -1).T
        costs = torch.stack([torch.zeros_like(batch["cost"]), batch["cost"]], 1)
        found["denoised"] = config.denoised_weight * objectives.ladder_ranking(whole(both), whole(costs))
    if "degraded" in batch:
        found |= guidance_losses(model, batch, config, accelerator)
    return found


def guidance_losses(
    model: nn.Module, batch: dict[str, Tensor], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, Tensor]:
    """What makes a score fit for guidance: aligned, small gradients, which are not climbed for nothing."""
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


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a share of the highest rate."""
    cosine = (1 + math.cos(math.pi * step / config.steps)) / 2
    return config.lr * min(1.0, (step + 1) / config.warmup) * (config.last_lr + (1 - config.last_lr) * cosine)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, highest: float) -> None:
    """Move the averaged weights and statistics towards the model's, in place; faster in the first steps."""
    decay = min(highest, (1 + step) / (10 + step))
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


def train_step(
    state: State, batches: list[dict[str, Tensor]], config: FinetuneConfig, accelerator: Accelerator
) -> dict[str, float]:
    """One optimiser step on its batches, in place; returns the weighted losses."""
    for group in state.optimiser.param_groups:
        group["lr"] = group["factor"] * learning_rate(config, state.step)
    totals: dict[str, float] = {}
    for batch in batches:
        with accelerator.accumulate(state.model):
            found = losses(state.model, batch, config, accelerator)
            # each process differentiates its own share of the same loss, and the mean over processes is taken
            accelerator.backward(sum(found.values()) * accelerator.num_processes)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(state.model.parameters(), config.clip)
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value.item() / len(batches)
    if config.ema:
        update_ema(state.average, accelerator.unwrap_model(state.model), state.step, config.ema)
    state.step += 1
    return totals


def validate(state: State, training_data: TrainingData, config: FinetuneConfig) -> dict[str, float]:
    """Write the result if it is the best so far; returns the agreement on the validation part, if there is one."""
    figures: dict[str, float] = {}
    if training_data.validation:
        figures = calibrate.agreement(state.average.model, training_data.validation, config.validation_size)
        if not figures["srcc"] > state.best:  # a constant score has the SRCC NaN
            return figures
        state.best, state.best_step = figures["srcc"], state.step
    save_model(state.average.model, config.out / f"{config.model}.safetensors")
    return figures


def listed(figures: dict[str, float]) -> str:
    """Figures on one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def report(state: State, config: FinetuneConfig, processes: int) -> dict[str, float]:
    """Calibrate and measure the best result, write it and OUT/run.json; returns the figures in it."""
    path = config.out / f"{config.model}.safetensors"
    model = create_model(config.model, weights=path, device=next(state.average.parameters()).device)
    training_model.finish(model, config)
    save_model(model, path)
    figures = calibrate.measure(model, config)
    best = {"step": state.best_step, "srcc": state.best} if state.best_step else None
    record = {"config": jsonable(config), "step": state.step, "validation": best, "held_out": figures}
    record |= {"processes": processes, "torch": torch.__version__}
    atomic_write(config.out / "run.json", f"{json.dumps(record, indent=2)}\n".encode())
    return figures


def prepare(config: FinetuneConfig, resume: bool = False) -> tuple[Accelerator, TrainingData, State]:
    """Everything that can go wrong before the first step.

    Raises:
        FileNotFoundError: data is missing, or with `resume` a checkpoint.
        OSError: OUT cannot be written.
        ValueError: data, a setting, the tracker or, with `resume`, the checkpoint is not what it should be.
        WeightsError: the file to start from cannot be used.
    """
    if config.tracker and config.tracker not in [str(tracker) for tracker in get_available_trackers()]:
        raise ValueError(f"the tracker {config.tracker} is not installed; pip install {config.tracker}.")
    make_folder(config.out)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker or None,
        project_dir=config.out,
    )
    if config.tracker:
        settings = {key: value for key, value in jsonable(config).items() if isinstance(value, str | int | float)}
        options = {"wandb": {"dir": config.out}}  # it would write where the command was started
        try:
            accelerator.init_trackers("iqguide", settings, options)
        except Exception as error:  # whatever its client raises, such as wandb's without a login
            raise ValueError(f"the tracker {config.tracker} cannot start: {error}") from error
    training_data, state = gather(config), start(config, accelerator)
    if resume:
        read_checkpoint(accelerator, config)
    return accelerator, training_data, state


def train(config: FinetuneConfig, resume: bool = False) -> State:
    """Run, or with `resume` go on with, a fine-tuning; returns the last state; raises as `prepare`."""
    return run(config, *prepare(config, resume))


def run(config: FinetuneConfig, accelerator: Accelerator, training_data: TrainingData, state: State) -> State:
    """The loop."""
    batches = BatchDataset(training_data, config, accelerator.process_index, accelerator.num_processes)
    if state.step == 0 and config.model == "tiny" and training_data.crops is not None:
        centre(state, training_data, config, accelerator)
    loader = iter(DataLoader(batches, None, sampler=list(numbers(config, state.step)), num_workers=config.workers))
    main_process, running = accelerator.is_main_process, {}
    progress = tqdm(total=config.steps, initial=state.step, desc=config.model, disable=not main_process)
    while state.step < config.steps:
        found = train_step(state, [next(loader) for _ in range(config.accumulate)], config, accelerator)
        for key, value in found.items():
            running[key] = 0.98 * running.get(key, value) + 0.02 * value
        progress.update()
        if state.step % 20 == 0:
            progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()})
            accelerator.log(found | {"lr": learning_rate(config, state.step - 1)}, state.step)  # that of this step
        if state.step == config.steps or state.step % config.checkpoint_every == 0:
            figures = validate(state, training_data, config) if main_process else {}
            accelerator.log({f"validation_{key}": value for key, value in figures.items()}, state.step)
            write_checkpoint(accelerator, config, state.step)
            if main_process:
                progress.write(f"step {state.step}: {listed(figures or found)}")
    progress.close()
    if main_process:
        tqdm.write(f"held out: {listed(report(state, config, accelerator.num_processes))}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return state


def main(arguments: list[str] | None = None) -> None:
    """Train with the settings on the command line; what is wrong with data or settings is said in one sentence."""
    config, resume = parse_config(arguments)
    with one_sentence():
        prepared = prepare(config, resume)
    with one_sentence((OSError,)):  # a full disk; the traceback of anything else is wanted
        run(config, *prepared)


if __name__ == "__main__":
    main()
