"""Teach a fresh `tiny` what `lite` sees and says: feature maps, scores, ladders; on as many crops as time allows.

    accelerate launch -m iqguide.training.teach --data DATA --teacher lite.safetensors --caches CACHES --out runs/tiny

The pictures need no labels: random crops of every photograph of the training part, ladders of degradations, and ladders
of caches. People's scores stay in the game, for a student should not repeat its teacher's errors. Where a ladder ends,
a crop brought a little back to the clean one has to score clearly higher: the slope is what guidance climbs.
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
from tqdm import tqdm

from ..errors import make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.create import create_model
from ..models.efficientnet import WIDTHS as TEACHER_WIDTHS
from ..models.hub import save_model
from ..models.tiny import WIDTHS, Tiny
from . import objectives
from .calibrate_pictures import calibrate, measure
from .distill import mimicry
from .ladder_cache import read_cache
from .ladder_draws import Drawer
from .options import SEEDS, Parser, parse_within
from .pictures import SETS, Pictures, crops, read_pictures
from .schedule import rate_at
from .train_lite import groups, standardised, write_record

TAUGHT = (2, 3, 5)
"""Stages of the teacher, at a quarter, an eighth and a sixteenth of the size as the last three of `tiny`."""
SETTLED = 0.65
"""Share of the run after which the norms' statistics stay."""
BACK = 0.02
"""How much of the way back to the clean crop is gone, so little that it tells the slope."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "unlabelled", "scored", "kinds", "photos"), (1, math.inf)),
    **dict.fromkeys(("lr", "seconds"), (0, math.inf)),
    **dict.fromkeys(("crop", "scored_crop"), (MIN_SIDE, math.inf)),
    "rungs": (2, 6), "seed": SEEDS, "split": SEEDS,
}  # fmt: skip


class Student(nn.Module):
    """`Tiny` with a 1x1 convolution from each of its last three stages to the teacher's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny()
        channels = [TEACHER_WIDTHS[stage] for stage in TAUGHT]
        self.probes = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(WIDTHS[1:], channels, strict=True))

    def guesses(self, maps: list[Tensor]) -> list[Tensor]:
        """Guesses of the teacher's maps from `Tiny`'s."""
        return [probe(plane) for probe, plane in zip(self.probes, maps, strict=True)]


class Lesson:
    """One run; `step` is one optimiser step.

    Args:
        args: the flags.
        pictures: all photographs, split.
        accelerator: whose device is trained on.
    """

    def __init__(self, args: argparse.Namespace, pictures: Pictures, accelerator: Accelerator) -> None:
        torch.manual_seed(args.seed)
        self.args, self.pictures, self.accelerator = args, pictures, accelerator
        self.device = accelerator.device
        self.student = Student().to(self.device, memory_format=torch.channels_last).train()
        self.teacher = create_model("lite", weights=args.teacher, device=self.device)
        self.teacher.to(memory_format=torch.channels_last)
        self.rng = np.random.default_rng(args.seed)
        caches = [read_cache(path) for path in args.caches]
        self.drawer = Drawer(pictures, caches, args.without, args.crop, args.rungs, args.seed)
        self.rows = [pictures.scored(origin) for origin in range(len(SETS))]
        self.labels = [standardised(pictures, origin) for origin in range(len(SETS))]
        self.any = np.flatnonzero(pictures.kept)
        self.optimiser = torch.optim.AdamW(self.student.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.02)
        self.settles = (0.05, SETTLED, math.inf)

    def step(self, share: float) -> dict[str, Tensor]:
        """One optimiser step; `share` of the run is over."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.lr * rate_at(share, warmup=0.04)
        if share > self.settles[0]:
            self._settle(statistics_stay=self.settles[0] == SETTLED)
            self.settles = self.settles[1:]
        taught, ladders = self._unlabelled()
        scored = self._scored_loss()
        loss = taught["maps"] + taught["scores"] + 0.5 * ladders + 0.5 * scored
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self.student.parameters(), 2.0)
        self.optimiser.step()
        losses = {**taught, "ladders": ladders, "opinions": scored}
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _settle(self, statistics_stay: bool) -> None:
        """Centre the head on what the stages have learnt to say; later on let the norms' statistics stay."""
        tiny, pooled = self.student.tiny, []
        if statistics_stay:
            tiny.stages.eval()
        for _ in range(16):
            images = self.drawer.draw(self.args.photos).images.flatten(0, 1)
            pooled.append(self._seen(images.contiguous(memory_format=torch.channels_last))[0])
        tiny.standardise(torch.cat(pooled))

    def _unlabelled(self) -> tuple[dict[str, Tensor], Tensor]:
        """What the teacher says of ladders and of random crops, and the order of the ladders."""
        drawn = [self.drawer.draw(self.args.photos) for _ in range(self.args.kinds)]
        size = self.args.crop
        images = [F.interpolate(x.images.flatten(0, 1), (size, size), mode="bilinear") for x in drawn]
        back = [
            torch.lerp(x.unflatten(0, (-1, self.args.rungs))[:, -1], x.unflatten(0, (-1, self.args.rungs))[:, 0], BACK)
            for x in images
        ]
        scale = float(np.exp(self.rng.uniform(0, np.log(3.0))))
        loose = crops(self.pictures, self.rng.choice(self.any, self.args.unlabelled), size, scale, self.rng)
        batch = torch.cat([*images, *back, loose]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            wanted, maps = self.teacher.seen(batch)
        pooled, own = self._seen(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            guesses = self.student.guesses(own[1:])
        raw = self.student.tiny.judge(pooled)
        target = self.teacher.judge(wanted)
        taught = {
            "maps": mimicry(guesses, [maps[stage].float() for stage in TAUGHT]),
            "scores": 2 * F.smooth_l1_loss(raw, target) + 2 * objectives.correlation(raw, target),
        }
        count = len(drawn) * self.args.photos
        rungs = raw[: count * self.args.rungs].view(count, self.args.rungs)
        severity = torch.cat([x.severity for x in drawn])
        steps = F.softplus((0.25 + rungs.diff(dim=1)) / 0.25)[severity.diff(dim=1) > 1e-6].mean()
        slope = (raw[count * self.args.rungs :][:count] - rungs[:, -1]) / BACK
        climbs = F.softplus(severity[:, -1] - slope).mean()
        order = objectives.ladder_ranking(rungs, severity, 0.6)
        return taught, order + 0.5 * steps + 0.3 * climbs

    def _seen(self, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            return self.student.tiny.seen(batch)

    def _scored_loss(self) -> Tensor:
        """People's scores, mixed with the teacher's of the same crops; each set's in its own standard units."""
        losses = []
        for rows, labels in zip(self.rows, self.labels, strict=True):
            picks = self.rng.permutation(len(rows))[: self.args.scored // len(SETS)]
            images = crops(self.pictures, rows[picks], self.args.scored_crop, 1.0, self.rng)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
                second = self.teacher.raw(images)
            raw = self.student.tiny.judge(self._seen(images)[0])
            people = torch.from_numpy(labels[picks]).to(self.device)
            losses.append(F.smooth_l1_loss(raw, second) + objectives.correlation(raw, people) * 2)
            losses.append(objectives.correlation(raw, second))
        return torch.stack(losses).sum() / len(SETS)


def teach(args: argparse.Namespace, pictures: Pictures | None = None) -> None:
    """Train with the settings of the flags; writes OUT/tiny.safetensors, calibrated, and OUT/run.json.

    Args:
        args: the flags.
        pictures: those of the data folder, split, where they are in memory already.
    """
    began = time.monotonic()
    accelerator = Accelerator()
    make_folder(args.out)
    pictures = pictures or read_pictures(args.data, args.split, accelerator.device)
    lesson = Lesson(args, pictures, accelerator)
    first, saved, step, share = time.monotonic(), time.monotonic(), 0, 0.0
    limit = max(1.0, args.seconds - (first - began)) if args.seconds else 0.0
    progress = tqdm(total=args.steps, desc="tiny", mininterval=5)
    while share < 1:
        losses = lesson.step(share)
        step += 1
        progress.update()
        share = (time.monotonic() - first) / limit if limit else step / args.steps
        if step % 20 == 0:
            progress.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()})
        if time.monotonic() - saved > args.save_every:
            finish(args, lesson, pictures, step, figures=False)
            saved = time.monotonic()
    progress.close()
    finish(args, lesson, pictures, step, figures=True)


def finish(args: argparse.Namespace, lesson: Lesson, pictures: Pictures, step: int, figures: bool) -> None:
    """Calibrate and write the weights; at the end with figures of the held-out part."""
    tiny = lesson.student.tiny.eval()
    calibrate(tiny, pictures, args.bf16)
    held_out = [name for name, kept in zip(pictures.names, pictures.kept, strict=True) if not kept]
    save_model(tiny, args.out / "tiny.safetensors", {"split": str(args.split), "held_out": json.dumps(held_out)})
    write_record(args, step, measure(tiny, pictures, args.bf16) if figures else {})
    tiny.train()
    if lesson.settles[0] > SETTLED:
        tiny.stages.eval()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    flags = Parser(prog="accelerate launch -m iqguide.training.teach")
    flags.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/ and biq2021/")
    flags.add_argument("--teacher", type=Path, required=True, help="file of a lite, from the same part of the data")
    flags.add_argument("--out", type=Path, required=True, help="folder for tiny.safetensors and run.json")
    flags.add_argument("--caches", type=Path, nargs="*", default=[], help="files of ladders, see docs/training.md")
    flags.add_argument("--without", nargs="*", default=[], choices=sorted(groups()), help="kinds to leave out")
    flags.add_argument("--steps", type=int, default=3000, help="optimiser steps (%(default)s)")
    flags.add_argument("--seconds", type=float, default=0, help="stop by the clock instead of by steps")
    flags.add_argument("--save-every", type=float, default=600, help="seconds between saves (%(default)s)")
    flags.add_argument("--unlabelled", type=int, default=48, help="random crops a step (%(default)s)")
    flags.add_argument("--scored", type=int, default=24, help="human-scored crops a step (%(default)s)")
    flags.add_argument("--scored-crop", type=int, default=288, help="their side, px (%(default)s)")
    flags.add_argument("--kinds", type=int, default=5, help="kinds of degradations a step (%(default)s)")
    flags.add_argument("--photos", type=int, default=4, help="ladders of each kind (%(default)s)")
    flags.add_argument("--rungs", type=int, default=4, help="crops per ladder (%(default)s)")
    flags.add_argument("--crop", type=int, default=160, help="side of the other crops, px (%(default)s)")
    flags.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (%(default)s)")
    flags.add_argument("--bf16", action="store_true", help="convolutions in bfloat16, where the machine is fast at it")
    flags.add_argument("--split", type=int, default=0, help="which fifth is held out (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parse_within(flags, RANGES, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Teach as the command line says."""
    args = parse(arguments)
    with one_sentence():
        teach(args)


if __name__ == "__main__":
    main()
