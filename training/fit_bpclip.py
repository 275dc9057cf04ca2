"""Teach a `bpclip-mini` to judge: everything above its backbone, on feature maps that are computed once.

    accelerate launch -m iqguide.training.fit_bpclip --data DATA --init runs/bpclip-mini/bpclip-mini.safetensors \
        --out runs/bpclip-mini

As training/fit_tiny_head.py does for `tiny`: the backbone and the pooling's masks stand still, so the gated maps are
pooled once, and every step sees many ladders and many people's scores at little cost. W_f of equation 2 is linear and
comes after the mask, so it may as well follow the pooling; it is learnt with the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import FOR_PEOPLE, make_folder, one_sentence
from ..images import MIN_SIDE
from ..models.bpclip import BPCLIP
from ..models.create import create_model
from ..models.hub import save_model
from ..models.raw_scale import raw_units
from . import batches, distortions, fitting, objectives
from .batch_dataset import read_predictions
from .batches import Crops
from .calibrate import held_out_crops, measure
from .config import FinetuneConfig
from .data import Photograph
from .fit_tiny_head import RESTORED
from .loop import Diverged
from .options import SEEDS, check_ranges, jsonable, parse_settings
from .parts import Parts, checked_parts
from .run_record import RECORD, listed, only_run, refuse_used, write_record
from .run_settings import WORKING_SIDE
from .schedule import update_ema
from .seen import read_seen, write_seen

DECAY = 0.995
"""Of the running average of the weights, which is the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """One fit of what is above the backbone."""

    RANGES: ClassVar[dict] = {
        **dict.fromkeys(("steps", "ladders", "scored", "small", "large"), (1, math.inf)),
        **dict.fromkeys(("lr", "weight_decay", "slope"), (0, math.inf)),
        **dict.fromkeys(("crop", "large_crop", "scored_crop"), (MIN_SIDE, math.inf)),
        "seed": SEEDS,
    }
    """Lowest and highest value of a setting."""
    FORMER_NAMES: ClassVar[dict] = {"scored": "opinions", "scored_crop": "opinion_crop"}

    data: Annotated[Path, "folder with pristine/ and live-challenge/"]
    init: Annotated[Path, "bpclip-mini.safetensors whose backbone can see"]
    out: Annotated[Path, "folder for bpclip-mini.safetensors and run.json"]
    denoised: Annotated[Path | None, "cache made by recipes/demo_generator/denoised.py"] = None
    steps: Annotated[int, "optimiser steps"] = 1000
    ladders: Annotated[int, "ladders of small crops a step"] = 24
    scored: Annotated[int, "human-scored crops a step"] = 16
    lr: Annotated[float, "highest learning rate; 1.5e-3 diverges"] = 4e-4
    weight_decay: Annotated[float, "of AdamW"] = 0.05
    slope: Annotated[float, "ranking margin per unit of severity"] = 1.0
    crop: Annotated[int, "side of the ladder crops, px"] = 128
    large_crop: Annotated[int, "side of the large ladder crops, px"] = 256
    small: Annotated[int, "photographs with a small crop"] = 110
    large: Annotated[int, "photographs with a large crop"] = 8
    scored_crop: Annotated[int, "side of the scored crops, px"] = 288
    seed: Annotated[int, "of everything random"] = 0
    overwrite: Annotated[bool, "replace the result of a former run in --out"] = False

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)


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
    device, parts = model.margin_mean.device, []
    for part in images.split(batch):
        with torch.autocast(device.type, torch.bfloat16):
            maps = model.maps(part.to(device).contiguous(memory_format=torch.channels_last))
            size = tuple(maps[-1].shape[2:])
            planes = [
                F.adaptive_avg_pool2d(p.mask(x).sigmoid() * x, size) for p, x in zip(model.pools, maps, strict=True)
            ]
        parts.append(torch.cat(planes, 1).half().cpu().contiguous())
    return torch.cat(parts)


def vectors(model: BPCLIP, maps: Tensor) -> Tensor:
    """The levels' vectors (N, levels, text_dim) of pooled maps (N, C, h, w) from `gated`."""
    parts = maps.split([pool.features.in_channels for pool in model.pools], 1)
    return model.read([F.gelu(p.project(p.features(x))) for p, x in zip(model.pools, parts, strict=True)])


def ladder_maps(model: BPCLIP, crops: Tensor, generator: torch.Generator) -> Ladders:
    """Ladders of every kind of crops (N, 3, s, s) in [0, 1]."""
    levels, maps, severities = torch.arange(5.0), [], []
    for kind in tqdm(batches.LADDER_KINDS, desc=f"ladders, {crops.shape[-1]} px"):
        for clean in crops.split(24):
            stack = [distortions.distort(clean, kind, level.expand(len(clean)), generator) for level in levels]
            stack = [clean, *stack, torch.lerp(stack[3], clean, RESTORED)]
            maps.append(torch.stack([gated(model, level) for level in stack], 1))
        cost = batches.severity(kind, levels)
        row = torch.cat([torch.zeros(1), cost, cost[3:4] * (1 - RESTORED)])
        severities.append(row.expand(len(crops), -1))
    return Ladders(torch.cat(maps), torch.cat(severities))


def gather_ladders(
    model: BPCLIP, clean: list[Photograph], args: FitSettings, rng: np.random.Generator
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
    crops, _ = batches.scored_crops(scored, size, rng)
    return torch.cat([gated(model, part.float() / 255) for part in tqdm(crops.split(24), desc="scored")])


def gather(model: BPCLIP, args: FitSettings, parts: Parts) -> Known:
    """Pool the maps of everything that is learnt from."""
    rng = np.random.default_rng(args.seed)
    cache = read_predictions(args.denoised) if args.denoised else None
    clean, scored = parts.clean, parts.learnt
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
    maps, the convolution after it their mean, and the head's first layer both of the cosines. The levels' vectors are
    centred: what all pictures share would else decide where they point, and no word could move.
    """
    for pool, part in zip(model.pools, maps.split([p.features.in_channels for p in model.pools], 1), strict=True):
        std, mean = torch.std_mean(part, (0, 2, 3))
        pool.features.weight.div_((std + 1e-3).view(1, -1, 1, 1))
        pool.project.bias.copy_(-pool.project.weight.flatten(1) @ (pool.features.weight.flatten(1) @ mean))
    raw_vectors = vectors(model, maps)
    std, mean = torch.std_mean(raw_vectors, 0)
    spreads = std.mean(1).clamp_min(1e-3)  # a level may say the same of all pictures
    for level, spread, centre in zip(model.levels, spreads, mean, strict=True):
        level.to_text[-1].weight.div_(spread)
        level.to_text[-1].bias.copy_((level.to_text[-1].bias - centre) / spread)
    first = model.head[0]
    std, mean = torch.std_mean(model.seen((raw_vectors - mean) / spreads[:, None]).flatten(1), 0)
    first.weight.div_(std + 1e-3)
    first.bias.copy_(-first.weight @ mean)


def losses(model: BPCLIP, known: Known, args: FitSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Ranking of ladders, how severe each level is, and people's scores, on one fresh batch."""
    device = model.margin_mean.device

    def raw(maps: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            levels = vectors(model, maps.to(device))
        # as `tiny` counts: a clean photograph is near 0, a ruined one near -4.5
        return raw_units(100 * model.judge(levels))

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


def fit(model: BPCLIP, known: Known, args: FitSettings) -> None:
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
    average = copy.deepcopy(model).requires_grad_(False)
    fitting.fit(
        learning,
        lambda: losses(model, known, args, generator),
        steps=args.steps,
        lr=args.lr,
        weight_decay=args.weight_decay,
        clip=2.0,
        name="bpclip-mini",
        after=lambda step: update_ema(average, model, step, DECAY),
    )
    model.load_state_dict(average.state_dict())
    model.requires_grad_(False)


def parse(arguments: list[str] | None = None) -> FitSettings:
    """The settings on the command line."""
    return parse_settings(FitSettings, "fit_bpclip", arguments)


def train(args: FitSettings) -> None:
    """Fit with the settings; writes OUT/bpclip-mini.safetensors, calibrated, and OUT/run.json."""
    path = make_folder(args.out) / "bpclip-mini.safetensors"
    if not args.overwrite:
        refuse_used(args.out, (path.name, RECORD), "replace it with --overwrite")
    torch.manual_seed(args.seed)
    model = create_model("bpclip-mini", weights=args.init, device=Accelerator().device)
    parts = checked_parts(FinetuneConfig(data=args.data))
    fit(model, gather(model, args, parts), args)
    crops = held_out_crops(parts.clean_held_out, args.crop, args.seed)
    model.calibrate_margin(crops.to(model.margin_mean.device).split(32))
    save_model(model, path)
    write_seen(path, [p.path for p in (*parts.learnt, *parts.clean)], read_seen("bpclip-mini", args.init))
    sizes = {"size": WORKING_SIDE, "crop": args.crop, "seed": args.seed}
    figures = measure(model, parts.held_out, parts.clean_held_out, **sizes)
    write_record(args.out / RECORD, settings=jsonable(args), held_out=figures)
    tqdm.write(listed(figures))


def main(arguments: list[str] | None = None) -> None:
    """Fit as the command line says."""
    args = parse(arguments)
    with one_sentence((*FOR_PEOPLE, Diverged)), only_run(args.out):
        train(args)


if __name__ == "__main__":
    main()
