"""Put a trained model on its scales, and measure it on pictures that it never trained on."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from ..models.tiny import Tiny
from . import batches, distortions
from .batches import Crops
from .config import FinetuneConfig
from .data import clean_photographs, read, scored_photographs, split, to_tensor


def held_out_crops(config: FinetuneConfig, each: int = 4) -> Tensor:
    """Crops of the clean photographs that are never trained on, (N, 3, crop, crop) in [0, 1]."""
    photographs = split(clean_photographs(config.data))[1]
    return Crops(photographs, config.crop, each, np.random.default_rng(config.seed)).images.float() / 255


@torch.no_grad()
def opinions_of_whole_pictures(model: Tiny, config: FinetuneConfig, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins and MOS of the scored photographs of one part of the split (0 training, 1 held out)."""
    photographs = split(scored_photographs(config.data))[part]
    device, margins = model.margin_mean.device, []
    for photograph in photographs:
        picture = (to_tensor(read(photograph.path))[None].to(device) / 255).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast(device.type, torch.bfloat16):
            margins.append(model.margin(picture).item())
    return np.array(margins), np.array([p.mos for p in photographs])


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
    margins, mos = opinions_of_whole_pictures(model, config, 0)
    (scale, shift), _ = curve_fit(lambda x, a, b: 1 / (1 + np.exp(-a * x - b)), margins, mos / 100, p0=(0.5, 0.5))
    model.score_scale.fill_(float(scale))
    model.score_shift.fill_(float(shift))


@torch.no_grad()
def measure(model: Tiny, config: FinetuneConfig) -> dict[str, float]:
    """How good the model is on pictures that it never trained on.

    Returns:
        `srcc`, `plcc`: rank and linear correlation of the margin with MOS over the held-out scored photographs.
        `ladders`, `worst_ladder`: share of the steps from one level to the next, of all ladders and of the worst one,
        at which the margin falls, over crops of the held-out clean photographs; the first step is from the clean crop.
    """
    margins, mos = opinions_of_whole_pictures(model, config, 1)
    figures = {"srcc": spearmanr(margins, mos)[0], "plcc": pearsonr(margins, mos)[0]}
    crops, falls = held_out_crops(config, 1), []
    generator = torch.Generator().manual_seed(config.seed)
    for kind in batches.LADDER_KINDS:
        levels = [crops] + [
            distortions.distort(crops, kind, torch.full((len(crops),), float(level)), generator) for level in range(5)
        ]
        scores = torch.stack([model.margin(x.to(model.margin_mean.device)) for x in levels])
        falls.append((scores.diff(dim=0) < 0).float().mean().item())
    figures["ladders"] = float(np.mean(falls))
    figures["worst_ladder"] = float(np.min(falls))
    return {key: float(value) for key, value in figures.items()}
