"""Resizing pictures, and the sizes at which they are scored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError
from .pictures.opening import check_ratio, check_side


@dataclass(frozen=True)
class WorkingSize:
    """Between which short sides, in px, pictures are scored: smaller ones are enlarged, larger ones reduced."""

    least: int | None = None
    """None enlarges nothing."""
    most: int | None = None
    """None reduces nothing."""

    def __str__(self) -> str:
        sides = [f"at least {self.least}"] * bool(self.least) + [f"at most {self.most}"] * bool(self.most)
        return f"short side {' and '.join(sides)} px" if sides else "at the size of the files"


def resize_short_side(images: Tensor, size: int | WorkingSize | None, *, enlarge: bool = True) -> Tensor:
    """Resize to a short side, keeping the proportions (antialiased bicubic, clamped to [0, 1]).

    Args:
        images: (N, 3, H, W) floating in [0, 1].
        size: the short side, pixels, or between which limits it shall be; None changes nothing.
        enlarge: False returns pictures as they are that are smaller than a `size` in pixels.

    Returns:
        (N, 3, H', W') of the same dtype and device, differentiable; the same object when there is nothing to do.

    Raises:
        ImageError: `size` is not positive, or the pictures have to be resized and their sides are further apart than
            `MAX_RATIO`.
    """
    if isinstance(size, int) and not enlarge:
        size = WorkingSize(most=_positive(size))
    height, width = images.shape[-2:]
    target = resized_shape(height, width, size)
    if target == (height, width):
        return images
    check_ratio(width, height, "the picture")
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # half precision is too coarse, or unsupported
    return interpolated(wide, target).clamp(0, 1).to(images.dtype)


def _positive(size: int) -> int:
    if size < 1:
        raise ImageError(f"size is {size}; expected a positive number of pixels for the short side.")
    return size


def resized_shape(height: int, width: int, size: int | WorkingSize | None) -> tuple[int, int]:
    """(H', W') that a picture of (H, W) gets.

    Raises:
        ImageError: `size` is not positive, or a picture to be enlarged to a working size is below `MIN_SIDE`.
    """
    limits = WorkingSize(_positive(size), size) if isinstance(size, int) else size or WorkingSize()
    short = min(height, width)
    if isinstance(size, WorkingSize) and limits.least and short < limits.least:
        check_side(width, height, "the picture")  # there is too little in it to be enlarged
    wanted = max(short, limits.least or short)
    wanted = min(wanted, limits.most or wanted)
    if wanted == short:
        return height, width
    return max(1, round(height * wanted / short)), max(1, round(width * wanted / short))


def interpolated(images: Tensor, target: tuple[int, int]) -> Tensor:
    """Pictures (N, 3, H, W) at another (H', W'), antialiased bicubic, not clamped: rows and columns one by one."""
    if images.shape[-2:] == target:
        return images
    return F.interpolate(images, size=target, mode="bicubic", align_corners=False, antialias=True)
