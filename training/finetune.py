r"""Fine-tune a quality model from photographs.

    accelerate launch -m iqguide.training.finetune --data DATA --teacher squeezenet.pt --out runs/tiny
    accelerate launch -m iqguide.training.finetune --data DATA --out runs/tiny-guidance \
        --init runs/tiny/tiny.safetensors --denoised denoised.pt --steps 1500 --lr 5e-4

Every step sees ladders of degraded crops (ranking, after QualiCLIP), human-scored crops (regression), degraded
pictures whose gradient must point back to the clean one, and, when a cache is given, denoised predictions of a
diffusion model at many noise levels. The averaged weights are calibrated on held-out pictures and written to
OUT/tiny.safetensors with the settings in OUT/run.json. `--resume` goes on from OUT/checkpoint.pt as if the run had
never stopped: what a step draws depends on the seed, the process and the step alone.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..models.tiny import Tiny
from . import batches, objectives
from .batches import Crops, Opinions
from .calibrate import calibrate, measure
from .config import FinetuneConfig, parse_config
from .data import clean_photographs, scored_photographs, split


@dataclasses.dataclass(frozen=True)
class Material:
    """What a run trains on."""

    crops: Crops
    """Clean crops, to be degraded."""
    opinions: Opinions
    """Human-scored crops."""
    denoised: dict[str, Tensor] | None
    """`degraded` and `clean` predictions (N, 3, s, s) uint8 and the `severity` (N,) of the degradation."""


class RawScore(nn.Module):
    """Tiny's raw output as the forward pass, so that wrappers for several processes see it."""

    def __init__(self, model: Tiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32."""
        return self.model.raw(images)


@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    model: nn.Module
    """The `RawScore` that is trained, as accelerate wrapped it."""
    average: RawScore
    """Running average of its weights and statistics: the result."""
    optimiser: torch.optim.Optimizer
    step: int = 0
    """Steps done."""


def gather(config: FinetuneConfig) -> Material:
    """Cut the crops and label them; deterministic for a seed.

    Raises:
        FileNotFoundError: the data folder lacks pictures or scores.
        ValueError: the denoised predictions are not as large as the crops that they are mixed with.
    """
    rng = np.random.default_rng(config.seed)
    denoised = torch.load(config.denoised, weights_only=True) if config.denoised else None
    if denoised is not None and denoised["clean"].shape[-1] != config.crop:
        side = denoised["clean"].shape[-1]
        raise ValueError(f"the pictures in {config.denoised} are {side} px; expected {config.crop}: use --crop {side}.")
    crops = Crops(split(clean_photographs(config.data))[0], config.crop + 16, 20, rng)
    scored = split(scored_photographs(config.data))[0]
    return Material(crops, batches.opinions(scored, config.teacher, config.opinion_crop, rng), denoised)


def draws(config: FinetuneConfig, process: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random generators of one step of one process."""
    rng = np.random.default_rng([config.seed, process, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def losses(
    model: nn.Module,
    material: Material,
    config: FinetuneConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Every objective, weighted, on one fresh batch."""
    device = next(model.parameters()).device

    def score(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(images.to(device).contiguous(memory_format=torch.channels_last)).float()

    images, severities = batches.ladders(material.crops, config.ladders, config.rungs, config.crop, rng, generator)
    opinion_images, labels = material.opinions.batch(config.opinions, rng)
    rungs, severities = score(images).view(severities.shape), severities.to(device)
    scored, labels = score(opinion_images), labels.to(device)
    found = {
        "ranking": config.ranking_weight * objectives.ladder_ranking(rungs, severities),
        "severity": config.severity_weight * F.smooth_l1_loss(rungs, -severities),
        "opinion": config.opinion_weight * (F.smooth_l1_loss(scored, labels) + objectives.correlation(scored, labels)),
    }
    degraded, clean, severity = batches.pairs(material.crops, config.aligned, config.crop, rng, generator)
    if material.denoised is not None:
        picks = torch.from_numpy(rng.integers(0, len(material.denoised["severity"]), 2 * config.aligned))
        worse, better = (material.denoised[key][picks].float() / 255 for key in ("degraded", "clean"))
        cost = material.denoised["severity"][picks]
        both = score(torch.cat([better, worse])).view(2, -1).T
        rows = torch.stack([torch.zeros(len(picks)), cost]).T.to(device)
        found["denoised"] = config.denoised_weight * objectives.ladder_ranking(both, rows)
        half = config.aligned // 2
        degraded, clean, severity = (
            torch.cat([a[:half], b[:half]]) for a, b in ((degraded, worse), (clean, better), (severity, cost))
        )
    degraded, clean, severity = degraded.to(device), clean.to(device), severity.to(device)
    # no autocast: this is the gradient that guidance will see
    misalignment, energy, gradient = objectives.restoration(model, degraded, clean)
    found["alignment"] = config.alignment_weight * misalignment.mean()
    found["penalty"] = config.penalty_weight * (energy * degraded[0].numel()).mean()
    steps = torch.rand(len(degraded), generator=generator).to(device) * config.attack_step
    climbed = objectives.climb(degraded, gradient.detach(), steps)
    after, before = score(torch.cat([climbed, degraded])).chunk(2)
    claims = objectives.overclaim(after - before, degraded, climbed, clean, severity)
    found["attack"] = config.attack_weight * claims.mean()
    return found


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Linear warm-up over 100 steps, then a cosine down to a fiftieth."""
    return config.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / config.steps)) / 2)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights and statistics towards the model's, in place; faster in the first steps."""
    decay = min(0.998, (1 + step) / (10 + step))
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


def start(config: FinetuneConfig, accelerator: Accelerator) -> State:
    """A model with random weights, or those of `config.init`, and all that training it needs."""
    torch.manual_seed(config.seed)
    # Evaluation mode throughout: batches of ladders, opinions and predictions differ so much from each other that a
    # model trained on each batch's own statistics is another one than the one used with the running statistics.
    model = RawScore(Tiny()).to(memory_format=torch.channels_last).eval()
    if config.init:
        model.model.load_state_dict(load_file(config.init), strict=False)  # files leave the batch counters out
    average = copy.deepcopy(model).eval().requires_grad_(False).to(accelerator.device)
    optimiser = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    model, optimiser = accelerator.prepare(model, optimiser)
    return State(model, average, optimiser)


@torch.no_grad()
def centre(state: State, material: Material, config: FinetuneConfig, accelerator: Accelerator) -> None:
    """Standardise the head's inputs on the first steps' ladders; equal in every process."""
    model = accelerator.unwrap_model(state.model).model
    pooled = []
    for step in range(12):
        rng, generator = draws(config, 0, step)
        images, _ = batches.ladders(material.crops, config.ladders, config.rungs, config.crop, rng, generator)
        pooled.append(model.pooled(images.to(accelerator.device)))
    model.standardise(torch.cat(pooled))
    state.average.load_state_dict(accelerator.unwrap_model(state.model).state_dict())


def train_step(state: State, material: Material, config: FinetuneConfig, accelerator: Accelerator) -> dict[str, float]:
    """One optimiser step, in place; returns the weighted losses of this process."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    found = losses(state.model, material, config, *draws(config, accelerator.process_index, state.step))
    state.optimiser.zero_grad(set_to_none=True)
    accelerator.backward(sum(found.values()))
    accelerator.clip_grad_norm_(state.model.parameters(), 2.0)
    state.optimiser.step()
    follow(state.average, accelerator.unwrap_model(state.model), state.step)
    state.step += 1
    return {key: value.item() for key, value in found.items()}


def write_checkpoint(state: State, accelerator: Accelerator, path: Path) -> None:
    """Everything that `read_checkpoint` needs to go on; an interrupted write leaves the former file whole."""
    unfinished = path.with_suffix(".part")
    torch.save(
        {
            "model": accelerator.unwrap_model(state.model).state_dict(),
            "average": state.average.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "step": state.step,
        },
        unfinished,
    )
    os.replace(unfinished, path)


def read_checkpoint(state: State, accelerator: Accelerator, path: Path) -> None:
    """Put the state of a checkpoint in place.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path} to resume from; start without --resume.")
    saved = torch.load(path, map_location=accelerator.device, weights_only=True)
    accelerator.unwrap_model(state.model).load_state_dict(saved["model"])
    state.average.load_state_dict(saved["average"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.step = saved["step"]


def save(model: Tiny, path: Path) -> None:
    """Half-precision safetensors, calibration included, as `create_model("tiny", weights=path)` reads it."""
    state = {k: v.half() if v.ndim > 1 else v.float() for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file({k: v.contiguous().cpu() for k, v in state.items()}, path, metadata={"config": "{}"})


def report(state: State, config: FinetuneConfig) -> dict[str, float]:
    """Write OUT/tiny.safetensors (calibrated at the end of the run) and OUT/run.json; returns the figures in it."""
    if state.step == config.steps:
        calibrate(state.average.model, config)
    save(state.average.model, config.out / "tiny.safetensors")
    figures = measure(state.average.model, config)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(config).items()}
    record = {"config": settings, "step": state.step, "held_out": figures, "torch": torch.__version__}
    (config.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    return figures


def train(config: FinetuneConfig, resume: bool = False) -> State:
    """Run, or with `resume` go on with, a fine-tuning; returns the last state.

    Raises:
        FileNotFoundError: data or, with `resume`, the checkpoint are not there.
    """
    accelerator = Accelerator()
    config.out.mkdir(parents=True, exist_ok=True)
    state, checkpoint = start(config, accelerator), config.out / "checkpoint.pt"
    material = gather(config)
    if resume:
        read_checkpoint(state, accelerator, checkpoint)
    else:
        centre(state, material, config, accelerator)
    main_process, running = accelerator.is_main_process, {}
    progress = tqdm(total=config.steps, initial=state.step, desc="tiny", disable=not main_process)
    while state.step < config.steps:
        for key, value in train_step(state, material, config, accelerator).items():
            running[key] = 0.98 * running.get(key, value) + 0.02 * value
        progress.update()
        if state.step % 20 == 0:
            progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()})
        if main_process and (state.step % config.checkpoint_every == 0 or state.step == config.steps):
            write_checkpoint(state, accelerator, checkpoint)
            figures = report(state, config)
            progress.write(f"step {state.step}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    progress.close()
    return state


def main(arguments: list[str] | None = None) -> None:
    """Train with the settings on the command line."""
    train(*parse_config(arguments))


if __name__ == "__main__":
    main()
