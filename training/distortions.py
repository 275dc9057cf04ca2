"""Synthetic degradations of photographs, vectorised over a batch, with a strength per image.

Every function takes images (N, 3, H, W) in [0, 1], one parameter per image (N,) and a CPU generator, never works in
place, and returns images in [0, 1] of the same shape, dtype and device. Each image is treated as if it were alone.
Randomness comes from the generator that is handed in (torch's global one if it is None). Nothing here is meant to be
differentiated.

`LADDERS` lists five levels for each, from barely visible to severe; the parameters follow the KADID-10k / ARNIQA table
(https://github.com/miccunifi/ARNIQA, utils/utils_data.py at f60c0f2) where it is monotone and its first level does
something, and are ours otherwise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG uses


def column(values: Tensor, images: Tensor) -> Tensor:
    """One value per image, (N,) -> (N, 1, 1, 1) as images are."""
    return values.to(images).view(-1, 1, 1, 1)


def normal_like(images: Tensor, generator: torch.Generator | None, size: tuple[int, ...] | None = None) -> Tensor:
    """Standard normal values, drawn on the CPU and moved to the images; as large as they are unless `size` is given."""
    return torch.randn(size or images.shape, generator=generator).to(images)


def luma(images: Tensor) -> Tensor:
    """BT.601 luma, (N, 3, H, W) -> (N, 1, H, W)."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def filter_2d(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve image n with kernels[n] (N, k, k), edges replicated."""
    n, c, h, w = images.shape
    k = kernels.shape[-1]
    padded = F.pad(images, [k // 2] * 4, mode="replicate").reshape(1, n * c, h + k - 1, w + k - 1)
    weight = kernels.to(images).repeat_interleave(c, 0).unsqueeze(1)
    return F.conv2d(padded, weight, groups=n * c).view(n, c, h, w)


def filter_separable(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve image n with the outer product of kernels[n] (N, k) with itself, edges replicated."""
    n, c, h, w = images.shape
    k = kernels.shape[-1]
    weight = kernels.to(images).repeat_interleave(c, 0)
    flat = F.pad(images, [k // 2] * 4, mode="replicate").reshape(1, n * c, h + k - 1, w + k - 1)
    flat = F.conv2d(flat, weight.view(n * c, 1, 1, k), groups=n * c)
    return F.conv2d(flat, weight.view(n * c, 1, k, 1), groups=n * c).view(n, c, h, w)


def gaussian_kernels(sigma: Tensor, radius: Tensor) -> Tensor:
    """One Gaussian per row, (N, k) with sum 1: sigma (N,) in pixels, zero past radius (N,), whole pixels."""
    sigma, radius = sigma.float().clamp_min(1e-3)[:, None], radius[:, None]
    offsets = torch.arange(-int(radius.max()), int(radius.max()) + 1, device=sigma.device)
    kernels = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= radius)
    return kernels / kernels.sum(1, keepdim=True)


def gaussian_blur(images: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian blur; sigma in pixels, the kernel cut at three sigma."""
    return filter_separable(images, gaussian_kernels(sigma, (3 * sigma.float().clamp_min(1e-3)).ceil()))


def lens_blur(images: Tensor, radius: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur with an evenly lit disk, as out of focus; radius in pixels."""
    reach = max(1, math.ceil(float(radius.max())))
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float32)] * 2, indexing="ij")
    disks = (radius.float()[:, None, None] + 0.5 - torch.hypot(x, y)).clamp(0, 1)
    return filter_2d(images, disks / disks.sum((1, 2), keepdim=True))


def motion_blur(images: Tensor, length: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur along a line of random direction; length in pixels."""
    angle = torch.rand(len(images), generator=generator) * math.pi
    reach = max(1, math.ceil(float(length.max()) / 2))
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float32)] * 2, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = (x * cos + y * sin).abs(), (y * cos - x * sin).abs()
    lines = (length.float()[:, None, None] / 2 + 0.5 - along).clamp(0, 1) * (1 - across).clamp(0, 1)
    return filter_2d(images, lines / lines.sum((1, 2), keepdim=True))


def white_noise(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent Gaussian noise on every channel; std of values in [0, 1], before clipping."""
    return (images + column(std, images) * normal_like(images, generator)).clamp(0, 1)


def grain(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Luminance noise with a grain of about two pixels, like film or a demosaiced sensor; std as in `white_noise`."""
    n, _, h, w = images.shape
    coarse = F.interpolate(normal_like(images, generator, (n, 1, h // 2 + 1, w // 2 + 1)), (h, w), mode="bicubic")
    coarse = coarse / coarse.std((1, 2, 3), keepdim=True)
    return (images + column(std, images) * coarse).clamp(0, 1)


def multiplicative_noise(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Speckle: noise in proportion to the signal; std relative to it."""
    return (images * (1 + column(std, images) * normal_like(images, generator))).clamp(0, 1)


def impulse_noise(images: Tensor, share: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Salt and pepper on the given share of the values, in [0, 1]."""
    draw = torch.rand(images.shape, generator=generator).to(images)
    share = column(share, images)
    salted = torch.where(draw < share / 2, torch.zeros_like(images), images)
    return torch.where(draw > 1 - share / 2, torch.ones_like(images), salted)


def _dct_matrix() -> Tensor:
    k, n = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


_LUMA_TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).float()  # fmt: skip
_CHROMA_TABLE = torch.full((8, 8), 99.0)
_CHROMA_TABLE[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]).float()
RGB_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def _code_blocks(plane: Tensor, table: Tensor) -> Tensor:
    """Quantise the 8x8 DCT of planes (N, H, W), H and W multiples of 8, with step tables (N, 8, 8)."""
    n, h, w = plane.shape
    dct = _dct_matrix().to(plane)
    blocks = plane.view(n, h // 8, 8, w // 8, 8).transpose(2, 3)
    step = table.view(n, 1, 1, 8, 8)
    coded = torch.round(dct @ blocks @ dct.T / step) * step
    return (dct.T @ coded @ dct).transpose(2, 3).reshape(n, h, w)


def jpeg(images: Tensor, quality: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """What baseline JPEG loses: 4:2:0, the tables of ITU-T T.81 annex K, quality 1 to 100 as libjpeg scales it.

    Without the rounding to whole numbers between the stages; the entropy coding that follows loses nothing.
    """
    n, _, h, w = images.shape
    padded = F.pad(images, [0, -w % 16, 0, -h % 16], mode="replicate")  # whole blocks, of the halved chroma too
    ycc = torch.einsum("ij,njhw->nihw", RGB_TO_YCC.to(images), padded * 255)
    quality = quality.float().clamp(1, 100)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50).view(-1, 1, 1)
    tables = [(t.to(scale) * scale).round().clamp(1, 255).to(images) for t in (_LUMA_TABLE, _CHROMA_TABLE)]
    y = _code_blocks(ycc[:, 0] - 128, tables[0]) + 128
    chroma = F.avg_pool2d(ycc[:, 1:], 2)
    coded = torch.stack([_code_blocks(plane, tables[1]) for plane in chroma.unbind(1)], 1)
    coded = F.interpolate(coded, scale_factor=2, mode="bilinear")
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(RGB_TO_YCC).to(images), torch.cat([y[:, None], coded], 1))
    return (rgb[..., :h, :w] / 255).clamp(0, 1)


def jpeg2000(images: Tensor, rate: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """JPEG 2000 through Pillow at the given compression rate (uncompressed size over file size)."""
    return code_jpeg2000(images, rate, irreversible=True)


def code_jpeg2000(images: Tensor, rate: Tensor, **options: Any) -> Tensor:
    """`jpeg2000` with further options of Pillow's encoder."""
    coded = []
    for image, r in zip(images, rate.tolist(), strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG2000", quality_mode="rates", quality_layers=[r], **options)
        coded.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255)
    return torch.stack(coded).to(images)


def pixelate(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Reduce to 1 / factor of the size and enlarge again with square pixels."""
    h, w = images.shape[-2:]
    out = []
    for image, f in zip(images, factor.tolist(), strict=True):
        small = F.interpolate(image[None], (max(1, round(h / f)), max(1, round(w / f))), mode="area")
        out.append(F.interpolate(small, (h, w), mode="nearest-exact"))  # "nearest" would shift the picture as well
    return torch.cat(out)


def enlarge(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Reduce to 1 / factor of the size and enlarge again with a bicubic kernel, like a thumbnail blown up."""
    h, w = images.shape[-2:]
    out = []
    for image, f in zip(images, factor.tolist(), strict=True):
        small = F.interpolate(image[None], (max(2, round(h / f)), max(2, round(w / f))), mode="bicubic", antialias=True)
        out.append(F.interpolate(small, (h, w), mode="bicubic"))
    return torch.cat(out).clamp(0, 1)


def quantize(images: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round every channel to the given number of evenly spaced values; fractional numbers of values are allowed."""
    steps = column(levels, images) - 1
    return ((images * steps).round() / steps).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Scale chroma around luma: 0 is grey, 1 nothing, above 1 garish."""
    grey = luma(images)
    return (grey + column(factor, images) * (images - grey)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Scale around the image's mean luma: below 1 flat, above 1 harsh."""
    mean = luma(images).mean((1, 2, 3), keepdim=True)
    return (mean + column(factor, images) * (images - mean)).clamp(0, 1)


def gamma(images: Tensor, exponent: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Tone curve x ** exponent: above 1 darkens, below 1 brightens."""
    return images.clamp_min(1e-4) ** column(exponent, images)


def sharpen(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Unsharp masking with a radius of 1.5 pixels on luma, which leaves halos."""
    grey = luma(images)
    blurred = gaussian_blur(grey, torch.full((len(images),), 1.5))
    return (images + column(amount, images) * (grey - blurred)).clamp(0, 1)


def color_shift(images: Tensor, shift: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Move the green channel by about `shift` whole pixels in a random direction; what leaves comes in opposite."""
    angle = torch.rand(len(images), generator=generator) * 2 * math.pi
    out = images.clone()
    for n, (s, a) in enumerate(zip(shift.tolist(), angle.tolist(), strict=True)):
        out[n, 1] = torch.roll(images[n, 1], (round(s * math.sin(a)), round(s * math.cos(a))), (0, 1))
    return out


Distortion = Callable[..., Tensor]

# name -> (function, five strengths from weak to severe)
LADDERS: dict[str, tuple[Distortion, tuple[float, ...]]] = {
    "gaussian_blur": (gaussian_blur, (0.6, 1.0, 1.6, 2.5, 4.0)),
    "lens_blur": (lens_blur, (1, 2, 3, 5, 7)),
    "motion_blur": (motion_blur, (3, 5, 8, 12, 18)),
    "white_noise": (white_noise, (0.02, 0.04, 0.07, 0.11, 0.17)),
    "grain": (grain, (0.02, 0.04, 0.06, 0.09, 0.13)),
    "multiplicative_noise": (multiplicative_noise, (0.05, 0.1, 0.17, 0.27, 0.4)),
    "impulse_noise": (impulse_noise, (0.003, 0.008, 0.02, 0.05, 0.1)),
    "jpeg": (jpeg, (43, 26, 16, 9, 5)),
    "jpeg2000": (jpeg2000, (16, 32, 64, 120, 200)),
    "pixelate": (pixelate, (2, 2.5, 3, 4, 6)),
    "enlarge": (enlarge, (1.5, 2, 3, 4, 6)),
    "quantize": (quantize, (20, 13, 9, 6, 4)),
    "desaturate": (saturation, (0.75, 0.55, 0.35, 0.2, 0.0)),
    "oversaturate": (saturation, (1.4, 1.8, 2.4, 3.2, 4.5)),
    "flatten_contrast": (contrast, (0.8, 0.65, 0.5, 0.36, 0.24)),
    "harsh_contrast": (contrast, (1.3, 1.6, 2.1, 2.8, 4.0)),
    "darken": (gamma, (1.4, 1.9, 2.6, 3.5, 5.0)),
    "brighten": (gamma, (0.72, 0.54, 0.4, 0.29, 0.2)),
    "sharpen": (sharpen, (1, 2, 3.5, 6, 10)),
    "color_shift": (color_shift, (1, 2, 3, 5, 8)),
}


Ladder = tuple[Distortion, tuple[float, ...]]


def degrade(ladder: Ladder, images: Tensor, level: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Degrade images by a ladder of any table; arguments as `distort`."""
    function, strengths = ladder
    values = torch.tensor(strengths, dtype=torch.float32, device=level.device)
    low = level.floor().clamp(0, 3).long()
    strength = torch.lerp(values[low], values[low + 1], (level - low).float())  # linear between the five
    return function(images, strength, generator).clamp(0, 1)


def distort(images: Tensor, name: str, level: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Degrade images by one ladder.

    Args:
        images: (N, 3, H, W) in [0, 1]; not changed.
        name: one of `LADDERS`.
        level: (N,) in [0, 4], whole numbers being the ladder's five strengths.
        generator: CPU generator of everything random; None for torch's global one.

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: if `name` is not a ladder.
    """
    if name not in LADDERS:
        raise ValueError(f"unknown distortion {name!r}; expected one of: {', '.join(LADDERS)}.")
    return degrade(LADDERS[name], images, level, generator)
