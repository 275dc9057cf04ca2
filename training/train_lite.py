"""Fine-tune `lite` from ImageNet's features: people's scores of two sets, and ladders of degradations.

    accelerate launch -m iqguide.training.train_lite --data DATA --caches ladders.safetensors --out runs/lite

Each set of scores has a scale of its own, learnt along: people who saw one set never saw the other, so pictures are
only compared within one. Ladders say what no scored photograph shows; the damage of generated pictures is among them.
The absolute level stays with the scored photographs: a ladder is held to its order and to the size of its steps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..errors import atomic_write, make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.create import create_model
from ..models.hub import save_model
from ..models.lite import Lite
from ..models.raw_scale import raw_units
from . import objectives
from .calibrate_pictures import calibrate, measure
from .kinds import all_kinds
from .ladder_cache import read_cache
from .ladder_draws import Drawer, Ladders
from .options import SEEDS, Parser, parse_within
from .pictures import SETS, Pictures, crops, read_pictures, whole_squares
from .pretrained import load_pretrained, pretrained_file
from .schedule import rate_at

WHOLE = 0.3
"""Share of the steps at which scored pictures are seen whole, reduced, and not in crops at their own scale."""
FLOOR = -5.5
"""Raw units that no picture falls below: the worse the clean picture, the less its degradations can cost."""
CLEAN_LEVEL = 0.5
"""How far the level of clean crops is drawn to 0, next to what the model says of them itself."""
LEAST_SPREAD = 0.1
"""Of a statistic over typical pictures; what hardly varies now may come to life."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "scored", "kinds", "photos"), (1, math.inf)),
    **dict.fromkeys(("lr", "trunk_lr", "ladder_weight", "level_weight", "seconds"), (0, math.inf)),
    **dict.fromkeys(("crop", "ladder_crop"), (MIN_SIDE, math.inf)),
    "rungs": (2, 6), "dropout": (0, 0.99), "seed": SEEDS, "split": SEEDS,
}  # fmt: skip


class Scales(nn.Module):
    """Raw units -> the standardised scores of each set: a factor and an offset, learnt along."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(len(SETS)))
        self.offset = nn.Parameter(torch.zeros(len(SETS)))

    def forward(self, raw: Tensor, origin: int) -> Tensor:
        """(N,) -> (N,)."""
        return raw * self.factor[origin] + self.offset[origin]


def agreement(guesses: Tensor, labels: Tensor) -> Tensor:
    """Scores (N,) of one set are the labels (N,), rise with them, and are in their order."""
    ahead = (guesses[:, None] - guesses[None]) * torch.sign(labels[:, None] - labels[None])
    apart = (labels[:, None] - labels[None]).abs()
    order = (apart * F.softplus(-2 * ahead)).sum() / (apart.sum() + 1e-6)
    return F.smooth_l1_loss(guesses, labels) + 2 * objectives.correlation(guesses, labels) + 0.5 * order


def ladder_loss(raw: Tensor, severity: Tensor, level_weight: float) -> Tensor:
    """The order of ladders (P, L) and the size of their steps; see the module."""
    clean = (1 - CLEAN_LEVEL) * raw[:, :1].detach()
    target = clean - severity * (clean - FLOOR) / -FLOOR
    steps = F.softplus((0.25 + raw.diff(dim=1)) / 0.25)[severity.diff(dim=1) > 1e-6].mean()
    order = objectives.ladder_ranking(raw, severity, 0.6)
    return order + 0.5 * steps + level_weight * F.smooth_l1_loss(raw, target)


class Trainer:
    """One run; `step` is one optimiser step.

    Args:
        args: the flags.
        pictures: all photographs, split.
        device: where to train.
    """

    def __init__(self, args: argparse.Namespace, pictures: Pictures, accelerator: Accelerator) -> None:
        torch.manual_seed(args.seed)
        self.args, self.pictures, self.accelerator = args, pictures, accelerator
        self.device = accelerator.device
        self.model = start(args.init).to(self.device, memory_format=torch.channels_last)
        self.scales = Scales().to(self.device)
        self.rng = np.random.default_rng(args.seed)
        self.drawer = Drawer(
            pictures, [read_cache(path) for path in args.caches], args.without, args.ladder_crop, args.rungs, args.seed
        )
        self.rows = [pictures.scored(origin) for origin in range(len(SETS))]
        self.labels = [standardised(pictures, origin) for origin in range(len(SETS))]
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
        head = [*self.model.head.parameters(), *self.scales.parameters()]
        groups = [{"params": self.model.trunk.parameters(), "lr": args.trunk_lr}, {"params": head, "lr": args.lr}]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.99))
        self.highest = [group["lr"] for group in self.optimiser.param_groups]
        self.standardise()

    @torch.no_grad()
    def standardise(self) -> None:
        """Centre the head on the statistics of typical pictures: scored ones and ladders."""
        statistics = []
        for _ in range(4):
            statistics += [self.pooled(images) for images, _ in self.opinions()]
            statistics += [self.pooled(self.drawer.draw(self.args.photos).images.flatten(0, 1)) for _ in range(4)]
        std, mean = torch.std_mean(torch.cat(statistics), 0)
        for model in (self.model, self.ema.module):
            model.pooled_mean.copy_(mean)
            model.pooled_std.copy_(std.clamp(min=LEAST_SPREAD))

    def pooled(self, images: Tensor) -> Tensor:
        """Statistics of images, convolutions in bfloat16 where that is asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            return self.model.pooled(images.contiguous(memory_format=torch.channels_last))

    def raw(self, pooled: Tensor) -> Tensor:
        """The head's output (N,), with some of its statistics dropped out, the same ones for all pictures."""
        kept = F.dropout(torch.ones_like(pooled[:1]), self.args.dropout)
        mean, std = self.model.pooled_mean, self.model.pooled_std
        return self.model.head((pooled - mean) / std * kept).squeeze(1)

    def opinions(self) -> list[tuple[Tensor, Tensor]]:
        """Pictures (N, 3, s, s) and standardised labels (N,) of each set."""
        size, batches = self.args.crop, []
        share = self.args.scored // len(SETS)
        for rows, labels in zip(self.rows, self.labels, strict=True):
            picks = self.rng.permutation(len(rows))[:share]
            if self.rng.random() < WHOLE:
                images = whole_squares(self.pictures, rows[picks], size, self.rng)
            else:
                images = crops(self.pictures, rows[picks], size, 1.0, self.rng)
            batches.append((images, torch.from_numpy(labels[picks]).to(self.device)))
        return batches

    def step(self, share: float) -> dict[str, float]:
        """One optimiser step; `share` of the run is over."""
        for group, highest in zip(self.optimiser.param_groups, self.highest, strict=True):
            group["lr"] = highest * rate_at(share, warmup=0.05)
        scored = self.opinions()
        ladders = [self.drawer.draw(self.args.photos) for _ in range(self.args.kinds)]
        opinion = self._opinion_loss(scored)
        ladder = self._ladder_loss(ladders)
        loss = opinion + self.args.ladder_weight * ladder
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], 5.0)
        self.optimiser.step()
        self.ema.update_parameters(self.model)
        return {"opinion": opinion.detach(), "ladder": ladder.detach()}

    def _opinion_loss(self, scored: list[tuple[Tensor, Tensor]]) -> Tensor:
        pooled = self.pooled(torch.cat([images for images, _ in scored]))
        raw = self.raw(pooled).split([len(labels) for _, labels in scored])
        losses = [
            agreement(self.scales(guess, origin), labels)
            for origin, (guess, (_, labels)) in enumerate(zip(raw, scored, strict=True))
        ]
        return torch.stack(losses).mean()

    def _ladder_loss(self, ladders: list[Ladders]) -> Tensor:
        by_size: dict[int, list[Ladders]] = {}
        for ladder in ladders:
            by_size.setdefault(ladder.images.shape[-1], []).append(ladder)
        losses = []
        for same in by_size.values():
            images = torch.cat([ladder.images for ladder in same])
            raw = self.raw(self.pooled(images.flatten(0, 1))).view(images.shape[:2])
            severity = torch.cat([ladder.severity for ladder in same])
            losses.append(ladder_loss(raw, severity, self.args.level_weight) * len(images))
        return torch.stack(losses).sum() / sum(len(ladder.images) for ladder in ladders)


def standardised(pictures: Pictures, origin: int) -> np.ndarray:
    """Labels (N,) of a set's training part: of live-challenge raw units, of others in deviations from their mean."""
    opinion = pictures.opinion[pictures.scored(origin)]
    if origin == 0:
        return raw_units(opinion).astype(np.float32)
    return ((opinion - opinion.mean()) / opinion.std()).astype(np.float32)


def start(init: Path | None) -> Lite:
    """A `lite` to train: of ImageNet's features, or a file's."""
    if init is not None:
        return create_model("lite", weights=init).train().requires_grad_(True)
    model = Lite()
    load_pretrained(model.trunk, pretrained_file())
    return model


def train(args: argparse.Namespace, pictures: Pictures | None = None) -> None:
    """Train with the settings of the flags; writes OUT/lite.safetensors, calibrated, and OUT/run.json.

    Args:
        args: the flags.
        pictures: those of the data folder, split, where they are in memory already.
    """
    began = time.monotonic()
    accelerator = Accelerator()
    make_folder(args.out)
    pictures = pictures or read_pictures(args.data, args.split, accelerator.device)
    trainer = Trainer(args, pictures, accelerator)
    first, saved, step = time.monotonic(), time.monotonic(), 0
    limit = max(1.0, args.seconds - (first - began)) if args.seconds else 0.0
    progress = tqdm(total=args.steps, desc="lite", mininterval=5)
    share = 0.0
    while share < 1:
        losses = trainer.step(share)
        step += 1
        progress.update()
        share = (time.monotonic() - first) / limit if limit else step / args.steps
        if step % 20 == 0:
            progress.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()})
        if time.monotonic() - saved > args.save_every:
            finish(args, trainer, pictures, step, figures=False)
            saved = time.monotonic()
    progress.close()
    finish(args, trainer, pictures, step, figures=True)


def finish(args: argparse.Namespace, trainer: Trainer, pictures: Pictures, step: int, figures: bool) -> None:
    """Calibrate and write the averaged weights; at the end with figures of the held-out part."""
    model = trainer.ema.module
    model.eval()
    calibrate(model, pictures, args.bf16)
    held_out = [name for name, kept in zip(pictures.names, pictures.kept, strict=True) if not kept]
    save_model(model, args.out / "lite.safetensors", {"split": str(args.split), "held_out": json.dumps(held_out)})
    write_record(args, step, measure(model, pictures, args.bf16) if figures else {})


def write_record(args: argparse.Namespace, step: int, figures: dict[str, float]) -> None:
    """OUT/run.json: the settings, how many steps were made and, at the end, figures of the held-out part."""
    settings = json.loads(json.dumps(vars(args), default=str))
    record = {"settings": settings, "steps": step, "torch": torch.__version__, "held_out": figures}
    atomic_write(args.out / "run.json", f"{json.dumps(record, indent=2)}\n".encode())
    tqdm.write(", ".join(f"{key} {value:.3f}" for key, value in figures.items()))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    flags = Parser(prog="accelerate launch -m iqguide.training.train_lite")
    flags.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/ and biq2021/")
    flags.add_argument("--out", type=Path, required=True, help="folder for lite.safetensors and run.json")
    flags.add_argument("--caches", type=Path, nargs="*", default=[], help="files of ladders, see docs/training.md")
    flags.add_argument("--init", type=Path, help="go on from this file instead of ImageNet's features")
    flags.add_argument("--without", nargs="*", default=[], choices=sorted(groups()), help="kinds to leave out")
    flags.add_argument("--steps", type=int, default=1500, help="optimiser steps (%(default)s)")
    flags.add_argument("--seconds", type=float, default=0, help="stop by the clock instead of by steps")
    flags.add_argument("--save-every", type=float, default=600, help="seconds between saves (%(default)s)")
    flags.add_argument("--scored", type=int, default=40, help="human-scored pictures a step (%(default)s)")
    flags.add_argument("--crop", type=int, default=384, help="their side, px (%(default)s)")
    flags.add_argument("--kinds", type=int, default=5, help="kinds of degradations a step (%(default)s)")
    flags.add_argument("--photos", type=int, default=4, help="ladders of each kind (%(default)s)")
    flags.add_argument("--rungs", type=int, default=4, help="crops per ladder (%(default)s)")
    flags.add_argument("--ladder-crop", type=int, default=224, help="side of these, px (%(default)s)")
    flags.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of the head (%(default)s)")
    flags.add_argument("--trunk-lr", type=float, default=2e-4, help="of the trunk (%(default)s)")
    flags.add_argument("--dropout", type=float, default=0.2, help="of the head's statistics (%(default)s)")
    flags.add_argument("--ladder-weight", type=float, default=0.7, help="of the ladders (%(default)s)")
    flags.add_argument("--level-weight", type=float, default=0.3, help="of the ladders' levels (%(default)s)")
    flags.add_argument("--ema", type=float, default=0.99, help="decay of the averaged weights (%(default)s)")
    flags.add_argument("--bf16", action="store_true", help="convolutions in bfloat16, where the machine is fast at it")
    flags.add_argument("--split", type=int, default=0, help="which fifth is held out (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parse_within(flags, RANGES, arguments)


def groups() -> set[str]:
    """Names that --without takes."""
    return {kind.group for kind in all_kinds()} | {"autoencoder", "sampling"}


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse(arguments)
    with one_sentence():
        train(args)


if __name__ == "__main__":
    main()
