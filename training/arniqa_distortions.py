"""The 24 distortions of ARNIQA, after KADID-10k, with their published parameters: five levels each, in seven groups.

`distortions` has the ladders on which `tiny` is trained, with parameters of our own from barely visible to severe; this
table is for training and measuring as others do. What both have in common is written there.

Source: Agnolucci et al. (2024), "ARNIQA: Learning Distortion Manifold for Image Quality Assessment",
https://arxiv.org/abs/2310.14918; names and parameters from https://github.com/miccunifi/ARNIQA, utils/utils_data.py and
utils/distortions.py at f60c0f2 (Apache-2.0). How this differs:

* A batch at a time, on any device, never in place, random draws from a generator.
* What fails there with numpy 2 (impulse_noise, brighten, darken) works; a disk is a disk at every radius.
* The levels of mean_shift and linear_contrast_change are in the order of their strength; `severity` says which tie.
* Displaced pictures and channels have replicated edges where they wrap there.
* Five more faults of that code are mended; docs/training.md lists them with what each is worth in dB.

Channels are read as BGR before going to CIELAB, as there: the published parameters belong to that.

Every function takes images (N, 3, H, W) in [0, 1], one parameter per image (N,) and a CPU generator (None for torch's
global one), treats each image as if it were alone, and returns (N, 3, H, W) of the same dtype and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from . import distortions
from .color_spaces import lab_to_rgb, rgb_to_lab
from .distortions import column, filter_2d, filter_separable, gaussian_kernels, luma, normal_like

PATCH = 16  # px, side of what non_eccentricity_patch moves
REACH = 16  # px, how far from the border it stays, and twice how far it moves
BLOCK = 32  # px, side of what color_block paints


def _grid(reach: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, float64 (2 reach + 1, 2 reach + 1), of a kernel around its centre."""
    return torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float64)] * 2, indexing="ij")


def _bgr_to_lab(images: Tensor) -> Tensor:
    return rgb_to_lab(images.flip(1))


def _lab_to_bgr(lab: Tensor) -> Tensor:
    return lab_to_rgb(lab).flip(1)


def _whole(images: Tensor) -> Tensor:
    """Cut values down to whole 255ths; those of 8 bits, which CIELAB and back moves by up to 0.003 of one, stay."""
    return (images * 255 + 0.01).trunc() / 255


# --- blur ---


def gaussian_blur(images: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian blur; sigma in pixels, the kernel cut at two sigma."""
    return filter_separable(images, gaussian_kernels(sigma, (2 * sigma).ceil()))


def disk_kernels(radius: Tensor) -> Tensor:
    """Share of each pixel that lies in a disk, (N, k, k) with sum 1 (MATLAB's fspecial); radius (N,) in pixels."""
    reach = math.ceil(float(radius.max()) - 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    slices = offsets[:, None] + (torch.arange(256) + 0.5) / 256 - 0.5  # the area, slice by slice
    half = (radius.double().view(-1, 1, 1) ** 2 - slices**2).clamp_min(0).sqrt().unsqueeze(-1)
    low, high = offsets - 0.5, offsets + 0.5
    covered = half.clamp_max(high).clamp_min(low) - (-half).clamp_max(high).clamp_min(low)
    disks = covered.mean(2)
    return disks / disks.sum((1, 2), keepdim=True)


def lens_blur(images: Tensor, radius: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur with an evenly lit disk; radius in pixels."""
    return filter_2d(images, disk_kernels(radius))


def line_kernels(length: Tensor, degrees: Tensor) -> Tensor:
    """Lines one pixel wide, antialiased, (N, k, k) with sum 1 (MATLAB's fspecial "motion").

    Args:
        length: (N,), pixels; 1 or less is a single pixel.
        degrees: (N,), from the horizontal, counter-clockwise.
    """
    half = ((length.double() - 1) / 2).clamp_min(0).view(-1, 1, 1)
    y, x = _grid(math.ceil(float(half.max())) + 1)
    cos, sin = (f(degrees.double().deg2rad()).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    across, along = (y * cos + x * sin).abs(), (x * cos - y * sin).abs()
    past_the_end = torch.hypot(x, y) >= half
    distance = torch.where(past_the_end, torch.hypot(across, half - along), across)
    lines = (1 - distance).clamp_min(0)
    return lines / lines.sum((1, 2), keepdim=True)


def motion_blur(images: Tensor, length: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur along a line at a random whole angle from 0 to 180 degrees; length in pixels."""
    return filter_2d(images, line_kernels(length, torch.randint(0, 181, (len(images),), generator=generator)))


# --- colour ---


def color_diffusion(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Blur a and b of CIELAB by a sigma of 1.5 amount + 2 pixels and multiply them by amount."""
    lab, sigma = _bgr_to_lab(images), 1.5 * amount + 2
    ab = filter_separable(lab[:, 1:], gaussian_kernels(sigma, (2 * sigma).ceil()))
    return _whole(_lab_to_bgr(torch.cat([lab[:, :1], ab * column(amount, images)], 1)))


def color_shift(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Move the green channel down and right by amount pixels in all, where there are edges.

    The weight of the moved channel is the gradient of luma, blurred by a sigma of 4 pixels and stretched to [0, 1]. The
    weight is not cut at its first and last percentile: there this reads a sort's indices, and it matters 0.02 dB.
    """
    n, _, h, w = images.shape
    direction = torch.rand(n, 2, generator=generator)
    shift = (direction / direction.norm(dim=1, keepdim=True) * amount[:, None].to(direction)).round().long()
    around = F.pad(luma(images), [1, 1, 1, 1], mode="replicate")
    dx = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
    dy = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
    sigma = torch.full((n,), 4.0)
    edges = _stretch(filter_separable((dx**2 + dy**2).sqrt(), gaussian_kernels(sigma, 2 * sigma))[:, 0])
    green = images[:, 1]
    rows = (torch.arange(h) - shift[:, :1]).clamp_min(0).to(images.device)
    columns = (torch.arange(w) - shift[:, 1:]).clamp_min(0).to(images.device)
    moved = green[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.stack([images[:, 0], green + edges * (moved - green), images[:, 2]], 1)


def _stretch(values: Tensor) -> Tensor:
    """Each of the batch to [0, 1], from its least to its greatest value; constant ones stay as they are."""
    low, high = values.flatten(1).aminmax(dim=1)
    low, span = (x.view(-1, *[1] * (values.ndim - 1)) for x in (low, high - low))
    return torch.where(span > 0, (values - low) / span, values)


def color_saturation1(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Multiply the saturation of HSV; below 0 colours turn to their complements."""
    value = images.amax(1, keepdim=True)  # with hue and value fixed, the distance from it is linear in saturation
    return value + column(factor, images) * (images - value)


def color_saturation2(images: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Multiply a and b of CIELAB."""
    lab = _bgr_to_lab(images)
    return _whole(_lab_to_bgr(torch.cat([lab[:, :1], lab[:, 1:] * column(factor, images)], 1)))


# --- compression ---


def jpeg2000(images: Tensor, rate: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """JPEG 2000 (reversible 5/3 wavelet) at a compression rate, uncompressed size over file size."""
    resolutions = min(8, min(images.shape[-2:]).bit_length())  # more do not fit into small pictures
    return distortions.code_jpeg2000(images, rate, num_resolutions=resolutions, progression="LRCP")


# --- noise ---


def white_noise(images: Tensor, variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent Gaussian noise on every channel; variance of values in [0, 1]."""
    return distortions.white_noise(images, variance.sqrt(), generator)


def white_noise_cc(images: Tensor, variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent Gaussian noise on Y, Cb and Cr of BT.601."""
    noise = column(variance.sqrt(), images) * normal_like(images, generator)
    return images + torch.einsum("ij,njhw->nihw", torch.linalg.inv(distortions.RGB_TO_YCC).to(images), noise)


def multiplicative_noise(images: Tensor, variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian noise in proportion to the signal; variance relative to it."""
    return distortions.multiplicative_noise(images, variance.sqrt(), generator)


# --- brightness ---


def _bend(values: Tensor, amount: Tensor) -> Tensor:
    """The parabola through (0, 0), (0.5, 0.5 + amount / 2) and (1, 1), cut to [0, 1]."""
    return (values + 2 * column(amount, values) * values * (1 - values)).clamp(0, 1)


def brighten(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Bend the channels' tone curves (two thirds) and that of L of CIELAB (one third) upwards."""
    lab = _bgr_to_lab(images)
    bent = torch.cat([100 * _bend(lab[:, :1] / 100, amount), lab[:, 1:]], 1)
    return (2 * _bend(images, amount) + _lab_to_bgr(bent)) / 3


def darken(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Bend the channels' tone curves downwards."""
    return _bend(images, -amount)


def mean_shift(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add amount to every value."""
    return images + column(amount, images)


# --- space ---


def jitter(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Five times: read every pixel from a random place near by; std of the displacement in pixels."""
    n, _, h, w = images.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    here = torch.stack([x, y], -1).to(images)
    size = images.new_tensor([w, h])
    for _ in range(5):
        moved = here - column(std, images) * normal_like(images, generator, (n, 2, h, w)).permute(0, 2, 3, 1)
        images = F.grid_sample(images, (2 * moved + 1) / size - 1, padding_mode="border", align_corners=False)
    return images


def non_eccentricity_patch(images: Tensor, count: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Copy patches of 16 x 16 to places up to 8 pixels away, one after the other."""
    n, _, h, w = images.shape
    draws = torch.rand(n, int(count.max()), 4, generator=generator)
    room = torch.tensor([w, h]) - PATCH
    start = REACH + (draws[..., :2] * (room - 2 * REACH).clamp_min(0)).round()
    end = ((draws[..., 2:] - 0.5) * REACH + start).round()
    start, end = (torch.minimum(place.clamp_min(0), room).long().tolist() for place in (start, end))
    out = images.clone()
    for image, times, froms, tos in zip(out, count.tolist(), start, end, strict=True):
        for (x, y), (to_x, to_y) in list(zip(froms, tos, strict=True))[: round(times)]:
            patch = image[:, y : y + PATCH, x : x + PATCH].clone()
            image[:, to_y : to_y + PATCH, to_x : to_x + PATCH] = patch
    return out


def pixelate(images: Tensor, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Reduce to 0.95 - strength ** 0.6 of the size and enlarge again, both to the nearest pixel."""
    h, w = images.shape[-2:]
    out = []
    for image, share in zip(images, (0.95 - strength.double() ** 0.6).tolist(), strict=True):
        small = F.interpolate(image[None], (max(1, int(h * share)), max(1, int(w * share))), mode="nearest")
        out.append(F.interpolate(small, (h, w), mode="nearest"))
    return torch.cat(out)


def quantization(images: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Replace values by the number of their bin, of as many equal bins as levels, and stretch that to [0, 1].

    Bins end at whole 255ths; black is a bin of its own.
    """
    levels, values = column(levels, images).round(), images * 255 - 1e-3  # values of 8 bits lie on the edges
    bins = torch.zeros_like(images)
    for edge in range(int(levels.max())):
        bins += (values > (255 * edge / levels).floor()) & (edge < levels)
    return _stretch(bins)


def color_block(images: Tensor, count: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Paint squares of 32 x 32 pixels in random colours."""
    n, _, h, w = images.shape
    draws = torch.rand(n, int(count.max()), 5, generator=generator)
    place = (draws[..., 3:] * (torch.tensor([h, w]) - BLOCK).clamp_min(0)).floor().long().tolist()
    colors = draws[..., :3, None, None].to(images)
    out = images.clone()
    for image, times, places, color in zip(out, count.tolist(), place, colors, strict=True):
        for (y, x), paint in list(zip(places, color, strict=True))[: round(times)]:
            image[:, y : y + BLOCK, x : x + BLOCK] = paint
    return out


# --- sharpness and contrast ---


def high_sharpen(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Unsharp masking of L of CIELAB: sigma 6 pixels, cut after 6."""
    lab = _bgr_to_lab(images)
    radius = torch.full((len(images),), 6.0)
    blurred = filter_separable(lab[:, :1], gaussian_kernels(radius, radius))
    sharp = lab[:, :1] + column(amount, images) * (lab[:, :1] - blurred)
    return _lab_to_bgr(torch.cat([sharp, lab[:, 1:]], 1))


def linear_contrast_change(images: Tensor, amount: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The cubic tone curve through (0, 0), (0.3, 0.25 - amount / 4), (0.5, 0.5), (0.7, 0.75 + amount / 4), (1, 1).

    Published as a spline with not-a-knot ends; its symmetry makes it one cubic, a straight line at amount -0.2.
    """
    cubic = -(0.05 + column(amount, images) / 4) / 0.042
    u = images - 0.5
    return (0.5 + (1 - cubic / 4) * u + cubic * u**3).clamp(0, 1)


def non_linear_contrast_change(images: Tensor, half: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Squeeze [0, 1] into [0.5 - half, 0.5 + half]."""
    return 0.5 + 2 * column(half, images) * (images - 0.5)


# group -> name -> (function, parameters of the five levels)
GROUPS: dict[str, dict[str, tuple[distortions.Distortion, tuple[float, ...]]]] = {
    "blur": {
        "gaussian_blur": (gaussian_blur, (0.1, 0.5, 1, 2, 5)),
        "lens_blur": (lens_blur, (1, 2, 4, 6, 8)),
        "motion_blur": (motion_blur, (1, 2, 4, 6, 10)),
    },
    "color": {
        "color_diffusion": (color_diffusion, (1, 3, 6, 8, 12)),
        "color_shift": (color_shift, (1, 3, 6, 8, 12)),
        "color_saturation1": (color_saturation1, (0.4, 0.2, 0.1, 0, -0.4)),
        "color_saturation2": (color_saturation2, (1, 2, 3, 6, 9)),
    },
    "compression": {
        "jpeg2000": (jpeg2000, (16, 32, 45, 120, 170)),
        "jpeg": (distortions.jpeg, (43, 36, 24, 7, 4)),
    },
    "noise": {
        "white_noise": (white_noise, (0.001, 0.002, 0.003, 0.005, 0.01)),
        "white_noise_cc": (white_noise_cc, (0.0001, 0.0005, 0.001, 0.002, 0.003)),
        "impulse_noise": (distortions.impulse_noise, (0.001, 0.005, 0.01, 0.02, 0.03)),
        "multiplicative_noise": (multiplicative_noise, (0.001, 0.005, 0.01, 0.02, 0.05)),
    },
    "brightness": {
        "brighten": (brighten, (0.1, 0.2, 0.4, 0.7, 1.1)),
        "darken": (darken, (0.05, 0.1, 0.2, 0.4, 0.8)),
        "mean_shift": (mean_shift, (0, 0.08, -0.08, 0.15, -0.15)),
    },
    "space": {
        "jitter": (jitter, (0.05, 0.1, 0.2, 0.5, 1)),
        "non_eccentricity_patch": (non_eccentricity_patch, (20, 40, 60, 80, 100)),
        "pixelate": (pixelate, (0.01, 0.05, 0.1, 0.2, 0.5)),
        "quantization": (quantization, (20, 16, 13, 10, 7)),
        "color_block": (color_block, (2, 4, 6, 8, 10)),
    },
    "sharpness_and_contrast": {
        "high_sharpen": (high_sharpen, (1, 2, 3, 6, 12)),
        "linear_contrast_change": (linear_contrast_change, (0, -0.4, 0.15, -0.6, 0.3)),
        "non_linear_contrast_change": (non_linear_contrast_change, (0.4, 0.3, 0.2, 0.1, 0.05)),
    },
}

LADDERS = {name: ladder for group in GROUPS.values() for name, ladder in group.items()}

# Places of the five levels in the order of strength where they are not 1 to 5; 0 is the untouched picture.
_PLACES = {
    "gaussian_blur": (0, 1, 2, 3, 4),
    "motion_blur": (0, 1, 2, 3, 4),
    "color_saturation2": (0, 1, 2, 3, 4),
    "mean_shift": (0, 1, 1, 2, 2),  # up and down by the same
    "linear_contrast_change": (1, 1, 2, 3, 4),  # as far below -0.2, where the curve is straight, as above
}


def _check(name: str, level: Tensor) -> None:
    if name not in LADDERS:
        raise ValueError(f"unknown distortion {name!r}; expected one of: {', '.join(LADDERS)}.")
    if not torch.isin(level, torch.arange(5, device=level.device)).all():
        raise ValueError(f"got levels {level.tolist()}; expected whole numbers from 0 to 4.")


def severity(name: str, level: Tensor) -> Tensor:
    """Place of levels in the order of strength, as `objectives.ladder_ranking` takes it.

    Args:
        name: one of `LADDERS`.
        level: (N,), whole numbers from 0 to 4.

    Returns:
        (N,) float32: 0 for levels that do nothing, equal for levels of which neither is worse.

    Raises:
        ValueError: if `name` is not a ladder or `level` not a level.
    """
    _check(name, level)
    return torch.tensor(_PLACES.get(name, (1, 2, 3, 4, 5)), dtype=torch.float32, device=level.device)[level.long()]


def distort(images: Tensor, name: str, level: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Degrade images by one of the 24.

    Args:
        images: (N, 3, H, W) in [0, 1], at least 16 pixels high and wide; not changed.
        name: one of `LADDERS`.
        level: (N,), whole numbers from 0 (the weakest, for some nothing at all) to 4.
        generator: CPU generator of everything random; None for torch's global one.

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: if `name` is not a ladder or `level` not a level.
    """
    _check(name, level)
    function, parameters = LADDERS[name]
    chosen = torch.tensor(parameters, dtype=torch.float32)[level.long().cpu()]
    return function(images, chosen, generator).clamp(0, 1)
