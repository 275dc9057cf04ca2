"""Teach a `bpclip-mini` to judge: everything above its backbone, on feature maps that are computed once.

    accelerate launch -m iqguide.training.fit_bpclip --data DATA --init runs/mini-eyes/bpclip-mini.safetensors \
        --out runs/bpclip-mini

As training/fit_tiny_head.py does for `tiny`: the backbone and the pooling's masks stand still, so the gated maps are
pooled once, and every step sees many ladders and many people's scores at little cost. W_f of equation 2 is linear and
comes after the mask, so it may as well follow the pooling; it is learnt with the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import atomic_write, make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.bpclip import BPCLIP
from ..models.create import create_model
from ..models.hub import save_model
from . import batches, distortions, objectives
from .batch_dataset import checked_parts, read_predictions
from .batches import Crops, raw_units
from .calibrate import held_out_crops, measure
from .config import FinetuneConfig
from .data import Photograph
from .distill import learning_rate
from .fit_tiny_head import RESTORED
from .options import SEEDS, Parser

DECAY = 0.995
"""Of the running average of the weights, which is the result."""


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "ladders", "scored", "small", "large"), (1, math.inf)),
    **dict.fromkeys(("lr", "weight_decay", "slope"), (0, math.inf)),
    **dict.fromkeys(("crop", "large_crop", "scored_crop"), (MIN_SIDE, math.inf)),
    "seed": SEEDS,
}
"""Lowest and highest value of a flag."""


@dataclasses.dataclass(frozen=True)
class Ladders:
    """Pooled maps of ladders of crops of one size."""

    maps: Tensor
    """(P, R, C, h, w) float16: clean, the levels, and a level brought a little back, as for `tiny`."""
    severities: Tensor
    """(P, R)."""

    def batch(self, count: int, levels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some levels of some ladders: maps (count, levels, C, h, w) and severities (count, levels)."""
        rows = torch.randint(len(self.maps), (count, 1), generator=generator)
        columns = torch.rand(count, self.maps.shape[1], generator=generator).argsort(1)[:, :levels]
        return self.maps[rows, columns].float(), self.severities[rows, columns]


@dataclasses.dataclass(frozen=True)
class Known:
    """What is learnt from, from the training part of the data."""

    ladders: list[Ladders]
    """Small crops, large crops and, with a cache, pairs of denoised predictions."""
    scored: Tensor
    """(N, C, h, w) float16, of crops of human-scored pictures."""
    labels: Tensor
    """(N,), people's scores of the whole pictures, 0 to 1."""


@torch.no_grad()
def gated(model: BPCLIP, images: Tensor, batch: int = 24) -> Tensor:
    """Gated and pooled maps of all levels side by side: images (N, 3, H, W) in [0, 1] -> (N, C, h, w) float16."""
    device, found = model.margin_mean.device, []
    for part in images.split(batch):
        with torch.autocast(device.type, torch.bfloat16):
            maps = model.maps(part.to(device).contiguous(memory_format=torch.channels_last))
            size = tuple(maps[-1].shape[2:])
            planes = [
                F.adaptive_avg_pool2d(p.mask(x).sigmoid() * x, size) for p, x in zip(model.pools, maps, strict=True)
            ]
        found.append(torch.cat(planes, 1).half().cpu().contiguous())
    return torch.cat(found)


def vectors(model: BPCLIP, maps: Tensor) -> Tensor:
    """The levels' vectors (N, levels, text_dim) of pooled maps (N, C, h, w) from `gated`."""
    parts = maps.split([pool.features.in_channels for pool in model.pools], 1)
    return model.read([F.gelu(p.project(p.features(x))) for p, x in zip(model.pools, parts, strict=True)])


def ladder_maps(model: BPCLIP, crops: Tensor, generator: torch.Generator) -> Ladders:
    """Ladders of every kind of crops (N, 3, s, s) in [0, 1]."""
    levels, found, severities = torch.arange(5.0), [], []
    for kind in tqdm(batches.LADDER_KINDS, desc=f"ladders, {crops.shape[-1]} px"):
        for clean in crops.split(24):
            stack = [distortions.distort(clean, kind, level.expand(len(clean)), generator) for level in levels]
            stack = [clean, *stack, torch.lerp(stack[3], clean, RESTORED)]
            found.append(torch.stack([gated(model, level) for level in stack], 1))
        cost = batches.severity(kind, levels)
        row = torch.cat([torch.zeros(1), cost, cost[3:4] * (1 - RESTORED)])
        severities.append(row.expand(len(crops), -1))
    return Ladders(torch.cat(found), torch.cat(severities))


def gather_ladders(
    model: BPCLIP, clean: list[Photograph], args: argparse.Namespace, rng: np.random.Generator
) -> list[Ladders]:
    """Ladders of small and of large crops of clean photographs."""
    generator = torch.Generator().manual_seed(args.seed)
    shuffled = [clean[n] for n in rng.permutation(len(clean))]
    return [
        ladder_maps(model, Crops(photographs, size, 1, rng).images.float() / 255, generator)
        for photographs, size in ((shuffled[: args.small], args.crop), (shuffled[: args.large], args.large_crop))
    ]


def gather_scored(model: BPCLIP, scored: list[Photograph], size: int, rng: np.random.Generator) -> Tensor:
    """Pooled maps of crops of human-scored pictures: (N * EACH, C, h, w), those of one picture side by side."""
    views = batches.scored_crops(scored, None, size, rng)
    return torch.cat([gated(model, part.float() / 255) for part in tqdm(views.images.split(24), desc="scored")])


def gather(model: BPCLIP, args: argparse.Namespace) -> Known:
    """Pool the maps of everything that is learnt from."""
    rng = np.random.default_rng(args.seed)
    cache = read_predictions(args.denoised) if args.denoised else None
    clean, scored, _ = checked_parts(FinetuneConfig(data=args.data))
    ladders = gather_ladders(model, clean, args, rng)
    if cache:
        pairs = [gated(model, cache[key].float() / 255) for key in ("clean", "degraded")]
        costs = torch.stack([torch.zeros_like(cache["severity"]), cache["severity"]], 1)
        ladders.append(Ladders(torch.stack(pairs, 1), costs))
    scored_maps = gather_scored(model, scored, args.scored_crop, rng)
    return Known(ladders, scored_maps, torch.from_numpy(np.repeat([p.mos / 100 for p in scored], batches.EACH)))


@torch.no_grad()
def standardise(model: BPCLIP, maps: Tensor) -> None:
    """Let the fresh layers start on inputs of mean 0 and spread 1: pooled maps (N, C, h, w) of typical pictures.

    Maps and cosines differ in scale by orders of magnitude, on which layers hardly learn. W_f takes in the scale of its
    maps, the convolution after it their mean, and the head's first layer both of the cosines.
    """
    for pool, part in zip(model.pools, maps.split([p.features.in_channels for p in model.pools], 1), strict=True):
        std, mean = torch.std_mean(part, (0, 2, 3))
        pool.features.weight.div_((std + 1e-3).view(1, -1, 1, 1))
        pool.project.bias.copy_(-pool.project.weight.flatten(1) @ (pool.features.weight.flatten(1) @ mean))
    first = model.head[0]
    std, mean = torch.std_mean(model.seen(vectors(model, maps)).flatten(1), 0)
    first.weight.div_(std + 1e-3)
    first.bias.copy_(-first.weight @ mean)


def losses(model: BPCLIP, known: Known, args: argparse.Namespace, generator: torch.Generator) -> dict[str, Tensor]:
    """Ranking of ladders, how severe each level is, and people's scores, on one fresh batch."""
    device = model.margin_mean.device

    def raw(maps: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            found = vectors(model, maps.to(device))
        # as `tiny` counts: a clean photograph is near 0, a ruined one near -4.5
        return raw_units(100 * model.judge(found))

    ranking, severity = [], []
    for kind, count in zip(
        known.ladders, (args.ladders, max(1, args.ladders // 4), max(1, args.ladders // 2)), strict=False
    ):
        maps, costs = kind.batch(count, min(4, kind.maps.shape[1]), generator)
        scores, costs = raw(maps.flatten(0, 1)).view(costs.shape), costs.to(device)
        ranking.append(objectives.ladder_ranking(scores, costs, args.slope))
        if costs.shape[1] > 2:  # of a denoised prediction only the order is known
            severity.append(F.smooth_l1_loss(scores, -costs))
    picks = torch.randint(len(known.labels), (args.scored,), generator=generator)
    scores, labels = raw(known.scored[picks].float()), raw_units(100 * known.labels[picks]).float().to(device)
    mos = F.smooth_l1_loss(scores, labels) + 2 * objectives.correlation(scores, labels)
    return {"ranking": sum(ranking) / len(ranking), "severity": 0.1 * sum(severity), "mos": mos}


def fit(model: BPCLIP, known: Known, args: argparse.Namespace) -> None:
    """Train everything above the masks, in place; what remains is the running average."""
    if model.margin_mean.device.type == "cpu":
        model.set_attention("math")  # torch's fused attention is three times slower backwards, in bfloat16 on a CPU
    generator = torch.Generator().manual_seed(args.seed)
    typical = [kind.batch(64, 1, generator)[0].flatten(0, 1) for kind in known.ladders]
    typical = torch.cat([F.adaptive_avg_pool2d(x, 4) for x in (*typical, known.scored[:64].float())])
    standardise(model, typical.to(model.margin_mean.device))
    learning = [p for name, p in model.named_parameters() if not name.startswith("backbone.") and ".mask." not in name]
    for parameter in learning:
        parameter.requires_grad_(True)
    average = [p.detach().clone() for p in learning]
    optimiser = torch.optim.AdamW(learning, args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay)
    progress, running = tqdm(range(args.steps), desc="bpclip-mini", mininterval=5), {}
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(args.lr, step, args.steps)
        found = losses(model, known, args, generator)
        optimiser.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        torch.nn.utils.clip_grad_norm_(learning, 2.0)
        optimiser.step()
        for mean, parameter in zip(average, learning, strict=True):
            mean.lerp_(parameter.detach(), 1 - min(DECAY, (1 + step) / (10 + step)))
        running = {key: 0.95 * running.get(key, value.item()) + 0.05 * value.item() for key, value in found.items()}
        progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()}, refresh=False)
    for mean, parameter in zip(average, learning, strict=True):
        parameter.data.copy_(mean)
    model.requires_grad_(False)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    parser = Parser(prog="accelerate launch -m iqguide.training.fit_bpclip")
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/ and live-challenge/")
    parser.add_argument("--init", type=Path, required=True, help="bpclip-mini.safetensors whose backbone can see")
    parser.add_argument("--out", type=Path, required=True, help="folder for bpclip-mini.safetensors and run.json")
    parser.add_argument("--denoised", type=Path, help="cache made by recipes/demo_generator/denoised.py")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (%(default)s)")
    parser.add_argument("--ladders", type=int, default=24, help="ladders of small crops a step (%(default)s)")
    parser.add_argument("--scored", type=int, default=16, help="human-scored crops a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-4, help="highest learning rate; 1.5e-3 diverges (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of AdamW (%(default)s)")
    parser.add_argument("--slope", type=float, default=1.0, help="ranking margin per unit of severity (%(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="side of the ladder crops, px (%(default)s)")
    parser.add_argument("--large-crop", type=int, default=256, help="side of the large ladder crops, px (%(default)s)")
    parser.add_argument("--small", type=int, default=110, help="photographs with a small crop (%(default)s)")
    parser.add_argument("--large", type=int, default=8, help="photographs with a large crop (%(default)s)")
    parser.add_argument("--scored-crop", type=int, default=288, help="side of the scored crops, px (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parser.parse_within(RANGES, arguments)


def train(args: argparse.Namespace) -> None:
    """Fit with the settings of the flags; writes OUT/bpclip-mini.safetensors, calibrated, and OUT/run.json."""
    torch.manual_seed(args.seed)
    make_folder(args.out)
    model = create_model("bpclip-mini", weights=args.init, device=Accelerator().device)
    fit(model, gather(model, args), args)
    config = FinetuneConfig(data=args.data, out=args.out, crop=args.crop, seed=args.seed)
    model.calibrate_margin(held_out_crops(config).to(model.margin_mean.device).split(32))
    save_model(model, args.out / "bpclip-mini.safetensors")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    record = {"settings": settings, "held_out": measure(model, config), "torch": torch.__version__}
    atomic_write(args.out / "run.json", f"{json.dumps(record, indent=2)}\n".encode())
    tqdm.write(", ".join(f"{key} {value:.3f}" for key, value in record["held_out"].items()))


def main(arguments: list[str] | None = None) -> None:
    """Fit as the command line says."""
    args = parse(arguments)
    with one_sentence():
        train(args)


if __name__ == "__main__":
    main()
