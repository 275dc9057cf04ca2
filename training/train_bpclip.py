"""Train a whole BPCLIP, backbone included, for a time: ladders of degradations, their words, and people's scores.

    accelerate launch -m iqguide.training.train_bpclip --data DATA --minutes 10 --out runs/bpclip-mini

The pictures are decoded once and stay on the device as they are in the files; crops and degradations are made there, a
few kinds at a time. The backbone starts from ImageNet's weights and moves later than the fresh layers above it, which
would ruin it else. The network stays in evaluation mode.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.adjectives import Pairs
from ..models.bpclip import BPCLIP
from ..models.hub import save_model
from ..models.raw_scale import raw_units
from . import autoencoders, batches, bpclip_losses, dimensions, distortions, generated_distortions
from .bpclip_start import BEST, add_start, finish, start
from .fit_bpclip import gated, standardise
from .options import SEEDS, Parser, parse_within
from .pictures import SETS, read_pictures
from .schedule import rate_at

DECAY = 0.998
"""Of the running average of the weights, which is the result."""
GOOD, REDUCED = 78.0, 2 / 3
"""Score above which a scored photograph, so much reduced, counts as clean."""
SHIFT = 16
"""How far the crops of one ladder may lie apart, in px; a multiple of 8, which autoencoders need."""
RECOMPRESSED, QUALITIES = 0.25, (60.0, 95.0)
"""How often a whole ladder is saved as JPEG once more, the clean picture too, and at which qualities."""
WARMUP, BACKBONE_WARMUP = 0.02, 0.15
"""Shares of the time until the highest learning rate, which then falls along a cosine."""
SAVE_EVERY = 120.0
"""Seconds between two saves of the running average."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("kinds", "photographs", "scored"), (1, math.inf)),
    **dict.fromkeys(("lr", "backbone_lr", "weight_decay", "slope"), (0, math.inf)),
    **dict.fromkeys(("crop", "scored_crop"), (MIN_SIDE, math.inf)),
    "minutes": (0, math.inf),
    "levels": (2, math.inf),
    "seed": SEEDS,
}
"""Lowest and highest value of a flag."""
Ladders = dict[str, distortions.Ladder]


def reduced(picture: Tensor) -> Tensor:
    """A picture (3, H, W) uint8 at `REDUCED` of its size."""
    small = F.interpolate(picture[None].float(), scale_factor=REDUCED, mode="bicubic", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def random_square(picture: Tensor, size: int, most: float, rng: np.random.Generator) -> Tensor:
    """A random square of a picture (3, H, W) uint8, reduced to (3, size, size) in [0, 1], mirrored half of the time.

    The square is `size` to `most * size` px wide, evenly in the logarithm, where the picture has that many; a smaller
    picture is enlarged.
    """
    height, width = picture.shape[1:]
    short = min(height, width)
    side = int(np.exp(rng.uniform(np.log(min(size, short)), np.log(min(most * size, short)))))
    y, x = (int(rng.integers(extent - side + 1)) for extent in (height, width))
    square = picture[None, :, y : y + side, x : x + side].float() / 255
    if side != size:
        square = F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return square[0].flip(2) if rng.random() < 0.5 else square[0]


@dataclass(frozen=True)
class Material:
    """What is learnt from, from the training part of the data."""

    clean: list[Tensor]
    """Pictures to be degraded."""
    scored: list[tuple[list[Tensor], Tensor]]
    """Of each data set the pictures and their scores (N,) in raw units."""
    ladders: Ladders
    """Kinds of degradation."""
    pairs: Pairs
    """Of adjectives."""


def gather(args: argparse.Namespace, pairs: Pairs, device: torch.device) -> Material:
    """Decode the pictures and take the training part."""
    ladders = distortions.LADDERS | generated_distortions.LADDERS
    if args.taef2:
        network = autoencoders.read_taef2(args.taef2).to(device)
        ladders |= autoencoders.ladders(network.encode, network.decode)
    pictures = read_pictures(args.data, device=device)
    clean, scored = [pictures.images[row] for row in pictures.clean()], []
    for number, folder in enumerate(SETS):
        rows = pictures.scored(number)
        mos = pictures.opinion[rows] * (100 / BEST[folder])
        clean += [reduced(pictures.images[row]) for row, good in zip(rows, mos > GOOD, strict=True) if good]
        scored.append(([pictures.images[row] for row in rows], torch.from_numpy(raw_units(mos)).float().to(device)))
    return Material(clean, scored, ladders, pairs)


def draw_ladders(
    material: Material, args: argparse.Namespace, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Some ladders of some kinds: images (A R, 3, s, s), severities (A, R) and wanted pairs (A, R, P)."""
    names = list(material.ladders)
    weights = np.array([batches.WEIGHTS.get(name, 4.0) for name in names])
    chosen = rng.choice(len(names), min(args.kinds, len(names)), replace=False, p=weights / weights.sum())
    images, severities, wanted = [], [], []
    for name in (names[n] for n in chosen):
        picks = rng.integers(0, len(material.clean), args.photographs)
        clean = torch.stack([random_square(material.clean[n], args.crop + SHIFT, 3.0, rng) for n in picks])
        levels = torch.from_numpy(np.sort(rng.uniform(0, 4, (len(clean), args.levels - 1)))).float()
        degraded = distortions.degrade(
            material.ladders[name], clean.repeat_interleave(args.levels - 1, 0), levels.flatten(), generator
        )
        ladder = torch.cat([clean[:, None], degraded.unflatten(0, levels.shape)], 1)
        if rng.random() < RECOMPRESSED:
            quality = torch.full((ladder.shape[0] * ladder.shape[1],), float(rng.uniform(*QUALITIES)))
            ladder = distortions.jpeg(ladder.flatten(0, 1), quality).view_as(ladder)
        windows = batches.overlapping(clean, args.crop, args.levels, rng)
        images.append(torch.stack([ladder[:, n, :, a, b] for n, (a, b) in enumerate(windows)], 1).flatten(0, 1))
        severities.append(torch.cat([torch.zeros(len(clean), 1), batches.severity(name, levels)], 1))
        places = torch.cat([torch.full((len(clean), 1), -1.0), levels], 1)
        wanted.append(dimensions.wanted(name, places.flatten(), material.pairs).unflatten(0, places.shape))
    device = material.clean[0].device
    return torch.cat(images), torch.cat(severities).to(device), torch.cat(wanted).to(device)


def draw_scored(
    pictures: list[Tensor], labels: Tensor, args: argparse.Namespace, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, o, o) of scored pictures, hardly reduced, and the scores (N,) of the wholes."""
    picks = rng.integers(0, len(pictures), args.scored)
    crops = [random_square(pictures[n], args.scored_crop, 1.15, rng) for n in picks]
    return torch.stack(crops), labels[torch.from_numpy(picks).to(labels.device)]


class Reader(nn.Module):
    """A model's readings as the forward pass, so that wrappers for several processes see it."""

    def __init__(self, model: BPCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N,) and pairs (N, P) of images (N, 3, H, W) in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16):
            vectors = self.model.vectors(self.model.maps(images.contiguous(memory_format=torch.channels_last)), None)
        return bpclip_losses.readings(self.model, vectors)


@dataclass
class Average:
    """Running average of parameters."""

    parameters: list[nn.Parameter]
    values: list[Tensor]
    steps: int = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in."""
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)
        self.steps += 1

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the parameters are their averages."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_copy_([parameter.data for parameter in self.parameters], self.values)
        try:
            yield
        finally:
            torch._foreach_copy_([parameter.data for parameter in self.parameters], kept)


def losses(
    reader: nn.Module,
    material: Material,
    args: argparse.Namespace,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Ladders, what the adjectives say of them, and people's scores, on one fresh batch."""
    images, severities, wanted = draw_ladders(material, args, rng, generator)
    average = dimensions.averages(material.pairs).to(images.device)
    parts = [bpclip_losses.of_ladders(reader(images), severities, wanted, average, args.slope)]
    for number, (pictures, labels) in enumerate(material.scored):
        crops, opinions = draw_scored(pictures, labels, args, rng)
        agreement = bpclip_losses.of_scored(reader(crops), opinions, average, values=number == 0)
        parts.append({"mos": agreement})
    return bpclip_losses.total(parts)


def learn(model: BPCLIP, args: argparse.Namespace, accelerator: Accelerator, deadline: float) -> dict[str, float]:
    """Train in place until the deadline (`time.monotonic`); what remains is the running average.

    Returns:
        Steps taken, and the last value of each loss.
    """
    device = accelerator.device
    material = gather(args, model.config.pairs, device)
    rng = np.random.default_rng([args.seed, accelerator.process_index])
    generator = torch.Generator().manual_seed(args.seed + accelerator.process_index)
    model.to(device, memory_format=torch.channels_last)
    if not args.init:
        typical = [draw_scored(*part, args, rng)[0] for part in material.scored]
        typical.append(draw_ladders(material, args, rng, generator)[0])
        standardise(model, torch.cat([F.adaptive_avg_pool2d(gated(model, x).float(), 4) for x in typical]).to(device))
    model.requires_grad_(True)
    if device.type == "cpu":
        model.set_attention("math")  # torch's fused attention is three times slower backwards, in bfloat16 on a CPU
    backbone = list(model.backbone.parameters())
    above = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
    groups = [
        {"params": backbone, "highest": args.backbone_lr, "warmup": BACKBONE_WARMUP},
        {"params": above, "highest": args.lr, "warmup": WARMUP},
    ]
    optimiser = torch.optim.AdamW(groups, args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay)
    reader, optimiser = accelerator.prepare(Reader(model), optimiser)
    average = Average([*backbone, *above], [parameter.detach().clone() for parameter in (*backbone, *above)])
    begun = saved = time.monotonic()
    progress = tqdm(desc=args.model, mininterval=5, disable=not accelerator.is_main_process)
    while average.steps == 0 or time.monotonic() < deadline:
        now = time.monotonic()
        share = min(1.0, (now - begun) / max(1e-3, deadline - begun))
        for group in optimiser.param_groups:
            group["lr"] = group["highest"] * rate_at(share, group["warmup"], last=0.0)
        terms = losses(reader, material, args, rng, generator)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(sum(terms.values()))
        accelerator.clip_grad_norm_(average.parameters, 2.0)
        optimiser.step()
        average.update()
        progress.update()
        if average.steps % 20 == 0:
            progress.set_postfix({name: f"{value.item():.3f}" for name, value in terms.items()}, refresh=False)
        if accelerator.is_main_process and now - saved > SAVE_EVERY:
            with average.used():
                save_model(model, args.out / f"{args.model}.safetensors")
            saved = now
    torch._foreach_copy_([parameter.data for parameter in average.parameters], average.values)
    model.requires_grad_(False)
    return {"steps": average.steps} | {name: round(value.item(), 4) for name, value in terms.items()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    parser = Parser(prog="accelerate launch -m iqguide.training.train_bpclip")
    add_start(parser)
    parser.add_argument("--taef2", type=Path, help="folder of taef2_encoder.pth, taef2_decoder.pth, for their damage")
    parser.add_argument("--minutes", type=float, default=600.0, help="of training, decoding included (%(default)s)")
    parser.add_argument("--kinds", type=int, default=6, help="of degradation a step and process (%(default)s)")
    parser.add_argument("--photographs", type=int, default=4, help="ladders of each kind (%(default)s)")
    parser.add_argument("--levels", type=int, default=4, help="crops of a ladder, the clean one included (%(default)s)")
    parser.add_argument("--crop", type=int, default=192, help="side of the ladder crops, px, 8 x n (%(default)s)")
    parser.add_argument("--scored", type=int, default=12, help="scored crops a step and data set (%(default)s)")
    parser.add_argument("--scored-crop", type=int, default=432, help="side of the scored crops, px (%(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="highest learning rate (%(default)s)")
    parser.add_argument("--backbone-lr", type=float, default=1.5e-4, help="that of the backbone (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of AdamW (%(default)s)")
    parser.add_argument("--slope", type=float, default=1.0, help="ranking margin per unit of severity (%(default)s)")
    return parse_within(parser, RANGES, arguments)


def train(args: argparse.Namespace) -> None:
    """Train with the settings of the flags; writes OUT/MODEL.safetensors now and then and at the end, and run.json."""
    deadline = time.monotonic() + 60 * args.minutes
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True  # shapes never change
    make_folder(args.out)
    accelerator, model = Accelerator(), start(args)
    last = learn(model, args, accelerator, deadline)
    if accelerator.is_main_process:
        finish(model, args, last)


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse(arguments)
    with one_sentence():
        train(args)


if __name__ == "__main__":
    main()
