"""CIELAB (D65, 2 degrees) of sRGB images, as IEC 61966-2-1 and CIE 15 define them."""

from __future__ import annotations

import torch
from torch import Tensor

_RGB_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
_WHITE = _RGB_TO_XYZ.sum(1)  # so that grey has a = b = 0
_XYZ_TO_LAB = torch.tensor([[0.0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64)  # of f(X), f(Y), f(Z)
_BEND = 6 / 29  # where the cube root becomes a line


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix.to(images), images)


def rgb_to_lab(images: Tensor) -> Tensor:
    """SRGB (N, 3, H, W) in [0, 1] -> L in [0, 100], a, b of about -110 to 110; same shape and dtype."""
    light = torch.where(images > 0.04045, ((images.clamp_min(0) + 0.055) / 1.055) ** 2.4, images / 12.92)
    ratio = _mix(_RGB_TO_XYZ / _WHITE[:, None], light)
    f = torch.where(ratio > _BEND**3, ratio.clamp_min(_BEND**3) ** (1 / 3), ratio / (3 * _BEND**2) + 4 / 29)
    lab = _mix(_XYZ_TO_LAB, f)
    return torch.cat([lab[:, :1] - 16, lab[:, 1:]], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """L, a, b (N, 3, H, W) -> sRGB in [0, 1]; colours that sRGB does not have are cut to it."""
    f = _mix(torch.linalg.inv(_XYZ_TO_LAB), torch.cat([lab[:, :1] + 16, lab[:, 1:]], 1)).clamp_min(0)
    ratio = torch.where(f > _BEND, f**3, 3 * _BEND**2 * (f - 4 / 29))
    light = _mix(torch.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]), ratio)
    curved = 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light > 0.0031308, curved, 12.92 * light).clamp(0, 1)
