"""Teach a fresh `tiny` to see before it judges: match a SqueezeNet's feature maps on photographs, clean and degraded.

    accelerate launch -m iqguide.training.distill --data DATA --teacher squeezenet.pt --out runs/distilled

From random weights the ranking of ladders teaches nothing for a long time, because blur wants less high frequency to be
worse and noise more; dense targets get past that. Only what the network has learnt is kept, no weight of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FOR_PEOPLE, make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.create import create_model
from ..models.hub import save_model
from ..models.tiny import WIDTHS, Tiny
from . import batches, distortions
from .batches import Crops
from .data import clean_photographs, scored_photographs, split
from .fitting import fit
from .loop import Diverged
from .options import SEEDS, check_ranges, parse_settings
from .run_record import only_run, refuse_used
from .teacher import Squeezenet


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """One run that imitates a teacher's feature maps."""

    RANGES: ClassVar[dict] = {
        **dict.fromkeys(("steps", "batch"), (1, math.inf)),
        "lr": (0, math.inf),
        "crop": (MIN_SIDE, math.inf),
        "seed": SEEDS,
    }
    """Lowest and highest value of a setting."""

    data: Annotated[Path, "folder with pristine/ and live-challenge/"]
    teacher: Annotated[Path, "SqueezeNet 1.0 state dict"]
    out: Annotated[Path, "folder for the result"]
    steps: Annotated[int, "optimiser steps"] = 1200
    batch: Annotated[int, "crops a step"] = 24
    crop: Annotated[int, "side of the crops, px"] = 128
    lr: Annotated[float, "highest learning rate"] = 3e-3
    seed: Annotated[int, "of everything random"] = 0
    overwrite: Annotated[bool, "replace the result of a former run in --out"] = False

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)


@dataclass(frozen=True, kw_only=True)
class DistillTinySettings(DistillSettings):
    """One run that teaches `tiny`."""

    init: Annotated[Path | None, "go on from this safetensors file instead of random weights"] = None


FIRES = (3, 7, 9)  # at a quarter, an eighth and a sixteenth of the size, as the last three stages of `tiny`
FIRE_CHANNELS = (128, 384, 512)


class Student(nn.Module):
    """`Tiny` with a 1x1 convolution from each of its last three stages to the teacher's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny()
        self.probes = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(WIDTHS[1:], FIRE_CHANNELS, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Guesses of the teacher's maps for images (N, 3, H, W) in [0, 1]."""
        x, guesses = images * 2 - 1, []
        for stage, probe in zip(self.tiny.stages, (None, *self.probes), strict=True):
            x = stage(x)
            if probe is not None:
                guesses.append(probe(x))
        return guesses


def half_degraded(crops: Crops, size: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """A batch of crops, every second one degraded in a random way at a random level."""
    images = crops.batch(size, rng)
    for n in range(0, size, 2):
        kind = batches.LADDER_KINDS[rng.integers(len(batches.LADDER_KINDS))]
        level = torch.from_numpy(rng.uniform(0, 4, 1)).float()
        images[n : n + 1] = distortions.distort(images[n : n + 1], kind, level, generator)
    return images


def mimicry(guesses: list[Tensor], maps: list[Tensor]) -> Tensor:
    """Mean over the layers of the squared error of the maps, each channel in units of its spread over the batch."""
    total = guesses[0].new_zeros((), dtype=torch.float32)
    for guess, target in zip(guesses, maps, strict=True):
        target = F.interpolate(target, guess.shape[-2:], mode="bilinear")
        variance, mean = torch.var_mean(target, (0, 2, 3), keepdim=True)
        scale = (variance + 0.1 * variance.mean()).rsqrt()  # channels that hardly fire must not count fully
        total = total + ((guess.float() - (target - mean) * scale).square()).mean()
    return total / len(guesses)


def imitate(
    student: nn.Module, layers: tuple[int, ...], settings: DistillSettings, save: Callable[[nn.Module], None]
) -> None:
    """Train what of `student` requires gradients to guess the teacher's maps, in place.

    Args:
        student: images (N, 3, H, W) in [0, 1] -> guesses of the maps of `layers`.
        layers: the teacher's, from fine to coarse; one may be there twice.
        settings: of the run.
        save: called with the student now and then, and at the end.
    """
    accelerator = Accelerator()
    rng = np.random.default_rng([settings.seed, accelerator.process_index])
    generator = torch.Generator().manual_seed(settings.seed + accelerator.process_index)
    teacher = Squeezenet(settings.teacher)
    photographs = split(clean_photographs(settings.data))[0] + split(scored_photographs(settings.data))[0]
    crops = Crops(photographs, settings.crop, 12, rng)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    wrapped = accelerator.prepare(student.to(accelerator.device, memory_format=torch.channels_last))
    different = tuple(dict.fromkeys(layers))

    def losses() -> dict[str, Tensor]:
        images = half_degraded(crops, settings.batch, rng, generator)
        maps = dict(zip(different, teacher.maps(images, different), strict=True))
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            guesses = wrapped(images.to(accelerator.device).contiguous(memory_format=torch.channels_last))
        return {"mimicry": mimicry(guesses, [maps[layer].to(accelerator.device) for layer in layers])}

    def after(step: int) -> None:
        if accelerator.is_main_process and (step % 300 == 299 or step + 1 == settings.steps):
            save(accelerator.unwrap_model(wrapped))

    fit(
        learning,
        losses,
        steps=settings.steps,
        lr=settings.lr,
        weight_decay=0.02,
        clip=2.0,
        name="distil",
        after=after,
        accelerator=accelerator,
    )


def claim(settings: DistillSettings, result: str) -> None:
    """Refuse a folder that holds a former result, unless the settings say to replace it."""
    make_folder(settings.out)
    if not settings.overwrite:
        refuse_used(settings.out, (result,), "replace it with --overwrite")


def distil(settings: DistillTinySettings) -> None:
    """Train with the settings and write OUT/tiny.safetensors, not calibrated."""
    claim(settings, "tiny.safetensors")
    torch.manual_seed(settings.seed)
    student = Student()
    if settings.init:
        student.tiny.load_state_dict(create_model("tiny", weights=settings.init).state_dict())
    student.tiny.head.requires_grad_(False)  # judging is learnt later
    with only_run(settings.out):
        imitate(student, FIRES, settings, lambda trained: save_model(trained.tiny, settings.out / "tiny.safetensors"))


def main(arguments: list[str] | None = None) -> None:
    """Distil as the command line says."""
    settings = parse_settings(DistillTinySettings, "distill", arguments)
    with one_sentence((*FOR_PEOPLE, Diverged)):
        distil(settings)


if __name__ == "__main__":
    main()
