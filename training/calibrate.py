"""Put a trained model on its scales, and measure it on pictures that it never trained on."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from ..images import resize_short_side
from ..models.tiny import Tiny
from . import batches, distortions
from .batches import Crops
from .crops import to_tensor
from .data import Photograph, read_with_reference

FLATTEST = 1e-3
"""Smallest scale of a score, per unit of margin."""

MOST_CROPS = 512
"""Held-out crops are in memory all at once; of more photographs than give so many, every second, third ... is taken."""


def held_out_crops(photographs: list[Photograph], size: int, seed: int, each: int = 4) -> Tensor:
    """At most `MOST_CROPS` crops of clean photographs that are never trained on, (N, 3, size, size) in [0, 1]."""
    photographs = photographs[:: math.ceil(len(photographs) * each / MOST_CROPS)]
    return Crops(photographs, size, each, np.random.default_rng(seed)).images.float() / 255


@torch.no_grad()
def margins_of_whole_pictures(
    model: nn.Module, photographs: list[Photograph], size: int = 0, desc: str = "whole pictures"
) -> np.ndarray:
    """Margins (N,) of pictures of any size, in float32, as `model(images)` sees them without autocast.

    Args:
        model: with a `margin`.
        photographs: those that have a reference are compared with it.
        size: larger pictures are reduced to this short side in px first; 0 for never.
        desc: for the progress bar.
    """
    device, margins = model.margin_mean.device, []
    for photograph in tqdm(photographs, desc=desc, unit="picture", delay=1):
        pictures = [to_tensor(picture)[None].to(device) / 255 for picture in read_with_reference(photograph)]
        if size:
            pictures = [resize_short_side(picture, size, enlarge=False) for picture in pictures]
        pictures = [picture.contiguous(memory_format=torch.channels_last) for picture in pictures]
        with torch.autocast(device.type, enabled=False):
            margins.append(model.margin(*pictures).item())
    return np.array(margins)


def agreement(model: nn.Module, photographs: list[Photograph], size: int = 0) -> dict[str, float]:
    """`srcc` and `plcc` of the margins of whole pictures with people's scores; see `margins_of_whole_pictures`.

    Both are NaN for a model that says the same of every picture.
    """
    margins, mos = margins_of_whole_pictures(model, photographs, size), [p.mos for p in photographs]
    if np.ptp(margins) == 0:
        return {"srcc": math.nan, "plcc": math.nan}
    return {"srcc": float(spearmanr(margins, mos)[0]), "plcc": float(pearsonr(margins, mos)[0])}


def fit_logistic(margins: np.ndarray, opinions: np.ndarray) -> tuple[float, float]:
    """Scale and shift with which sigmoid(scale * margin + shift) comes nearest to opinions in [0, 1], by least squares.

    The scale is never below FLATTEST, so the score keeps the order of the margin: a model that ranks against people
    gives about the same score to every picture, their mean opinion.
    """
    (scale, shift), _ = curve_fit(_logistic, margins, opinions, p0=(0.5, 0.5), maxfev=10000)
    if scale < FLATTEST:
        mean = np.mean(opinions)
        return FLATTEST, float(np.log(mean / (1 - mean)) - FLATTEST * np.mean(margins))
    return float(scale), float(shift)


def _logistic(x: np.ndarray, a: float, b: float) -> np.ndarray:
    return 1 / (1 + np.exp(-a * x - b))


@torch.no_grad()
def fit_score(model: Tiny, photographs: list[Photograph]) -> None:
    """Set the scale of the model's score, in place: a logistic fit of MOS / 100 of pictures it has learnt from."""
    margins, mos = margins_of_whole_pictures(model, photographs), np.array([p.mos for p in photographs])
    scale, shift = fit_logistic(margins, mos / 100)
    model.score_scale.fill_(scale)
    model.score_shift.fill_(shift)


@torch.no_grad()
def measure(
    model: nn.Module,
    scored: list[Photograph],
    clean: list[Photograph],
    *,
    size: int,
    crop: int,
    seed: int,
    full_reference: bool = False,
) -> dict[str, float]:
    """How good a model is on pictures that it never trained on, in float32.

    Args:
        model: with a `margin`.
        scored: held-out pictures with people's scores; none for no `srcc` and `plcc`.
        clean: held-out clean photographs; none for no ladders.
        size: short side to which scored pictures are reduced, px; 0 for never.
        crop: side of the crops of the ladders, px.
        seed: of the crops and of the noise in the degradations.
        full_reference: whether the model compares with a reference.

    Returns:
        `srcc`, `plcc`: rank and linear correlation of the margin with MOS over the scored pictures.
        `ladders`, `worst_ladder`: share of the steps from one level to the next, of all ladders and of the worst one,
        at which the margin falls, over crops of the clean photographs; the first step is from the clean crop.
    """
    figures = agreement(model, scored, size) if scored else {}
    if clean:
        figures |= ladder_steps(model, held_out_crops(clean, crop, seed, 1), seed, full_reference)
    return figures


@torch.no_grad()
def ladder_steps(model: nn.Module, crops: Tensor, seed: int, full_reference: bool = False) -> dict[str, float]:
    """`ladders` and `worst_ladder`, as in `measure`, over clean crops (N, 3, s, s), which are the references too."""
    generator, falls = torch.Generator().manual_seed(seed), []
    device = model.margin_mean.device
    reference = [crops.to(device)] if full_reference else []
    for kind in tqdm(batches.LADDER_KINDS, desc="held-out ladders", delay=1):
        levels = [crops] + [
            distortions.distort(crops, kind, torch.full((len(crops),), float(level)), generator) for level in range(5)
        ]
        scores = torch.stack([model.margin(x.to(device), *reference) for x in levels])
        falls.append((scores.diff(dim=0) < 0).float().mean().item())
    return {"ladders": float(np.mean(falls)), "worst_ladder": float(np.min(falls))}
