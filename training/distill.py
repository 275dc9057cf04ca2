"""Teach a fresh `tiny` to see before it judges: match a SqueezeNet's feature maps on photographs, clean and degraded.

    accelerate launch -m iqguide.training.distill --data DATA --teacher squeezenet.pt --out runs/distilled

From random weights the ranking of ladders teaches nothing for a long time, because blur wants less high frequency to be
worse and noise more; dense targets get past that. Only what the network has learnt is kept, no weight of the teacher.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.create import create_model
from ..models.hub import save_model
from ..models.tiny import WIDTHS, Tiny
from . import batches, distortions
from .batches import Crops
from .data import clean_photographs, scored_photographs, split
from .options import SEEDS, Parser
from .teacher import Squeezenet

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "batch"), (1, math.inf)),
    "lr": (0, math.inf),
    "crop": (MIN_SIDE, math.inf),
    "seed": SEEDS,
}
"""Lowest and highest value of a flag."""

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


def learning_rate(highest: float, step: int, steps: int) -> float:
    """Linear warm-up over 50 steps, then a cosine down to a fiftieth."""
    return highest * min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def imitate(
    student: nn.Module, layers: tuple[int, ...], args: argparse.Namespace, save: Callable[[nn.Module], None]
) -> None:
    """Train what of `student` requires gradients to guess the teacher's maps, in place.

    Args:
        student: images (N, 3, H, W) in [0, 1] -> guesses of the maps of `layers`.
        layers: the teacher's, from fine to coarse; one may be there twice.
        args: `data`, `teacher`, `out`, `steps`, `batch`, `crop`, `lr`, `seed`.
        save: called with the student now and then, and at the end.
    """
    accelerator = Accelerator()
    make_folder(args.out)
    rng = np.random.default_rng([args.seed, accelerator.process_index])
    generator = torch.Generator().manual_seed(args.seed + accelerator.process_index)
    teacher = Squeezenet(args.teacher)
    photographs = split(clean_photographs(args.data))[0] + split(scored_photographs(args.data))[0]
    crops = Crops(photographs, args.crop, 12, rng)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, args.lr, betas=(0.9, 0.99), weight_decay=0.02)
    student, optimiser = accelerator.prepare(student.to(memory_format=torch.channels_last), optimiser)
    progress = tqdm(range(args.steps), desc="distil", disable=not accelerator.is_main_process)
    running, different = 1.0, tuple(dict.fromkeys(layers))
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(args.lr, step, args.steps)
        images = half_degraded(crops, args.batch, rng, generator)
        maps = dict(zip(different, teacher.maps(images, different), strict=True))
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            guesses = student(images.to(accelerator.device).contiguous(memory_format=torch.channels_last))
        loss = mimicry(guesses, [maps[layer].to(accelerator.device) for layer in layers])
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learning, 2.0)
        optimiser.step()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 20 == 19:
            progress.set_postfix(loss=f"{running:.3f}")
        if accelerator.is_main_process and (step % 300 == 299 or step + 1 == args.steps):
            save(accelerator.unwrap_model(student))


def distil(args: argparse.Namespace) -> None:
    """Train with the settings of the flags and write OUT/tiny.safetensors, not calibrated."""
    torch.manual_seed(args.seed)
    student = Student()
    if args.init:
        student.tiny.load_state_dict(create_model("tiny", weights=args.init).state_dict())
    student.tiny.head.requires_grad_(False)  # judging is learnt later
    imitate(student, FIRES, args, lambda trained: save_model(trained.tiny, args.out / "tiny.safetensors"))


def parser(name: str, result: str, steps: int) -> Parser:
    """The flags that every imitation has.

    Args:
        name: of the module, for the help.
        result: name of the file that is written.
        steps: the default.
    """
    flags = Parser(prog=f"accelerate launch -m iqguide.training.{name}")
    flags.add_argument("--data", type=Path, required=True, help="folder with pristine/ and live-challenge/")
    flags.add_argument("--teacher", type=Path, required=True, help="SqueezeNet 1.0 state dict")
    flags.add_argument("--out", type=Path, required=True, help=f"folder for {result}")
    flags.add_argument("--steps", type=int, default=steps, help="optimiser steps (%(default)s)")
    flags.add_argument("--batch", type=int, default=24, help="crops a step (%(default)s)")
    flags.add_argument("--crop", type=int, default=128, help="side of the crops, px (%(default)s)")
    flags.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return flags


def main(arguments: list[str] | None = None) -> None:
    """Distil as the command line says."""
    flags = parser("distill", "tiny.safetensors", 1200)
    flags.add_argument("--init", type=Path, help="go on from this safetensors file instead of random weights")
    args = flags.parse_within(RANGES, arguments)
    with one_sentence():
        distil(args)


if __name__ == "__main__":
    main()
