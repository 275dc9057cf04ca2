"""Pictures as 8-bit RGB, and random squares of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import to_rgb
from ..pictures.opening import opened


def read(path: Path, short_side: int = 0) -> Image.Image:
    """A picture as 8-bit RGB, converted as for scoring.

    Args:
        path: its file.
        short_side: to which it is going to be reduced, in px, so that a JPEG may be decoded smaller; 0 for as it is.

    Raises:
        ImageError: the file is no picture, not whole, or has more pixels than are read anywhere.
    """
    with opened(path, short_side or None) as image:
        return to_rgb(image, str(path))


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def random_crop(
    picture: Image.Image, size: int, rng: np.random.Generator, most: float = 3.0, least: float = 1.0
) -> Image.Image:
    """A random square of one picture; see `random_crops`."""
    return random_crops([picture], size, rng, most, least)[0]


def reduced(picture: Image.Image, short_side: int) -> Image.Image:
    """A picture with a short side of at most so many px; 0 for as it is."""
    short = min(picture.size)
    if not short_side or short <= short_side:
        return picture
    size = tuple(max(1, round(side * short_side / short)) for side in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS)


def random_crops(
    pictures: Sequence[Image.Image],
    size: int,
    rng: np.random.Generator,
    most: float = 3.0,
    least: float = 1.0,
    vertical: bool = False,
) -> list[Image.Image]:
    """The same random square of every picture, reduced to `size` and mirrored half of the time.

    Args:
        pictures: all of one size, whichever; those smaller than `size` are enlarged.
        size: side of the result in px.
        rng: decides place, scale and mirroring.
        most: the square is `least * size` to `most * size` px wide, evenly in the logarithm, where the picture has that
            many.
        least: at 2, what comes out is sharp although the picture may be a little soft.
        vertical: mirror upside down too, half of the time.
    """
    extents = pictures[0].size
    short = min(extents)
    side = int(np.exp(rng.uniform(np.log(min(least * size, short)), np.log(min(most * size, short)))))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in extents)
    square = (x, y, x + side, y + side)
    patches = [picture.resize((size, size), Image.Resampling.LANCZOS, square) for picture in pictures]
    flips = [Image.Transpose.FLIP_LEFT_RIGHT, *([Image.Transpose.FLIP_TOP_BOTTOM] if vertical else [])]
    for flip in (flip for flip in flips if rng.random() < 0.5):
        patches = [patch.transpose(flip) for patch in patches]
    return patches
