"""Photographs for training: what may be used, how it is split, and how crops are cut.

The folder has `pristine/images/` (clean photographs) and `live-challenge/` with `images/` and `mos.csv` (human scores:
columns `image` and `mos`, 0 to 100, higher is better; others are ignored).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..images import IMAGE_SUFFIXES

HELD_OUT = 5  # one picture group in five is never trained on


@dataclass(frozen=True)
class Photograph:
    """One picture of a training folder."""

    path: Path
    """Its file."""
    mos: float | None = None
    """Mean opinion score, 0 to 100, higher is better; None for clean photographs without one."""


def clean_photographs(data: Path) -> list[Photograph]:
    """The clean photographs of a data folder, in name order.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = data / "pristine" / "images"
    found = [Photograph(path) for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"no pictures in {folder}; expected clean photographs there: see docs/training.md.")
    return found


def scored_photographs(data: Path) -> list[Photograph]:
    """The human-scored photographs of a data folder, in the order of their list.

    Raises:
        FileNotFoundError: there is no list.
    """
    folder = data / "live-challenge"
    with (folder / "mos.csv").open(newline="") as file:
        return [Photograph(folder / "images" / row["image"], float(row["mos"])) for row in csv.DictReader(file)]


def split(photographs: list[Photograph], seed: int = 0) -> tuple[list[Photograph], list[Photograph]]:
    """Training and held-out pictures, one group in `HELD_OUT`; near-identical pictures are one group.

    Args:
        photographs: at least `HELD_OUT` groups of them, or none is held out.
        seed: decides which groups are held out.
    """
    group = alike_groups([photograph.path for photograph in photographs])
    names = np.unique(group)
    held = np.random.default_rng(seed).permutation(names)[: len(names) // HELD_OUT]
    out = np.isin(group, held)
    kept, aside = ([p for p, o in zip(photographs, out, strict=True) if o == side] for side in (False, True))
    return kept, aside


def alike_groups(paths: Sequence[Path]) -> np.ndarray:
    """Number of the group of near-identical pictures that each one is in, (N,): the index of the group's first.

    Two pictures are near-identical when their 16x16 grey thumbnails, standardised, correlate above 0.95; chains of such
    pairs make one group.
    """
    thumbnails = []
    for path in paths:
        grey = Image.open(path).convert("L").resize((16, 16), Image.Resampling.BOX)
        values = np.asarray(grey, dtype=np.float64).ravel()
        thumbnails.append((values - values.mean()) / (values.std() + 1e-6))
    alike = np.stack(thumbnails) @ np.stack(thumbnails).T / 256 > 0.95
    group = np.arange(len(paths))
    for row in range(len(paths)):  # the smallest index that a picture is linked to, through any chain
        linked = alike[row].nonzero()[0]
        group[np.isin(group, group[linked])] = group[linked].min()
    return group


def read(path: Path) -> Image.Image:
    """A picture as RGB, its EXIF orientation applied."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def random_crop(picture: Image.Image, size: int, rng: np.random.Generator, most: float = 3.0) -> Image.Image:
    """A random square of the picture, reduced to `size` and mirrored half of the time.

    Args:
        picture: any size; pictures smaller than `size` are enlarged.
        size: side of the result in px.
        rng: decides place, scale and mirroring.
        most: the square is `size` to `most * size` px wide, evenly in the logarithm, where the picture has that many.
    """
    short = min(picture.size)
    side = int(np.exp(rng.uniform(np.log(min(size, short)), np.log(min(most * size, short)))))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in picture.size)
    patch = picture.resize((size, size), Image.Resampling.LANCZOS, (x, y, x + side, y + side))
    return patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else patch
