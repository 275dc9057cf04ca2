"""Fine-tune a quality model from photographs.

    accelerate launch -m iqguide.training.finetune --data DATA --teacher squeezenet.pt --out runs/tiny
    accelerate launch -m iqguide.training.finetune --data DATA --init runs/tiny/tiny.safetensors \
        --denoised denoised.pt --steps 1500 --lr 5e-4 --out runs/tiny-guidance

Every step sees ladders of degraded crops (ranking, after QualiCLIP), human-scored crops (regression), degraded pictures
whose gradient must point back to the clean one, and, when a cache is given, denoised predictions of a diffusion model at
many noise levels. The averaged weights are calibrated on held-out pictures and written to OUT/tiny.safetensors with the
settings in OUT/run.json.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
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
    opinions: Opinions
    denoised: dict[str, Tensor] | None


def gather(config: FinetuneConfig) -> Material:
    """Cut the crops and label them; deterministic for a seed."""
    rng = np.random.default_rng(config.seed)
    crops = Crops(split(clean_photographs(config.data))[0], config.crop + 16, 20, rng)
    scored = split(scored_photographs(config.data))[0]
    opinions = batches.opinions(scored, config.teacher, config.opinion_crop, rng)
    return Material(crops, opinions, torch.load(config.denoised, weights_only=True) if config.denoised else None)


def losses(model: nn.Module, material: Material, config: FinetuneConfig, rng, generator, autocast) -> dict[str, Tensor]:
    """Every objective on one fresh batch."""
    images, severities = batches.ladders(material.crops, config.ladders, config.rungs, config.crop, rng, generator)
    opinion_images, labels = material.opinions.batch(config.opinions, rng)
    with autocast():
        rungs = model(images.contiguous(memory_format=torch.channels_last)).float().view(severities.shape)
        scored = model(opinion_images.contiguous(memory_format=torch.channels_last)).float()
    found = {
        "ranking": config.ranking_weight * objectives.ladder_ranking(rungs, severities),
        "severity": config.severity_weight * F.smooth_l1_loss(rungs, -severities),
        "opinion": config.opinion_weight * (F.smooth_l1_loss(scored, labels) + objectives.correlation(scored, labels)),
    }
    degraded, clean = batches.pairs(material.crops, config.aligned, config.crop, rng, generator)
    if material.denoised is not None:
        picks = torch.from_numpy(rng.integers(0, len(material.denoised["severity"]), 2 * config.aligned))
        worse, better = (material.denoised[key][picks].float() / 255 for key in ("degraded", "clean"))
        with autocast():
            both = model(torch.cat([better, worse])).float().view(2, -1)
        severity = torch.stack([torch.zeros(len(picks)), material.denoised["severity"][picks]])
        found["denoised"] = config.denoised_weight * objectives.ladder_ranking(both.T, severity.T)
        half = config.aligned // 2
        degraded, clean = torch.cat([degraded[:half], worse[:half]]), torch.cat([clean[:half], better[:half]])
    model.eval()  # the gradient that guidance will see: running statistics, no autocast
    misalignment, _, energy = objectives.restoration(model, degraded, clean)
    model.train()
    found["alignment"] = config.alignment_weight * misalignment.mean()
    found["penalty"] = config.penalty_weight * (energy * degraded[0].numel()).mean()
    return found


class RawScore(nn.Module):
    """Tiny's raw output as the forward pass, so that wrappers for several processes see it."""

    def __init__(self, model: Tiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.raw(images)


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Linear warm-up over 100 steps, then a cosine down to a fiftieth."""
    return config.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / config.steps)) / 2)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights and statistics towards the model's."""
    decay = min(0.998, (1 + step) / (10 + step))
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


def save(model: Tiny, path: Path) -> None:
    """Half-precision safetensors, calibration included."""
    state = {k: v.half() if v.ndim > 1 else v.float() for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"config": "{}"})


def main() -> None:
    config, resume = parse_config()
    accelerator = Accelerator()
    config.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    material = gather(config)
    # every process draws its own batches
    rng = np.random.default_rng(config.seed + 1 + accelerator.process_index)
    generator = torch.Generator().manual_seed(config.seed + 1 + accelerator.process_index)
    model = RawScore(Tiny()).to(memory_format=torch.channels_last)
    if config.init:
        model.model.load_state_dict(load_file(config.init), strict=False)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    model, optimiser = accelerator.prepare(model, optimiser)
    checkpoint, step = config.out / "checkpoint.pt", 0
    if resume:
        state = torch.load(checkpoint, weights_only=True)
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        rng = np.random.default_rng([config.seed + 1 + accelerator.process_index, step])

    def autocast() -> torch.autocast:
        return torch.autocast(accelerator.device.type, torch.bfloat16)

    progress = tqdm(total=config.steps, initial=step, desc="tiny", disable=not accelerator.is_main_process)
    running: dict[str, float] = {}
    while step < config.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        found = losses(model, material, config, rng, generator, autocast)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(sum(found.values()))
        accelerator.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        follow(average, accelerator.unwrap_model(model), step)
        step += 1
        progress.update()
        for key, value in found.items():
            running[key] = 0.98 * running.get(key, value.item()) + 0.02 * value.item()
        if step % 20 == 0:
            progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()})
        if accelerator.is_main_process and (step % config.checkpoint_every == 0 or step == config.steps):
            state = {"model": accelerator.unwrap_model(model).state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimiser": optimiser.state_dict(), "step": step}, checkpoint)
            if step == config.steps:
                calibrate(average.model, config)
            save(average.model, config.out / "tiny.safetensors")
            figures = measure(average.model, config)
            progress.write(f"step {step}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
            settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(config).items()}
            (config.out / "run.json").write_text(
                json.dumps({"config": settings, "step": step, "held_out": figures}, indent=2)
            )


if __name__ == "__main__":
    main()
