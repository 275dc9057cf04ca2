"""A trust region from statistics of photographs: a reward that pays only where these stay what photographs have.

The statistics are simple: mean luma, the energy of the finest octaves of luma and of both colour differences, and how
sparse those of the luma are. `python benchmarks/attack.py` shows what such a region is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from iqguide.training import distortions

OCTAVES = 3
USUAL = 0.9
"""Share of the photographs that lie inside."""


def statistics(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], sides of 32 px or more -> (N, 11), differentiable."""
    red, green, blue = images.unbind(1)
    luma = distortions.luma(images)[:, 0]
    planes = torch.stack([luma, red - green, (red + green) / 2 - blue], 1)
    binomial = torch.tensor([0.25, 0.5, 0.25]).to(images)
    kernel = (binomial[:, None] * binomial).expand(3, 1, 3, 3)
    columns = [luma.mean((1, 2))[:, None]]
    for octave in range(OCTAVES):
        low = F.conv2d(F.pad(planes, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
        band = planes - low
        energy = (band.square().mean((2, 3)) + 1e-6).log()
        columns.append(energy if octave < OCTAVES - 1 else energy[:, :1])  # colour has little at a coarse one
        size = ((band[:, :1].square() + 1e-8).sqrt().mean((2, 3)) + 1e-4).log()
        columns.append(size - energy[:, :1] / 2)  # mean over RMS: low where little of the picture has edges
        planes = low[..., ::2, ::2]
    return torch.cat(columns, 1)


def mahalanobis(values: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Distance of statistics (N, D) from their mean over the root of D, (N,): about 1 for photographs."""
    away = values - mean
    return ((away @ precision * away).sum(1) / len(mean) + 1e-6).sqrt()


@dataclass(frozen=True)
class NaturalRange:
    """A Gaussian of the statistics of photographs, and how far from its middle they usually lie."""

    mean: Tensor
    """(11,)"""
    precision: Tensor
    """(11, 11), inverse of the covariance."""
    radius: float
    """The distance that the share USUAL of the photographs stays below."""

    def distance(self, images: Tensor) -> Tensor:
        """See `mahalanobis`."""
        return mahalanobis(statistics(images), self.mean, self.precision)

    def outside(self, images: Tensor) -> Tensor:
        """How far outside the range, (N,); 0 inside."""
        return F.relu(self.distance(images) - self.radius)


def fit(photographs: Tensor) -> NaturalRange:
    """The range of photographs (N, 3, H, W) in [0, 1]."""
    values = statistics(photographs)
    mean = values.mean(0)
    precision = torch.linalg.inv(torch.cov(values.T) + 1e-4 * torch.eye(values.shape[1]))
    return NaturalRange(mean, precision, mahalanobis(values, mean, precision).quantile(USUAL).item())


def kept_inside(margin: Callable[[Tensor], Tensor], region: NaturalRange, weight: float) -> Callable[[Tensor], Tensor]:
    """The reward `margin` minus `weight` times how far the pictures are outside."""
    return lambda images: margin(images) - weight * region.outside(images)
