"""What is wrong with generated pictures, as ladders: enlargement, smoothing, checkerboards, seams, burnt colour, ...

Every function takes images (N, 3, H, W) in [0, 1], one strength per image (N,) on the CPU and a CPU generator, treats
each image as if it were alone and returns the same shape, dtype and device, as in `distortions`. `LADDERS` has five
strengths of each, from barely visible to severe; they are ours, by eye. The damage of autoencoders is in
`autoencoders`, that of unfinished sampling comes from caches that recipes/demo_generator/faults.py writes.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .distortions import Distortion, column, contrast, filter_separable, gaussian_blur, luma, normal_like, saturation

# --- enlargement ---


def lanczos_matrix(before: int, after: int) -> Tensor:
    """Weights (after, before), rows of sum 1, of a Lanczos-3 enlargement in one direction, edges replicated."""
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * before / after - 0.5
    taps = places.floor()[:, None] + torch.arange(-2, 4)
    distance = places[:, None] - taps
    weights = torch.special.sinc(distance) * torch.special.sinc(distance / 3) * (distance.abs() < 3)
    matrix = torch.zeros(after, before, dtype=torch.float64)
    matrix.scatter_add_(1, taps.long().clamp(0, before - 1), weights / weights.sum(1, keepdim=True))
    return matrix.float()


def enlarge(images: Tensor, factor: Tensor, generator: torch.Generator | None = None, *, mode: str) -> Tensor:
    """Reduce to 1 / factor of the size, free of aliasing, and enlarge again: nearest, bilinear, bicubic or lanczos."""
    h, w = images.shape[-2:]
    out = []
    for image, f in zip(images, factor.tolist(), strict=True):
        size = (max(2, round(h / f)), max(2, round(w / f)))
        small = F.interpolate(image[None], size, mode="bicubic", antialias=True)
        if mode == "lanczos":
            rows, columns = (lanczos_matrix(a, b).to(images) for a, b in zip(size, (h, w), strict=True))
            out.append(rows @ small @ columns.T)
        else:
            out.append(F.interpolate(small, (h, w), mode="nearest-exact" if mode == "nearest" else mode))
    return torch.cat(out).clamp(0, 1)


# --- smoothing: detail is gone, edges stay ---


def _windows(images: Tensor, radius: int) -> Tensor:
    """The square neighbourhood of every pixel, (N, 3, (2 radius + 1) ** 2, H, W), edges replicated."""
    n, c, h, w = images.shape
    padded = F.pad(images, [radius] * 4, mode="replicate")
    return F.unfold(padded, 2 * radius + 1).view(n, c, -1, h, w)


def median(images: Tensor, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """3x3 median filter, several times; between whole numbers of times a mixture of the neighbours."""
    steps = [images]
    for _ in range(math.ceil(float(times.max()))):
        steps.append(_windows(steps[-1], 1).median(2).values)
    low = times.floor().clamp(max=len(steps) - 1).long().tolist()
    pairs = [(steps[k][n], steps[min(k + 1, len(steps) - 1)][n]) for n, k in enumerate(low)]
    before, after = (torch.stack(side) for side in zip(*pairs, strict=True))
    return torch.lerp(before, after, column(times - times.floor(), images))


def bilateral(images: Tensor, tolerance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Bilateral filter of 7x7 pixels, twice; tolerance is the standard deviation of the values that count as alike."""
    y, x = torch.meshgrid(*[torch.arange(-3.0, 4)] * 2, indexing="ij")
    near = torch.exp(-(x**2 + y**2) / (2 * 2.0**2)).flatten().to(images).view(1, -1, 1, 1)
    out = images
    for _ in range(2):
        around = _windows(out, 3)
        difference = (around - out.unsqueeze(2)).square().sum(1)
        weight = near * torch.exp(-difference / (2 * 3 * column(tolerance, images) ** 2))
        out = (around * weight.unsqueeze(1)).sum(2) / weight.sum(1, keepdim=True)
    return out


def non_local_means(images: Tensor, tolerance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Non-local means, 5x5 patches in a window of 11x11; tolerance is the difference of patches that count as alike.

    Source: Buades et al. (2005), "A non-local algorithm for image denoising", with differences of luma.
    """
    reach, grey = 5, luma(images)
    padded, padded_grey = (F.pad(x, [reach] * 4, mode="replicate") for x in (images, grey))
    h, w = images.shape[-2:]
    total, weights = torch.zeros_like(images), torch.zeros_like(grey)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            moved, moved_grey = (x[..., dy : dy + h, dx : dx + w] for x in (padded, padded_grey))
            difference = F.avg_pool2d(F.pad((moved_grey - grey).square(), [2] * 4, mode="replicate"), 5, 1)
            weight = torch.exp(-difference / column(tolerance, images) ** 2)
            total, weights = total + weight * moved, weights + weight
    return total / weights


def kuwahara(images: Tensor, mixture: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Painterly: of the four 5x5 squares with a corner at the pixel the mean of the evenest one, mixed in; up to twice.

    Source: Kuwahara et al. (1976). Mixture 1 is the filter once, 2 the filter of the filter.
    """
    steps, size = [images], 5
    h, w = images.shape[-2:]
    for _ in range(2):
        padded = F.pad(steps[-1], [size - 1] * 4, mode="replicate")
        mean = F.avg_pool2d(padded, size, 1)
        spread = F.avg_pool2d(luma(padded).square(), size, 1) - luma(mean).square()
        corners = [(y, x) for y in (0, size - 1) for x in (0, size - 1)]
        means = torch.stack([mean[..., y : y + h, x : x + w] for y, x in corners])
        best = torch.stack([spread[..., y : y + h, x : x + w] for y, x in corners]).argmin(0, keepdim=True)
        steps.append(means.gather(0, best.expand(1, *images.shape))[0])
    mixture = column(mixture, images)
    return torch.lerp(torch.lerp(steps[0], steps[1], mixture.clamp(max=1)), steps[2], (mixture - 1).clamp(min=0))


# --- texture that was never there ---


def gain_pattern(images: Tensor, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Checkerboard of transposed convolutions: a random factor and offset for each place in cells of 2, 4 or 8 px."""
    n, _, h, w = images.shape
    out = []
    for image, period in zip(images, torch.randint(1, 4, (n,), generator=generator).tolist(), strict=True):
        cell = normal_like(images, generator, (2, 1, 2**period, 2**period))
        cell = (cell - cell.mean((2, 3), keepdim=True)) / (cell.std((2, 3), keepdim=True) + 1e-6)
        factor, offset = cell.repeat(1, 1, -(-h // 2**period), -(-w // 2**period))[..., :h, :w]
        out.append(torch.stack([image * factor, 0.3 * offset.expand_as(image)]).sum(0))
    return (images + column(strength, images) * torch.stack(out)).clamp(0, 1)


def ringing(images: Tensor, cutoff: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An ideal low-pass filter, cut after 10 px: echoes along edges; cutoff in shares of the highest frequency."""
    offsets = torch.arange(-10.0, 11)
    kernels = torch.special.sinc(offsets * cutoff.float()[:, None])
    return filter_separable(images, kernels / kernels.sum(1, keepdim=True)).clamp(0, 1)


def blotches(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Coloured noise with the grain of latents: smooth blobs of 4 to 8 px."""
    n, _, h, w = images.shape
    out = []
    for grain in torch.randint(4, 9, (n,), generator=generator).tolist():
        coarse = normal_like(images, generator, (1, 3, h // grain + 1, w // grain + 1))
        out.append(F.interpolate(coarse, (h, w), mode="bicubic")[0])
    return (images + column(std, images) * torch.stack(out)).clamp(0, 1)


def melt(images: Tensor, reach: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Structures out of shape: a smooth random displacement, changing over 12 px; reach is its deviation in px."""
    n, _, h, w = images.shape
    coarse = normal_like(images, generator, (n, 2, h // 12 + 2, w // 12 + 2))
    field = F.interpolate(coarse, (h, w), mode="bicubic") * column(reach, images)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    moved = torch.stack([x, y]).to(images) + field
    grid = (2 * moved.permute(0, 2, 3, 1) + 1) / images.new_tensor([w, h]) - 1
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# --- colour ---


def burn(images: Tensor, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Too much classifier-free guidance: contrast and saturation so high that both clip."""
    return saturation(contrast(images, 1 + strength), 1 + 1.5 * strength)


# --- laid over ---


def seams(images: Tensor, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Tiles of 48 to 96 px that do not fit: each has its own brightness, tint and sharpness."""
    n, _, h, w = images.shape
    soft = gaussian_blur(images, torch.full((n,), 1.5))
    tiles = torch.randint(48, 97, (n,), generator=generator).tolist()
    out = []
    for image, blurred, tile, s in zip(images, soft, tiles, strength.tolist(), strict=True):
        counts = (-(-h // tile), -(-w // tile))
        draws = normal_like(images, generator, (1, 4, *counts))
        draws = draws.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[0, :, :h, :w]
        mixed = torch.lerp(image, blurred, (draws[3:] * 6 * s).clamp(0, 1))
        out.append(mixed + s * (draws[:3] * 0.4 + draws[:1] * 0.8))
    return torch.stack(out).clamp(0, 1)


def watermark(images: Tensor, opacity: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rows of random white signs, as of stock photographs, over the whole picture."""
    n, _, h, w = images.shape
    out = []
    for image, cell in zip(images, torch.randint(2, 5, (n,), generator=generator).tolist(), strict=True):
        signs = (torch.rand(1, 1, -(-h // cell), -(-w // cell), generator=generator) < 0.5).float()
        rows, columns = torch.arange(signs.shape[2])[:, None], torch.arange(signs.shape[3])
        signs = signs * (((rows % 20) < 5) & ((columns + 11 * (rows // 20)) % 6 < 4))
        mask = F.interpolate(signs.to(images), scale_factor=cell, mode="nearest")[0, :, :h, :w]
        out.append(mask.expand_as(image))
    return torch.lerp(images, torch.ones_like(images), torch.stack(out) * column(opacity, images))


# group -> name -> (function, five strengths from weak to severe)
GROUPS: dict[str, dict[str, tuple[Distortion, tuple[float, ...]]]] = {
    "enlargement": {
        f"enlarge_{mode}": (partial(enlarge, mode=mode), factors)
        for mode, factors in {
            "nearest": (1.4, 2, 2.5, 3, 4),
            "bilinear": (1.5, 2, 3, 4, 5),
            "bicubic": (1.5, 2, 3, 4, 5),
            "lanczos": (1.6, 2.2, 3, 4, 5),
        }.items()
    },
    "smoothing": {
        "median": (median, (1, 2, 4, 7, 12)),
        "bilateral": (bilateral, (0.03, 0.06, 0.1, 0.16, 0.25)),
        "non_local_means": (non_local_means, (0.02, 0.04, 0.07, 0.12, 0.2)),
        "kuwahara": (kuwahara, (0.3, 0.6, 1, 1.5, 2)),
    },
    "texture": {
        "gain_pattern": (gain_pattern, (0.015, 0.03, 0.055, 0.1, 0.17)),
        "ringing": (ringing, (0.75, 0.55, 0.4, 0.3, 0.2)),
        "blotches": (blotches, (0.015, 0.03, 0.05, 0.08, 0.13)),
        "melt": (melt, (0.6, 1.1, 2, 3.5, 6)),
    },
    "colour": {"burn": (burn, (0.35, 0.6, 0.9, 1.4, 2.1))},
    "overlay": {
        "seams": (seams, (0.015, 0.03, 0.055, 0.09, 0.15)),
        "watermark": (watermark, (0.08, 0.15, 0.25, 0.4, 0.6)),
    },
}

LADDERS = {name: ladder for group in GROUPS.values() for name, ladder in group.items()}
