"""Every kind of degradation that `lite` learns from, in one table: own, published and those of generated pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import arniqa_distortions, distortions, generated_distortions
from .distortions import Distortion

HURTS = {
    "quantize": 0.7, "desaturate": 0.45, "oversaturate": 0.7, "flatten_contrast": 0.7, "harsh_contrast": 0.7,
    "darken": 0.8, "brighten": 0.8, "sharpen": 0.8, "color_shift": 0.7, "burn": 0.8, "seams": 0.8, "watermark": 0.6,
    "median": 0.7, "bilateral": 0.7, "non_local_means": 0.7, "kuwahara": 0.8, "latent_clipped": 0.8,
}  # fmt: skip
"""How much a full ladder of a kind hurts, next to blur, noise and blocks, where that is not 1; ours, by eye."""
PUBLISHED_HURTS = {
    "color_saturation1": 0.4, "color_saturation2": 0.6, "mean_shift": 0.4, "linear_contrast_change": 0.5,
    "non_linear_contrast_change": 0.7, "color_diffusion": 0.6, "color_shift": 0.6, "high_sharpen": 0.8,
    "non_eccentricity_patch": 0.7, "color_block": 0.9, "brighten": 0.7, "darken": 0.6, "quantization": 0.6,
    "white_noise": 0.6, "multiplicative_noise": 0.7, "impulse_noise": 0.6, "white_noise_cc": 0.5,
}  # fmt: skip

OWN_GROUPS = {
    "blur": ("gaussian_blur", "lens_blur", "motion_blur"),
    "noise": ("white_noise", "grain", "multiplicative_noise", "impulse_noise"),
    "compression": ("jpeg", "jpeg2000"),
    "enlargement": ("pixelate", "enlarge"),
    "colour": (
        "quantize", "desaturate", "oversaturate", "flatten_contrast", "harsh_contrast", "darken", "brighten",
        "color_shift",
    ),
    "sharpness": ("sharpen",),
}  # fmt: skip
"""Groups of `distortions.LADDERS`, so that kinds of one family can be left out together."""


@dataclass(frozen=True)
class Kind:
    """One ladder of degradations."""

    name: str
    """Unique among all kinds."""
    group: str
    """Family; whole ones can be left out of a training."""
    degrade: Callable[[Tensor, Tensor, torch.Generator | None], Tensor]
    """Images (N, 3, H, W) in [0, 1], levels (N,) in [0, 4] and a generator -> degraded images."""
    severity: Callable[[Tensor], Tensor]
    """Levels (N,) -> how much they hurt (N,): 0 for nothing, about 4.5 for the worst."""
    whole: bool = False
    """Whether only whole levels exist."""


def strength(values: tuple[float, ...], level: Tensor) -> Tensor:
    """A ladder's parameter at fractional levels (N,) in [0, 4], interpolated linearly between its five values."""
    known = torch.tensor(values, dtype=torch.float32)
    low = level.floor().clamp(0, 3).long()
    return torch.lerp(known[low], known[low + 1], (level - low).float())


def ladder(name: str, group: str, function: Distortion, values: tuple[float, ...]) -> Kind:
    """A kind from a distortion and its five strengths."""

    def degrade(images: Tensor, level: Tensor, generator: torch.Generator | None) -> Tensor:
        return function(images, strength(values, level), generator).clamp(0, 1)

    return Kind(name, group, degrade, lambda level: HURTS.get(name, 1.0) * (0.7 + 0.95 * level))


def _published(name: str, group: str) -> Kind:
    def degrade(images: Tensor, level: Tensor, generator: torch.Generator | None) -> Tensor:
        return arniqa_distortions.distort(images, name, level, generator)

    def severity(level: Tensor) -> Tensor:
        return PUBLISHED_HURTS.get(name, 0.9) * arniqa_distortions.severity(name, level)

    return Kind(f"published_{name}", group, degrade, severity, whole=True)


def all_kinds() -> list[Kind]:
    """Every kind that tensors alone can make."""
    group_of = {name: group for group, names in OWN_GROUPS.items() for name in names}
    own = [ladder(name, group_of[name], *values) for name, values in distortions.LADDERS.items()]
    published = [
        _published(name, "enlargement" if name == "pixelate" else group)
        for group, names in arniqa_distortions.GROUPS.items()
        for name in names
    ]
    generated = [
        ladder(name, group, *values)
        for group, names in generated_distortions.GROUPS.items()
        for name, values in names.items()
    ]
    return own + published + generated
