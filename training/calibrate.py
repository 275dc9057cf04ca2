"""Put a trained model on its scales, and measure it on pictures that it never trained on."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from ..images import resize_short_side
from ..models.tiny import Tiny
from . import batches, distortions
from .batches import Crops
from .config import FinetuneConfig
from .data import Photograph, clean_photographs, read_with_reference, scored_parts, split, to_tensor

MOST_CROPS = 512
"""Held-out crops are in memory all at once; of more photographs than give so many, every second, third ... is taken."""


def uses_clean(config: FinetuneConfig) -> bool:
    """Whether a run ends on clean photographs: `calibrate` and `measure` read those that are held out."""
    return config.model == "tiny" or config.clean is not None or (config.data / "pristine").is_dir()


def uses_scores(config: FinetuneConfig) -> bool:
    """Whether a run ends on scored pictures: `calibrate` and `measure` read them whole."""
    own = not config.full_reference and (config.data / "live-challenge").is_dir()  # which has no references
    return config.model == "tiny" or bool(config.dataset) or own


def held_out_crops(config: FinetuneConfig, each: int = 4) -> Tensor:
    """At most `MOST_CROPS` crops of the clean photographs that are never trained on, (N, 3, crop, crop) in [0, 1]."""
    photographs = split(clean_photographs(config.data, config.clean))[1]
    photographs = photographs[:: math.ceil(len(photographs) * each / MOST_CROPS)]
    return Crops(photographs, config.crop, each, np.random.default_rng(config.seed)).images.float() / 255


@torch.no_grad()
def margins_of_whole_pictures(model: nn.Module, photographs: list[Photograph], size: int = 0) -> np.ndarray:
    """Margins (N,) of pictures of any size, larger ones reduced to a short side of `size` px first; 0 for never.

    Those that have a reference are compared with it.
    """
    device, margins = model.margin_mean.device, []
    for photograph in photographs:
        given = [to_tensor(picture)[None].to(device) / 255 for picture in read_with_reference(photograph)]
        if size:
            given = [resize_short_side(picture, size, enlarge=False) for picture in given]
        with torch.autocast(device.type, torch.bfloat16):
            margin = model.margin(*(picture.contiguous(memory_format=torch.channels_last) for picture in given))
        margins.append(margin.item())
    return np.array(margins)


def agreement(model: nn.Module, photographs: list[Photograph], size: int = 0) -> dict[str, float]:
    """`srcc` and `plcc` of the margins of whole pictures with people's scores; see `margins_of_whole_pictures`."""
    margins, mos = margins_of_whole_pictures(model, photographs, size), [p.mos for p in photographs]
    return {"srcc": float(spearmanr(margins, mos)[0]), "plcc": float(pearsonr(margins, mos)[0])}


@torch.no_grad()
def calibrate(model: Tiny, config: FinetuneConfig) -> None:
    """Set the model's scales, in place.

    Margin: mean 0 and standard deviation 1 over crops of held-out clean photographs. Score: a logistic fit of
    MOS / 100 on the training part of the scored photographs.
    """
    model.margin_mean.zero_()
    model.margin_std.fill_(1)
    crops = held_out_crops(config).to(model.margin_mean.device)
    raw = torch.cat([model.raw(x) for x in crops.split(32)])
    model.margin_mean.copy_(raw.mean())
    model.margin_std.copy_(raw.std())
    photographs = scored_parts(config.data, config.dataset, config.root)[0]
    margins, mos = margins_of_whole_pictures(model, photographs), np.array([p.mos for p in photographs])
    (scale, shift), _ = curve_fit(lambda x, a, b: 1 / (1 + np.exp(-a * x - b)), margins, mos / 100, p0=(0.5, 0.5))
    model.score_scale.fill_(float(scale))
    model.score_shift.fill_(float(shift))


@torch.no_grad()
def measure(model: nn.Module, config: FinetuneConfig) -> dict[str, float]:
    """How good a model is on pictures that it never trained on.

    Returns:
        `srcc`, `plcc`: rank and linear correlation of the margin with MOS over the held-out scored photographs.
        `ladders`, `worst_ladder`: share of the steps from one level to the next, of all ladders and of the worst one,
        at which the margin falls, over crops of the held-out clean photographs; the first step is from the clean crop.
        What the data has no pictures for is left out.
    """
    figures = {}
    if uses_scores(config):
        held_out = scored_parts(config.data, config.dataset, config.root, full_reference=config.full_reference)[2]
        figures |= agreement(model, held_out, config.validation_size)
    if uses_clean(config):
        figures |= ladder_steps(model, held_out_crops(config, 1), config.seed, config.full_reference)
    return figures


@torch.no_grad()
def ladder_steps(model: nn.Module, crops: Tensor, seed: int, full_reference: bool = False) -> dict[str, float]:
    """`ladders` and `worst_ladder`, as in `measure`, over clean crops (N, 3, s, s), which are the references too."""
    generator, falls = torch.Generator().manual_seed(seed), []
    device = model.margin_mean.device
    reference = [crops.to(device)] if full_reference else []
    for kind in batches.LADDER_KINDS:
        levels = [crops] + [
            distortions.distort(crops, kind, torch.full((len(crops),), float(level)), generator) for level in range(5)
        ]
        scores = torch.stack([model.margin(x.to(device), *reference) for x in levels])
        falls.append((scores.diff(dim=0) < 0).float().mean().item())
    return {"ladders": float(np.mean(falls)), "worst_ladder": float(np.min(falls))}
