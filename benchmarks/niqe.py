"""A natural-scene-statistics judge of the NIQE kind: how far the statistics of a picture are from clean photographs'.

    python benchmarks/niqe.py --data DIR    # fit on clean photographs, save, report how often it orders held-out pairs

It knows no degradation, no score and no network: locally normalised luminances of sharp photographs follow generalised
Gaussians, and a multivariate Gaussian is fitted on their parameters.

Source:
    Mittal, Soundararajan, Bovik (2013), "Making a 'Completely Blind' Image Quality Analyzer", IEEE Signal Processing
    Letters 20(3). The AGGD estimator: Lasmar, Stitou, Berthoumieu (2009). Differs from the paper in: patches of
    32 pixels every 16 instead of 96 every 96, because the pictures have 128 pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from degradations import KINDS, degrade
from photographs import clean_crops, split, to_tensor
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights" / "niqe.safetensors"
REPORT = HERE / "results" / "niqe.json"
PATCH, STRIDE = 32, 16
SHARPNESS = 0.75  # share of the sharpest patch's deviation that a patch needs to take part in the fit

_SHAPES = torch.arange(0.2, 10, 0.001, dtype=torch.float64)
_GENERALISED_RATIO = torch.exp(2 * torch.lgamma(2 / _SHAPES) - torch.lgamma(1 / _SHAPES) - torch.lgamma(3 / _SHAPES))


def fit_ggd(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and standard deviation of a zero-mean generalised Gaussian, by moments; samples (..., n)."""
    deviation = samples.square().mean(-1).sqrt()
    ratio = samples.abs().mean(-1).square() / deviation.square().clamp_min(1e-12)
    return _shape(ratio), deviation


def fit_aggd(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right standard deviation of an asymmetric generalised Gaussian with mode 0; samples (..., n)."""
    left, right = (
        ((samples.square() * side).sum(-1) / side.sum(-1).clamp_min(1)).sqrt() for side in (samples < 0, samples > 0)
    )
    gamma = left / right.clamp_min(1e-6)
    ratio = samples.abs().mean(-1).square() / samples.square().mean(-1).clamp_min(1e-12)
    return _shape(ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2), left, right


def _shape(ratio: Tensor) -> Tensor:
    """The generalised Gaussian's shape whose (E|x|)^2 / E[x^2] is `ratio` (the ratio rises with the shape)."""
    table = _GENERALISED_RATIO.to(ratio)
    return _SHAPES.to(ratio)[torch.searchsorted(table, ratio.contiguous()).clamp_max(len(table) - 1)]


def normalised(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-subtracted contrast-normalised coefficients and local deviation of luma (N, 1, H, W) in [0, 255]."""
    offsets = torch.arange(-3, 4, dtype=luma.dtype)
    window = torch.exp(-0.5 * (offsets / (7 / 6)) ** 2)
    window = window / window.sum()

    def smooth(x: Tensor) -> Tensor:
        x = F.pad(x, (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(x, window.view(1, 1, 1, 7)), window.view(1, 1, 7, 1))

    mean = smooth(luma)
    deviation = (smooth(luma.square()) - mean.square()).clamp_min(0).sqrt()
    return (luma - mean) / (deviation + 1), deviation


def _patches(maps: Tensor, size: int, stride: int) -> Tensor:
    """(N, 1, H, W) -> (N, P, size, size)."""
    return maps[:, 0].unfold(1, size, stride).unfold(2, size, stride).flatten(1, 2)


def _statistics(patches: Tensor) -> Tensor:
    """The 18 features of coefficient patches (N, P, s, s) -> (N, P, 18)."""
    shape, deviation = fit_ggd(patches.flatten(2))
    features = [shape, deviation]
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):  # the product with the neighbour, inside the patch
        shape, left, right = fit_aggd((patches * patches.roll((dy, dx), (2, 3))).flatten(2))
        scale = torch.exp(torch.lgamma(2 / shape) - 0.5 * (torch.lgamma(1 / shape) + torch.lgamma(3 / shape)))
        features += [shape, (right - left) * scale, left, right]
    return torch.stack(features, -1)


def features(images: Tensor, patch: int = PATCH, stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """Features of every patch at two scales and its sharpness.

    Args:
        images: (N, 3, H, W) in [0, 1], sides of at least `patch` pixels.

    Returns:
        features (N, P, 36) and mean local deviation (N, P), float64.
    """
    luma = (images.double() * torch.tensor([0.299, 0.587, 0.114]).double().view(1, 3, 1, 1)).sum(1, keepdim=True) * 255
    coefficients, deviation = normalised(luma)
    sharpness = _patches(deviation, patch, stride).mean((2, 3))
    h, w = luma.shape[-2:]
    half = F.interpolate(luma, (h // 2, w // 2), mode="bicubic", antialias=True)
    scales = [_statistics(_patches(coefficients, patch, stride))]
    scales.append(_statistics(_patches(normalised(half)[0], patch // 2, stride // 2)))
    count = min(s.shape[1] for s in scales)
    return torch.cat([s[:, :count] for s in scales], -1), sharpness[:, :count]


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., d) and covariance (..., d, d) of samples (..., n, d)."""
    mean = samples.mean(-2)
    centred = samples - mean.unsqueeze(-2)
    return mean, centred.mT @ centred / (samples.shape[-2] - 1)


def fit(images: Tensor, batch: int = 64) -> dict[str, Tensor]:
    """Multivariate Gaussian of the sharp patches of clean images (N, 3, H, W)."""
    kept = []
    for chunk in tqdm(images.split(batch), desc="features", leave=False):
        values, sharpness = features(chunk)
        kept.append(values[sharpness > SHARPNESS * sharpness.amax(1, keepdim=True)])
    mean, covariance = moments(torch.cat(kept))
    return {"mean": mean, "covariance": covariance}


class NaturalStatistics:
    """Judge: images (N, 3, H, W) in [0, 1] -> (N,) float32, minus the NIQE-like distance (0: like clean ones)."""

    name = "natural statistics"

    def __init__(self, weights: dict[str, Tensor] | None = None) -> None:
        weights = load_file(WEIGHTS) if weights is None else weights
        self.mean, self.covariance = weights["mean"].double(), weights["covariance"].double()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        mean, covariance = moments(features(images)[0])
        difference = (self.mean - mean).unsqueeze(-1)
        inverse = torch.linalg.pinv((self.covariance + covariance) / 2, hermitian=True)
        return -(difference.mT @ inverse @ difference)[:, 0, 0].clamp_min(0).sqrt().float()


def report(judge: NaturalStatistics, images: Tensor) -> dict[str, float]:
    """Share of clean images that the judge puts above their degraded twin, by kind and strength."""
    rng = np.random.default_rng(0)
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    clean = judge(images)
    return {
        f"{kind} {strength}": float(
            (judge(to_tensor([degrade(p, kind, strength, rng) for p in pixels])) < clean).float().mean()
        )
        for kind in tqdm(KINDS, desc="held-out", leave=False)
        for strength in (0.3, 0.6, 0.9)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pristine/")
    parser.add_argument("--report", action="store_true", help="do not fit")
    args = parser.parse_args()
    fit_on, held_out = split(args.data)
    if not args.report:
        save_file(fit(clean_crops(fit_on, 8, seed=0, scales=False)), WEIGHTS)
    judge = NaturalStatistics()
    result = {
        size: report(judge, clean_crops(held_out, 2, seed=1, scales=size == "resampled"))
        for size in ("native", "resampled")
    }
    REPORT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
