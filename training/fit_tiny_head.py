"""Fit the head of a trained `tiny` anew on statistics computed once: whole pictures, and far more ladders.

    accelerate launch -m iqguide.training.fit_tiny_head --data DATA --init runs/tiny/tiny.safetensors --out runs/fitted

A step of fine-tuning sees a few crops; the head is small enough to see all of them at every step once the convolutions
stand still. Whole human-scored pictures replace crops, so the scores learn from what they will be asked about. Ladders
begin at crops of the clean photographs and, much reduced, of the good human-scored ones: more photographs help on new
pictures. Every ladder has one more level, a degraded crop brought a little back to the clean one, so the head keeps
rising along the way back. A trained `bpclip-mini` can give a second score: it learnt from the same scored pictures
with other eyes, so the two err differently. The head is then fitted once more, to what lies halfway between them on
thousands of crops. In a fit nothing is random but dropout and the order.
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
from ..models.tiny import Tiny
from . import batches, distortions, objectives
from .batch_dataset import checked_parts, read_predictions
from .batches import Crops
from .calibrate import calibrate, measure
from .config import FinetuneConfig
from .data import Photograph, good_photographs, random_crop, read, to_tensor
from .distill import learning_rate
from .options import SEEDS, Parser

RESTORED = 0.02
"""How much of the way back to the clean crop the last level goes: so little that it tells the slope."""
RESTORED_FROM = 4
"""From which level it goes; level 0 is the clean crop."""


WEIGHTS = ("mos_weight", "step_weight", "back_weight", "prediction_weight", "second_weight")
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "batch", "each", "large", "each_second"), (1, math.inf)),
    **dict.fromkeys(("lr", "slope", "each_good", *WEIGHTS), (0, math.inf)),
    **dict.fromkeys(("crop", "large_crop", "second_crop"), (MIN_SIDE, math.inf)),
    "dropout": (0, 0.99),
    "seed": SEEDS,
}
"""Lowest and highest value of a flag."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the head sees and is to say."""

    ladders: Tensor
    """(P, 7, D): clean, five levels, and level `RESTORED_FROM` a little restored."""
    severities: Tensor
    """(P, 6), without the last level."""
    scored: Tensor
    """(N, D), of whole pictures."""
    labels: Tensor
    """(N,), raw units."""
    predictions: Tensor
    """(M, 2, D): of denoised predictions of clean pictures and of their degraded twins; none without a cache."""
    costs: Tensor
    """(M, 2): severities of these."""
    crops: Tensor
    """(K, D), of crops of all photographs, nothing done to them; none without a second score."""
    second_scores: Tensor
    """(K,), what is said of these crops, raw units."""


@torch.no_grad()
def pooled(model: Tiny, images: Tensor, batch: int = 24) -> Tensor:
    """`model.pooled` of images (N, 3, H, W) in [0, 1], (N, D) on the CPU; float32, as half would hide small changes."""
    device = model.margin_mean.device
    parts = (part.to(device).contiguous(memory_format=torch.channels_last) for part in images.split(batch))
    return torch.cat([model.pooled(part).cpu() for part in parts])


def ladder_statistics(
    model: Tiny, crops: Tensor, kinds: tuple[str, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Statistics and severities of ladders of every kind of crops (N, 3, s, s); see `Statistics`."""
    levels, found, severities = torch.arange(5.0), [], []
    for kind in tqdm(kinds, desc=f"ladders, {crops.shape[-1]} px"):
        for clean in crops.split(32):
            stack = [
                clean,
                *(distortions.distort(clean, kind, level.expand(len(clean)), generator) for level in levels),
            ]
            stack.append(torch.lerp(stack[RESTORED_FROM], clean, RESTORED))
            found.append(torch.stack([pooled(model, level) for level in stack], 1))
        row = torch.cat([torch.zeros(1), batches.severity(kind, levels)])
        severities.append(row.expand(len(crops), -1))
    return torch.cat(found), torch.cat(severities)


def whole_pictures(model: Tiny, photographs: list[Photograph]) -> Tensor:
    """Statistics (N, D) of pictures of any size."""
    rows = [
        pooled(model, to_tensor(read(p.path))[None].float() / 255) for p in tqdm(photographs, desc="scored pictures")
    ]
    return torch.cat(rows)


def prediction_statistics(model: Tiny, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Statistics and severities of a cache of denoised predictions; see `Statistics`."""
    pairs = [
        pooled(model, found[key].float() / 255) for key in tqdm(("clean", "degraded"), desc="denoised predictions")
    ]
    return torch.stack(pairs, 1), torch.stack([torch.zeros_like(found["severity"]), found["severity"]], 1)


def reduced_crops(photographs: list[Photograph], size: int, each: int, rng: np.random.Generator) -> Tensor:
    """Crops (N, 3, size, size) uint8 of photographs at half their size or less, clean if these are good.

    A photograph too small for that is reduced by less.
    """
    pictures = (read(photograph.path) for photograph in tqdm(photographs, desc="reduced crops"))
    crops = (random_crop(picture, size, rng, most=4.0, least=2.0) for picture in pictures for _ in range(each))
    return torch.stack([to_tensor(crop) for crop in crops])


def gather_ladders(
    model: Tiny, clean: list[Photograph], good: list[Photograph], args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Statistics and severities of ladders; see `Statistics`.

    Args:
        model: its convolutions are used.
        clean: photographs, of which small and large crops are taken.
        good: photographs that are clean when they are reduced.
        args: settings on the command line.
    """
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    few = [clean[n] for n in rng.permutation(len(clean))[: args.large]]
    crops = [Crops(clean, args.crop, args.each, rng).images, Crops(few, args.large_crop, 1, rng).images]
    crops += [reduced_crops(good, args.crop, args.each_good, rng)] if good and args.each_good else []
    parts = [ladder_statistics(model, part.float() / 255, batches.LADDER_KINDS, generator) for part in crops]
    ladders, severities = (torch.cat(values) for values in zip(*parts, strict=True))
    return ladders, severities


@torch.no_grad()
def second_scores(
    model: Tiny, other: BPCLIP, photographs: list[Photograph], args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Statistics (K, D) of crops of photographs, and the scores (K,) that another model gives them."""
    rng, device = np.random.default_rng(args.seed), model.margin_mean.device
    statistics, scores = [], []
    for photograph in tqdm(photographs, desc="second scores"):
        picture = read(photograph.path)
        crops = [to_tensor(random_crop(picture, args.second_crop, rng, most=2.0)) for _ in range(args.each_second)]
        crops = torch.stack(crops).float() / 255
        statistics.append(pooled(model, crops))
        scores.append(other.margin(crops.to(device)).cpu())
    return torch.cat(statistics), torch.cat(scores)


def gather(model: Tiny, args: argparse.Namespace) -> Statistics:
    """Everything the head learns from, from the training part of the data."""
    cache = read_predictions(args.denoised) if args.denoised else None
    device = model.margin_mean.device
    other = create_model("bpclip-mini", weights=args.second_opinion, device=device) if args.second_opinion else None
    clean, scored, _ = checked_parts(FinetuneConfig(data=args.data))
    ladders, severities = gather_ladders(model, clean, good_photographs(scored), args)
    labels = torch.tensor([batches.raw_units(p.mos) for p in scored], dtype=torch.float32)
    predictions, costs = prediction_statistics(model, cache) if cache else (ladders[:0, :2], labels[:0])
    second = second_scores(model, other, [*scored, *clean], args) if other else (ladders[:0, 0], labels[:0])
    return Statistics(ladders, severities, whole_pictures(model, scored), labels, predictions, costs, *second)


def next_level(scores: Tensor) -> Tensor:
    """Every level is clearly below the one before it, however little the two differ; of scores (P, L)."""
    return F.softplus((0.3 + scores.diff(dim=1)) / 0.2).mean()


def way_back(scores: Tensor, severities: Tensor) -> Tensor:
    """The head's slope on the way from a degraded crop to the clean one is at least what the degradation had cost.

    Args:
        scores: (P, 7), see `Statistics.ladders`.
        severities: (P, 6).
    """
    slope = (scores[:, -1] - scores[:, RESTORED_FROM]) / RESTORED
    return F.softplus(severities[:, RESTORED_FROM] - slope).mean()


def halfway(own: Tensor, other: Tensor) -> Tensor:
    """Between two scores (K,), when the other has been given the mean and the spread of the own one."""
    return (own + own.mean() + (other - other.mean()) * (own.std() / other.std())) / 2


def agreement(guesses: Tensor, labels: Tensor) -> Tensor:
    """Scores (N,) are the labels (N,), and in their order."""
    return F.smooth_l1_loss(guesses, labels) + objectives.correlation(guesses, labels)


def fit(model: Tiny, known: Statistics, args: argparse.Namespace, device: torch.device) -> None:
    """Fit a fresh head in place; the rest of the model stays."""
    known = Statistics(*(value.to(device) for value in vars(known).values()))
    typical = torch.cat([known.ladders.flatten(0, 1), known.scored, known.predictions.flatten(0, 1)])
    std, mean = torch.std_mean(typical, 0)
    model.pooled_mean.copy_(mean)
    model.pooled_std.copy_(std + 1e-3)
    for layer in (model.head[0], model.head[2]):
        layer.reset_parameters()
    model.head.requires_grad_(True)

    def head(statistics: Tensor) -> Tensor:
        """(R, L, D) -> (R, L); what is dropped out is the same along a row, or neighbours would differ by it."""
        hidden = model.head[1](model.head[0](statistics))
        return model.head[2](hidden * F.dropout(torch.ones_like(hidden[:, :1]), args.dropout)).squeeze(2)

    ladders, scored, predictions, crops = (
        (x - model.pooled_mean) / model.pooled_std
        for x in (known.ladders, known.scored, known.predictions, known.crops)
    )
    optimiser = torch.optim.AdamW(model.head.parameters(), args.lr, weight_decay=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    progress = tqdm(range(args.steps), desc="head")
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(args.lr, step, args.steps)
        rows = torch.randint(len(ladders), (args.batch,), generator=generator)
        picks = torch.randint(len(scored), (128,), generator=generator)
        scores, severities = head(ladders[rows]), known.severities[rows]
        guesses, labels = head(scored[picks][:, None]).squeeze(1), known.labels[picks]
        ladder_scores = scores[:, :-1]
        ranking = objectives.ladder_ranking(ladder_scores, severities, args.slope) + 0.1 * F.smooth_l1_loss(
            ladder_scores, -severities
        )
        mos = agreement(guesses, labels)
        steps = next_level(ladder_scores)
        back = way_back(scores, severities)
        loss = ranking + args.mos_weight * mos + args.back_weight * back + args.step_weight * steps
        if len(predictions):
            rows = torch.randint(len(predictions), (args.batch,), generator=generator)
            order = objectives.ladder_ranking(head(predictions[rows]), known.costs[rows])
            loss = loss + args.prediction_weight * order
        if len(crops):
            rows = torch.randint(len(crops), (args.batch,), generator=generator)
            second = agreement(head(crops[rows][:, None]).squeeze(1), known.second_scores[rows])
            loss = loss + args.second_weight * second
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            progress.set_postfix(ranking=f"{ranking.item():.3f}", back=f"{back.item():.3f}", mos=f"{mos.item():.3f}")
    model.eval().requires_grad_(False)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings on the command line."""
    parser = Parser(prog="accelerate launch -m iqguide.training.fit_tiny_head")
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/ and live-challenge/")
    parser.add_argument("--init", type=Path, required=True, help="safetensors file whose head is to be fitted anew")
    parser.add_argument("--out", type=Path, required=True, help="folder for tiny.safetensors and run.json")
    parser.add_argument("--denoised", type=Path, help="cache made by recipes/demo_generator/denoised.py")
    parser.add_argument(
        "--second-opinion", type=Path, help="file of a bpclip-mini from the same part of the data, for a second score"
    )
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="ladders a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.3, help="of the hidden layer (%(default)s)")
    parser.add_argument("--slope", type=float, default=1.0, help="ranking margin per unit of severity (%(default)s)")
    parser.add_argument("--mos-weight", type=float, default=1.0, help="of people's scores (%(default)s)")
    parser.add_argument("--step-weight", type=float, default=1.0, help="of the order of neighbours (%(default)s)")
    parser.add_argument("--back-weight", type=float, default=0.3, help="of the way back to the clean (%(default)s)")
    parser.add_argument("--prediction-weight", type=float, default=0.3, help="of denoised predictions (%(default)s)")
    parser.add_argument("--second-weight", type=float, default=0.6, help="of the second score (%(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="side of the ladder crops, px (%(default)s)")
    parser.add_argument("--each", type=int, default=4, help="crops per photograph (%(default)s)")
    parser.add_argument("--each-good", type=int, default=1, help="crops per good scored one; 0 for none (%(default)s)")
    parser.add_argument("--large-crop", type=int, default=384, help="side of the large ladder crops, px (%(default)s)")
    parser.add_argument("--large", type=int, default=40, help="photographs with a large crop (%(default)s)")
    parser.add_argument("--second-crop", type=int, default=224, help="side of the second's crops, px (%(default)s)")
    parser.add_argument("--each-second", type=int, default=5, help="these crops per photograph (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parser.parse_within(RANGES, arguments)


def fit_tiny_head(args: argparse.Namespace) -> None:
    """Refit with the settings of the flags; writes OUT/tiny.safetensors, calibrated, and OUT/run.json."""
    torch.manual_seed(args.seed)
    make_folder(args.out)
    device = Accelerator().device
    model = Tiny().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    model.load_state_dict(create_model("tiny", weights=args.init).state_dict())
    known = gather(model, args)
    fit(model, dataclasses.replace(known, crops=known.crops[:0]), args, device)
    if len(known.crops):
        with torch.no_grad():
            own = model.judge(known.crops.to(device)).cpu()
        fit(model, dataclasses.replace(known, second_scores=halfway(own, known.second_scores)), args, device)
    config = FinetuneConfig(data=args.data, out=args.out, crop=args.crop, seed=args.seed)
    calibrate(model, config)
    save_model(model, args.out / "tiny.safetensors")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    record = {"settings": settings, "held_out": measure(model, config), "torch": torch.__version__}
    atomic_write(args.out / "run.json", f"{json.dumps(record, indent=2)}\n".encode())
    tqdm.write(", ".join(f"{key} {value:.3f}" for key, value in record["held_out"].items()))


def main(arguments: list[str] | None = None) -> None:
    """Refit as the command line says."""
    args = parse(arguments)
    with one_sentence():
        fit_tiny_head(args)


if __name__ == "__main__":
    main()
