r"""Learn the context of QualiCLIP+ or CLIP-IQA+ from people's scores.

    accelerate launch -m iqguide.training.prompts --model qualiclip+ --dataset koniq-10k --root DIR --out runs/plus.pth

Both towers stay as they are; 16 vectors per prompt are learned by mean squared error and Pearson correlation on random
crops, in the loop that fine-tuning has too: `--resume`, `--validation`, `--tracker`, `--split ten`. The result is
written in the published layout; beside it, with the ending .json, the settings and the agreement with people on the
held-out part (the official test part, else that of the first of ten seeded splits), and checkpoints in a folder of the
same name with the ending -run.

Source:
    Settings as in the configuration files of QualiCLIP+ in IQA-PyTorch at 01ae427 (options/train/QualiCLIP): Adam,
    2e-3, cosine over 50 epochs, batch 8, crops of 384 px, mirrored half of the time, both losses with weight 1.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import shutil

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FOR_PEOPLE, atomic_write, make_folder, one_sentence
from ..images import WorkingSize
from ..models.learned_prompts import PromptTuning, load_prompts, save_prompts, start_tuning
from . import loop, objectives
from .checkpoints import State, read_checkpoint, written
from .correlation import correlations
from .evaluate import score_samples
from .loop import Diverged, Task, gather_with_grad
from .optimizer import CompensatedAdamW
from .options import Parser, add_flags, build, jsonable
from .prompt_data import Parts, PromptConfig, RandomCrops, gather, whole
from .run_record import only_run, refuse_used, ten_splits, write_record
from .run_settings import Started, add_start_flags
from .sample import Sample

START = Started()


def loss_of(scores: Tensor, mos: Tensor) -> Tensor:
    """Mean squared error + (1 - Pearson correlation) / 2 of scores (N,) and normalised MOS (N,)."""
    return F.mse_loss(scores, mos) + objectives.correlation(scores, mos)


def prepare(config: PromptConfig, started: Started = START) -> tuple[PromptConfig, Accelerator, Parts, State]:
    """Everything that can go wrong before the first step; the settings come back with the steps that epochs make.

    Raises:
        ValueError, FileNotFoundError, OSError: as `gather`; a former result is there, or the checkpoint does not fit.
        WeightsError: the base is missing or damaged.
    """
    parts = gather(config)
    if not (started.resume or started.overwrite):
        refuse_used(config.out.parent, (config.out.name, config.record.name), "go on with --resume or use --overwrite")
    accelerator = loop.start_accelerator(config)
    config = dataclasses.replace(
        config, steps=loop.steps_of(config, len(parts.learnt), config.batch, accelerator.num_processes)
    )
    torch.manual_seed(config.seed)
    tuning = start_tuning(config.model, base=config.base, seed=config.seed).requires_grad_(False)
    tuning.prompts.ctx.requires_grad_(True)
    groups = [{"params": [tuning.prompts.ctx], "factor": 1.0}]
    optimiser = CompensatedAdamW(groups, config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    wrapped, optimiser = accelerator.prepare(tuning, optimiser)
    average = copy.deepcopy(tuning).requires_grad_(False) if config.ema else tuning
    state = State(wrapped, average, optimiser)
    if started.resume:
        read_checkpoint(accelerator, config, state, parts.fingerprint())
    if started.overwrite and accelerator.is_main_process:
        for former in written(config.folder):
            shutil.rmtree(former)
    return config, accelerator, parts, state


def run(config: PromptConfig, accelerator: Accelerator, parts: Parts, state: State) -> dict[str, float]:
    """The loop, the result and its figures on the held-out part."""

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        scores, mos = (gather_with_grad(x.float(), accelerator) for x in (model(batch["images"]), batch["mos"]))
        return {"mos": loss_of(scores, mos)}

    def validate(tuning: nn.Module) -> dict[str, float]:
        if not parts.validation:
            return {}
        with torch.no_grad():  # by the first process alone, so nothing is gathered
            scores = [tuning(whole(sample, config).to(accelerator.device)).item() for sample in parts.validation]
        mos = [sample.normalised_mos for sample in parts.validation]
        return {"srcc": float(spearmanr(scores, mos)[0]), "plcc": float(pearsonr(scores, mos)[0])}

    make_folder(config.folder)
    task = Task(
        name="prompts",
        batches=RandomCrops(parts.learnt, config, accelerator.process_index, accelerator.num_processes),
        pictures=parts.fingerprint(),
        step=lambda state, batches: loop.optimise(state, batches, config, accelerator, losses),
        validate=validate,
        save=lambda tuning: write(tuning, config),
    )
    loop.run(config, accelerator, state, task)
    accelerator.wait_for_everyone()
    tuning = accelerator.unwrap_model(state.model).eval()
    load_prompts(tuning.prompts, config.out)  # the best, which may not be the last
    figures = measure(tuning, parts.held_out, config, accelerator) if config.measure else {}
    if accelerator.is_main_process:
        best = {"step": state.best_step, "srcc": state.best} if state.best_step else None
        write_record(config.record, config=jsonable(config), step=state.step, validation=best, held_out=figures)
    accelerator.end_training()
    return figures


def measure(
    tuning: PromptTuning, held_out: list[Sample], config: PromptConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Agreement with people on the held-out part, whole pictures."""
    size = WorkingSize(most=config.working_side or None)
    scores = score_samples(tuning, held_out, size, accelerator.device, full_reference=False)
    return correlations(scores, np.array([sample.normalised_mos for sample in held_out]))


def write(tuning: PromptTuning, config: PromptConfig) -> None:
    """The prompts, complete or not at all."""
    content = io.BytesIO()
    save_prompts(tuning.prompts, content)
    atomic_write(config.out, content.getvalue())


def train(config: PromptConfig, started: Started = START) -> PromptTuning:
    """Learn the prompts and write OUT and OUT's .json; returns the model; raises as `prepare` and `loop.run`."""
    with only_run(config.folder):
        prepared = prepare(config, started)
        run(*prepared)
    return prepared[1].unwrap_model(prepared[3].model).eval()


def parse(arguments: list[str] | None = None) -> tuple[PromptConfig, Started]:
    """The settings on the command line, and how to start."""
    parser = Parser(prog="accelerate launch -m iqguide.training.prompts")
    add_flags(parser, PromptConfig)
    add_start_flags(parser)
    flags = vars(parser.parse_args(arguments))
    started = Started(flags.pop("resume"), flags.pop("overwrite"))
    return build(PromptConfig, flags, parser), started


def train_ten(config: PromptConfig, started: Started = START) -> dict[str, dict[str, float]]:
    """A run on each of ten seeded splits, in OUT-split-N; OUT's .json gets mean and standard deviation.

    With `resume` finished splits are kept and the first unfinished one goes on.
    """

    def one(number: int) -> dict[str, float]:
        out = config.out.with_name(f"{config.out.stem}-split-{number}{config.out.suffix}")
        part = dataclasses.replace(config, split=str(number), out=out)
        if started.resume and part.record.is_file():
            return json.loads(part.record.read_text("utf-8"))["held_out"]
        with only_run(part.folder):
            return run(*prepare(part, Started(started.resume and bool(written(part.folder)), started.overwrite)))

    return ten_splits(one, config.record, jsonable(config), started)


def main(arguments: list[str] | None = None) -> None:
    """Learn prompts with the settings on the command line; what is wrong with them is said in one sentence."""
    config, started = parse(arguments)
    with one_sentence((*FOR_PEOPLE, Diverged)):
        train_ten(config, started) if config.split == "ten" else train(config, started)


if __name__ == "__main__":
    main()
