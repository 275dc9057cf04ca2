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

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import FOR_PEOPLE, make_folder, one_sentence
from ..models.bpclip import BPCLIP
from ..models.create import create_model
from ..models.hub import save_model
from ..models.raw_scale import raw_units
from ..models.tiny import Tiny
from . import batches, distortions, fitting, objectives
from .batch_dataset import read_predictions
from .batches import Crops
from .calibrate import fit_score, held_out_crops, measure
from .config import FinetuneConfig
from .crops import random_crop, read, to_tensor
from .data import Photograph, good_photographs
from .head_settings import HeadSettings
from .loop import Diverged
from .options import jsonable, parse_settings
from .parts import Parts, checked_parts
from .run_record import RECORD, listed, only_run, refuse_used, write_record
from .run_settings import WORKING_SIDE
from .seen import read_seen, write_seen

RESTORED = 0.02
"""How much of the way back to the clean crop the last level goes: so little that it tells the slope."""
RESTORED_FROM = 4
"""From which level it goes; level 0 is the clean crop."""


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
    levels, statistics, severities = torch.arange(5.0), [], []
    for kind in tqdm(kinds, desc=f"ladders, {crops.shape[-1]} px"):
        for clean in crops.split(32):
            stack = [
                clean,
                *(distortions.distort(clean, kind, level.expand(len(clean)), generator) for level in levels),
            ]
            stack.append(torch.lerp(stack[RESTORED_FROM], clean, RESTORED))
            statistics.append(torch.stack([pooled(model, level) for level in stack], 1))
        row = torch.cat([torch.zeros(1), batches.severity(kind, levels)])
        severities.append(row.expand(len(crops), -1))
    return torch.cat(statistics), torch.cat(severities)


def whole_pictures(model: Tiny, photographs: list[Photograph]) -> Tensor:
    """Statistics (N, D) of pictures of any size."""
    rows = [
        pooled(model, to_tensor(read(p.path))[None].float() / 255) for p in tqdm(photographs, desc="scored pictures")
    ]
    return torch.cat(rows)


def prediction_statistics(model: Tiny, cache: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Statistics and severities of a cache of denoised predictions; see `Statistics`."""
    pairs = [
        pooled(model, cache[key].float() / 255) for key in tqdm(("clean", "degraded"), desc="denoised predictions")
    ]
    return torch.stack(pairs, 1), torch.stack([torch.zeros_like(cache["severity"]), cache["severity"]], 1)


def reduced_crops(photographs: list[Photograph], size: int, each: int, rng: np.random.Generator) -> Tensor:
    """Crops (N, 3, size, size) uint8 of photographs at half their size or less, clean if these are good.

    A photograph too small for that is reduced by less.
    """
    pictures = (read(photograph.path) for photograph in tqdm(photographs, desc="reduced crops"))
    crops = (random_crop(picture, size, rng, most=4.0, least=2.0) for picture in pictures for _ in range(each))
    return torch.stack([to_tensor(crop) for crop in crops])


def gather_ladders(
    model: Tiny, clean: list[Photograph], good: list[Photograph], args: HeadSettings
) -> tuple[Tensor, Tensor]:
    """Statistics and severities of ladders; see `Statistics`.

    Args:
        model: its convolutions are used.
        clean: photographs, of which small and large crops are taken.
        good: photographs that are clean when they are reduced.
        args: settings.
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
    model: Tiny, other: BPCLIP, photographs: list[Photograph], args: HeadSettings
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


def gather(model: Tiny, args: HeadSettings, parts: Parts) -> Statistics:
    """Everything the head learns from, from the training part of the data."""
    cache = read_predictions(args.denoised) if args.denoised else None
    device = model.margin_mean.device
    other = create_model("bpclip-mini", weights=args.second_opinion, device=device) if args.second_opinion else None
    clean, scored = parts.clean, parts.learnt
    ladders, severities = gather_ladders(model, clean, good_photographs(scored), args)
    labels = torch.tensor([raw_units(p.mos) for p in scored], dtype=torch.float32)
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


def fit(model: Tiny, known: Statistics, args: HeadSettings, device: torch.device) -> None:
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
    generator = torch.Generator().manual_seed(args.seed)

    def losses() -> dict[str, Tensor]:
        rows = torch.randint(len(ladders), (args.batch,), generator=generator)
        picks = torch.randint(len(scored), (128,), generator=generator)
        scores, severities = head(ladders[rows]), known.severities[rows]
        guesses, labels = head(scored[picks][:, None]).squeeze(1), known.labels[picks]
        levels = scores[:, :-1]
        parts = {
            "ranking": objectives.ladder_ranking(levels, severities, args.slope),
            "severity": 0.1 * F.smooth_l1_loss(levels, -severities),
            "mos": args.mos_weight * agreement(guesses, labels),
            "back": args.back_weight * way_back(scores, severities),
            "steps": args.step_weight * next_level(levels),
        }
        if len(predictions):
            rows = torch.randint(len(predictions), (args.batch,), generator=generator)
            order = objectives.ladder_ranking(head(predictions[rows]), known.costs[rows])
            parts["predictions"] = args.prediction_weight * order
        if len(crops):
            rows = torch.randint(len(crops), (args.batch,), generator=generator)
            second = agreement(head(crops[rows][:, None]).squeeze(1), known.second_scores[rows])
            parts["second"] = args.second_weight * second
        return parts

    fitting.fit(
        model.head.parameters(), losses, steps=args.steps, lr=args.lr, weight_decay=0.1, betas=(0.9, 0.999), name="head"
    )
    model.eval().requires_grad_(False)


def parse(arguments: list[str] | None = None) -> HeadSettings:
    """The settings on the command line."""
    return parse_settings(HeadSettings, "fit_tiny_head", arguments)


def fit_tiny_head(args: HeadSettings) -> None:
    """Fit with the settings; writes OUT/tiny.safetensors, calibrated, and OUT/run.json."""
    make_folder(args.out)
    if not args.overwrite:
        refuse_used(args.out, ("tiny.safetensors", RECORD), "replace it with --overwrite")
    torch.manual_seed(args.seed)
    device = Accelerator().device
    model = Tiny().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    model.load_state_dict(create_model("tiny", weights=args.init).state_dict())
    parts = checked_parts(FinetuneConfig(data=args.data))
    known = gather(model, args, parts)
    fit(model, dataclasses.replace(known, crops=known.crops[:0]), args, device)
    if len(known.crops):
        with torch.no_grad():
            own = model.judge(known.crops.to(device)).cpu()
        fit(model, dataclasses.replace(known, second_scores=halfway(own, known.second_scores)), args, device)
    model.calibrate_margin(held_out_crops(parts.clean_held_out, args.crop, args.seed).to(device).split(32))
    fit_score(model, parts.learnt)
    path = args.out / "tiny.safetensors"
    save_model(model, path)
    write_seen(path, [p.path for p in (*parts.learnt, *parts.clean)], read_seen("tiny", args.init))
    sizes = {"size": WORKING_SIDE, "crop": args.crop, "seed": args.seed}
    figures = measure(model, parts.held_out, parts.clean_held_out, **sizes)
    write_record(args.out / RECORD, settings=jsonable(args), held_out=figures)
    tqdm.write(listed(figures))


def main(arguments: list[str] | None = None) -> None:
    """Fit as the command line says."""
    args = parse(arguments)
    with one_sentence((*FOR_PEOPLE, Diverged)), only_run(args.out):
        fit_tiny_head(args)


if __name__ == "__main__":
    main()
