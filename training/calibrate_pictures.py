"""Put a model on its scales and measure it, with the photographs of a training in memory; see `pictures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from .calibrate import fit_logistic
from .kinds import Kind
from .ladder_cache import LadderCache
from .pictures import SETS, Pictures, crops

CLEAN_CROP, EACH = 256, 4
MOST = 30
"""Photographs of which `falling_live` makes ladders."""


@torch.no_grad()
def margins(model: nn.Module, pictures: Pictures, rows: np.ndarray, bf16: bool = False) -> np.ndarray:
    """Margins (N,) of whole pictures at their own size, several at a time where the sizes are equal."""
    values = np.empty(len(rows))
    shapes = [tuple(pictures.images[row].shape) for row in rows]
    for shape in set(shapes):
        alike = [n for n, other in enumerate(shapes) if other == shape]
        for start in range(0, len(alike), 8):
            part = alike[start : start + 8]
            batch = torch.stack([pictures.images[rows[n]] for n in part]).float() / 255
            values[part] = _margin(model, batch, bf16).cpu().numpy()
    return values


def _margin(model: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return model.margin(images.contiguous(memory_format=torch.channels_last)).float()


@torch.no_grad()
def calibrate(model: nn.Module, pictures: Pictures, bf16: bool = False) -> None:
    """Set the model's scales, in place.

    Margin: mean 0 and standard deviation 1 over crops of held-out clean photographs. Score: a logistic fit of MOS / 100
    on the training part of live-challenge.
    """
    model.margin_mean.zero_()
    model.margin_std.fill_(1)
    rng, rows = np.random.default_rng(0), pictures.clean(kept=False)
    raw = [_margin(model, crops(pictures, rows, CLEAN_CROP, 1.5, rng), bf16) for _ in range(EACH)]
    std, mean = torch.std_mean(torch.cat(raw))
    model.margin_mean.copy_(mean)
    model.margin_std.copy_(std)
    rows = pictures.scored(0)
    x, y = margins(model, pictures, rows, bf16), pictures.opinion[rows] / 100
    scale, shift = fit_logistic(x, y)
    model.score_scale.fill_(scale)
    model.score_shift.fill_(shift)


def measure(model: nn.Module, pictures: Pictures, bf16: bool = False) -> dict[str, float]:
    """Rank correlation of the margin with people's scores over the held-out part of each set."""
    figures = {}
    for origin, name in enumerate(SETS):
        rows = pictures.scored(origin, kept=False)
        correlation = spearmanr(margins(model, pictures, rows, bf16), pictures.opinion[rows])
        figures[f"srcc {name}"] = float(correlation.statistic)
    return figures


@torch.no_grad()
def falling(model: nn.Module, cache: LadderCache, bf16: bool = False, batch: int = 16) -> dict[str, float]:
    """Share of a cache's steps at which the margin falls, by group; the first step is from the clean crop."""
    device, scores = model.margin_mean.device, []
    for part in cache.images.split(batch):
        images = part.to(device).float() / 255
        scores.append(_margin(model, images.flatten(0, 1), bf16).view(part.shape[:2]).cpu())
    fell = (torch.cat(scores).diff(dim=1) < 0).float().mean(1).numpy()
    groups = np.array(cache.groups)
    return {str(group): float(fell[groups == group].mean()) for group in np.unique(groups)}


@torch.no_grad()
def falling_live(
    model: nn.Module, pictures: Pictures, kinds: Sequence[Kind], bf16: bool = False, size: int = CLEAN_CROP
) -> dict[str, float]:
    """`falling` by kind, over crops of the held-out clean photographs that are degraded at whole levels."""
    rng, generator, shares = np.random.default_rng(0), torch.Generator().manual_seed(0), {}
    clean = crops(pictures, pictures.clean(kept=False)[:MOST], size, 1.0, rng)
    for kind in kinds:
        scores = [_margin(model, clean, bf16)]
        for level in range(5):
            degraded = kind.degrade(clean, torch.full((len(clean),), float(level)), generator)
            scores.append(_margin(model, degraded, bf16))
        severity = torch.cat([torch.zeros(1), kind.severity(torch.arange(5.0))])
        fell = torch.stack(scores).diff(dim=0) < 0
        shares[kind.name] = fell[severity.diff() > 1e-6].float().mean().item()
    return shares
