"""Fit the head of a trained `lite` once more, on statistics computed once: whole scored pictures, and many ladders.

    accelerate launch -m iqguide.training.fit_lite_head --data DATA --init runs/lite/lite.safetensors --out runs/fitted

A step of `train_lite` sees a few crops; once the trunk stands still the head can see hundreds of whole pictures and of
ladders at every step. It goes on from the head that is there; what is kept lies halfway between the two, since scores
of pictures that the trunk has learnt from draw the head too far (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models", average weights for the same reason).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.create import create_model
from ..models.hub import save_model
from ..models.lite import Lite
from .calibrate_pictures import calibrate, measure
from .ladder_cache import read_cache
from .ladder_draws import Drawer
from .options import SEEDS, Parser, parse_within
from .pictures import SETS, Pictures, read_pictures
from .schedule import rate
from .train_lite import Scales, agreement, ladder_loss, standardised, write_record

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "scored", "ladders", "batch"), (1, math.inf)),
    **dict.fromkeys(("lr", "ladder_weight", "level_weight", "decay"), (0, math.inf)),
    "ladder_crop": (MIN_SIDE, math.inf), "rungs": (2, 6), "dropout": (0, 0.99), "way": (0, 1),
    "seed": SEEDS, "split": SEEDS,
}  # fmt: skip
TOGETHER = 4
"""Ladders of one kind that are drawn at a time."""


@dataclass(frozen=True)
class Statistics:
    """What the head sees and is to say."""

    scored: list[Tensor]
    """(N, D) of each set, of whole pictures."""
    labels: list[Tensor]
    """(N,) of each set, standardised."""
    ladders: Tensor
    """(P, L, D)."""
    severity: Tensor
    """(P, L)."""


@torch.no_grad()
def pooled(model: Lite, images: Tensor, bf16: bool) -> Tensor:
    """`model.pooled` of images (N, 3, H, W), (N, D) float32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return model.pooled(images.contiguous(memory_format=torch.channels_last))


def whole_pictures(model: Lite, pictures: Pictures, rows: np.ndarray, bf16: bool) -> Tensor:
    """Statistics (N, D) of whole pictures."""
    parts = [
        pooled(model, pictures.images[row][None].float() / 255, bf16) for row in tqdm(rows, desc="scored pictures")
    ]
    return torch.cat(parts)


def ladder_statistics(model: Lite, drawer: Drawer, count: int, bf16: bool) -> tuple[Tensor, Tensor]:
    """Statistics (P, L, D) and severities (P, L) of `count` ladders."""
    statistics, severity = [], []
    for _ in tqdm(range(-(-count // TOGETHER)), desc="ladders"):
        drawn = drawer.draw(TOGETHER)
        statistics.append(pooled(model, drawn.images.flatten(0, 1), bf16).unflatten(0, drawn.images.shape[:2]))
        severity.append(drawn.severity)
    return torch.cat(statistics), torch.cat(severity)


def gather(model: Lite, pictures: Pictures, args: argparse.Namespace) -> Statistics:
    """Everything the head learns from, of the training part."""
    caches = [read_cache(path) for path in args.caches]
    drawer = Drawer(pictures, caches, [], args.ladder_crop, args.rungs, args.seed)
    ladders, severity = ladder_statistics(model, drawer, args.ladders, args.bf16)
    rows = [pictures.scored(origin) for origin in range(len(SETS))]
    labels = [torch.from_numpy(standardised(pictures, origin)).to(ladders) for origin in range(len(SETS))]
    return Statistics([whole_pictures(model, pictures, part, args.bf16) for part in rows], labels, ladders, severity)


def fit(model: Lite, known: Statistics, args: argparse.Namespace) -> None:
    """Fit the head in place; the trunk stays."""
    torch.manual_seed(args.seed)
    before = [parameter.clone() for parameter in model.head.parameters()]
    scales = Scales().to(known.ladders.device)
    model.head.requires_grad_(True)
    optimiser = torch.optim.AdamW([*model.head.parameters(), *scales.parameters()], args.lr, weight_decay=args.decay)
    mean, std = model.pooled_mean, model.pooled_std
    scored, ladders = [(part - mean) / std for part in known.scored], (known.ladders - mean) / std
    generator = torch.Generator().manual_seed(args.seed)
    for step in tqdm(range(args.steps), desc="head"):
        for group in optimiser.param_groups:
            group["lr"] = args.lr * rate(step, args.steps, last=0.01)
        kept = F.dropout(torch.ones_like(mean), args.dropout)
        losses = []
        for origin, (statistics, labels) in enumerate(zip(scored, known.labels, strict=True)):
            picks = torch.randperm(len(labels), generator=generator)[: args.scored]
            raw = model.head(statistics[picks] * kept).squeeze(1)
            losses.append(agreement(scales(raw, origin), labels[picks]))
        picks = torch.randperm(len(ladders), generator=generator)[: args.batch]
        raw = model.head(ladders[picks] * kept).squeeze(2)
        severity = known.severity[picks]
        steps = F.softplus((0.3 + raw.diff(dim=1)) / 0.2)[severity.diff(dim=1) > 1e-6].mean()
        ladder = ladder_loss(raw, severity, args.level_weight)
        loss = torch.stack(losses).mean() + args.ladder_weight * (ladder + steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    for parameter, old in zip(model.head.parameters(), before, strict=True):
        parameter.lerp_(old, 1 - args.way)


def fit_lite_head(args: argparse.Namespace) -> None:
    """Fit with the settings of the flags; writes OUT/lite.safetensors, calibrated, and OUT/run.json."""
    make_folder(args.out)
    device = Accelerator().device
    pictures = read_pictures(args.data, args.split, device)
    model = create_model("lite", weights=args.init, device=device).to(memory_format=torch.channels_last)
    fit(model, gather(model, pictures, args), args)
    calibrate(model, pictures, args.bf16)
    held_out = [name for name, kept in zip(pictures.names, pictures.kept, strict=True) if not kept]
    save_model(model, args.out / "lite.safetensors", {"split": str(args.split), "held_out": json.dumps(held_out)})
    write_record(args, args.steps, measure(model, pictures, args.bf16))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    flags = Parser(prog="accelerate launch -m iqguide.training.fit_lite_head")
    flags.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/ and biq2021/")
    flags.add_argument("--init", type=Path, required=True, help="file of a lite, from the same part of the data")
    flags.add_argument("--out", type=Path, required=True, help="folder for lite.safetensors and run.json")
    flags.add_argument("--caches", type=Path, nargs="*", default=[], help="files of ladders, see docs/training.md")
    flags.add_argument("--steps", type=int, default=250, help="optimiser steps (%(default)s)")
    flags.add_argument("--scored", type=int, default=192, help="human-scored pictures of each set a step (%(default)s)")
    flags.add_argument("--ladders", type=int, default=800, help="ladders (%(default)s)")
    flags.add_argument("--batch", type=int, default=128, help="ladders a step (%(default)s)")
    flags.add_argument("--rungs", type=int, default=5, help="crops per ladder (%(default)s)")
    flags.add_argument("--ladder-crop", type=int, default=224, help="side of these, px (%(default)s)")
    flags.add_argument("--lr", type=float, default=6e-4, help="highest learning rate (%(default)s)")
    flags.add_argument("--decay", type=float, default=0.3, help="weight decay (%(default)s)")
    flags.add_argument("--dropout", type=float, default=0.3, help="of the statistics (%(default)s)")
    flags.add_argument("--ladder-weight", type=float, default=0.7, help="of the ladders (%(default)s)")
    flags.add_argument("--level-weight", type=float, default=0.3, help="of the ladders' levels (%(default)s)")
    flags.add_argument("--way", type=float, default=0.5, help="from the old head to the fitted one (%(default)s)")
    flags.add_argument("--bf16", action="store_true", help="convolutions in bfloat16, where the machine is fast at it")
    flags.add_argument("--split", type=int, default=0, help="which fifth is held out (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parse_within(flags, RANGES, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Fit as the command line says."""
    args = parse(arguments)
    with one_sentence():
        fit_lite_head(args)


if __name__ == "__main__":
    main()
