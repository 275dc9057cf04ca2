"""Teach the backbone of a fresh `bpclip-mini` to see: match a SqueezeNet's feature maps on photographs.

    accelerate launch -m iqguide.training.distill_bpclip --data DATA --teacher squeezenet.pt --out runs/mini-eyes

As training/distill.py does for `tiny`, and for the same reason. Only what the network has learnt is kept, no weight of
the teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ..models.bpclip import BPCLIP
from ..models.bpclip_files import save_bpclip
from ..models.create import create_model
from .batches import Crops
from .data import clean_photographs, scored_photographs, split
from .distill import half_degraded, learning_rate, mimicry
from .teacher import Squeezenet

FIRES = (3, 7, 9, 9)  # of strides 4, 8, 16 and 16, for the stages of strides 4 to 32
FIRE_CHANNELS = (128, 384, 512, 512)


class Student(nn.Module):
    """A BPCLIP's backbone with a 1x1 convolution from each of its last four maps to the teacher's channels."""

    def __init__(self, model: BPCLIP) -> None:
        super().__init__()
        self.model = model
        channels = model.backbone.feature_info.channels()[1:]
        self.probes = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(channels, FIRE_CHANNELS, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Guesses of the teacher's maps for images (N, 3, H, W) in [0, 1]."""
        return [probe(x) for probe, x in zip(self.probes, self.model.maps(images)[1:], strict=True)]


def distil(args: argparse.Namespace) -> None:
    """Train with the settings of the flags and write OUT/bpclip-mini.safetensors; only its backbone has learnt."""
    accelerator = Accelerator()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([args.seed, accelerator.process_index])
    generator = torch.Generator().manual_seed(args.seed + accelerator.process_index)
    photographs = split(clean_photographs(args.data))[0] + split(scored_photographs(args.data))[0]
    crops, teacher = Crops(photographs, args.crop, 10, rng), Squeezenet(args.teacher)
    torch.manual_seed(args.seed)
    model = create_model("bpclip-mini", weights="random", seed=args.seed)
    model.backbone.train().requires_grad_(True)
    student = Student(model).to(memory_format=torch.channels_last)
    learning = [*model.backbone.parameters(), *student.probes.parameters()]
    optimiser = torch.optim.AdamW(learning, args.lr, betas=(0.9, 0.99), weight_decay=0.02)
    student, optimiser = accelerator.prepare(student, optimiser)
    progress = tqdm(range(args.steps), desc="distil", mininterval=5, disable=not accelerator.is_main_process)
    running = 1.0
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(args.lr, step, args.steps)
        images = half_degraded(crops, args.batch, rng, generator).contiguous(memory_format=torch.channels_last)
        targets = [x.to(accelerator.device) for x in teacher.maps(images, tuple(dict.fromkeys(FIRES)))]
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            guesses = student(images.to(accelerator.device))
        loss = mimicry(guesses, [*targets, targets[-1]])
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learning, 2.0)
        optimiser.step()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 20 == 19:
            progress.set_postfix(loss=f"{running:.3f}", refresh=False)
        if accelerator.is_main_process and (step % 200 == 199 or step + 1 == args.steps):
            save_bpclip(accelerator.unwrap_model(student).model, args.out / "bpclip-mini.safetensors")


def main(arguments: list[str] | None = None) -> None:
    """Distil as the command line says."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m iqguide.training.distill_bpclip")
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/ and live-challenge/")
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet 1.0 state dict")
    parser.add_argument("--out", type=Path, required=True, help="folder for bpclip-mini.safetensors")
    parser.add_argument("--steps", type=int, default=1300, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=24, help="crops a step (%(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="side of the crops, px (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    distil(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
