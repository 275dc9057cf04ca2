"""Photographs for training: what may be used, and how it is split.

The folder has `pristine/images/` (clean photographs) and `live-challenge/` with `images/` and `mos.csv` (human scores:
columns `image` and `mos`, 0 to 100, higher is better; others are ignored).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures.listing import Listing, list_pictures
from ..pictures.opening import check_headers
from .crops import read
from .datasets import load_dataset
from .duplicates import alike_groups

logger = logging.getLogger(__name__)
GOOD = 55.0  # mean opinion score above which a photograph, at half its size, counts as clean
HELD_OUT = 5  # one picture group in five is never trained on


@dataclass(frozen=True)
class Photograph:
    """One picture of a training folder."""

    path: Path
    """Its file."""
    mos: float | None = None
    """Mean opinion score, 0 to 100, higher is better; None for clean photographs without one."""
    reference: Path | None = None
    """The undistorted picture, where it is asked for; a full-reference model compares with it."""


def clean_photographs(data: Path, folder: Path | None = None) -> list[Photograph]:
    """The clean photographs of a data folder, or of another folder, in name order.

    Raises:
        FileNotFoundError: there are none.
        ImageError: one of them cannot be read, or is too large or too small.
    """
    folder = folder or data / "pristine" / "images"
    listing = list_pictures([folder], recursive=False) if folder.is_dir() else Listing()
    for remark in listing.remarks():
        logger.warning(remark)
    if not listing.files:
        raise FileNotFoundError(f"no pictures in {folder}; expected clean photographs there: see docs/training.md.")
    check_headers(listing.files)
    return [Photograph(path) for path in listing.files]


def scored_photographs(data: Path) -> list[Photograph]:
    """The human-scored photographs of a data folder, in the order of their list.

    Raises:
        FileNotFoundError: there is no list, or pictures are missing.
        ValueError: a picture comes twice, or the scores are no numbers from 0 to 100, or all equal.
    """
    return [Photograph(s.image, s.mos) for s in load_dataset("csv", data / "live-challenge" / "mos.csv", (0, 100))]


def biq_photographs(data: Path) -> list[Photograph]:
    """Those of biq2021, `mos` from 0 to 100, in the order of their list; the file has it from 0 to 1.

    Raises:
        FileNotFoundError: there is no list, or pictures are missing.
        ValueError: as `scored_photographs`.
    """
    return [Photograph(s.image, 100 * s.mos) for s in load_dataset("csv", data / "biq2021" / "mos.csv", (0, 1))]


def good_photographs(scored: list[Photograph]) -> list[Photograph]:
    """Those of the human-scored photographs that count as clean at half their size."""
    return [photograph for photograph in scored if photograph.mos > GOOD]


def split(
    photographs: list[Photograph], seed: int = 0, share: float = 1 / HELD_OUT
) -> tuple[list[Photograph], list[Photograph]]:
    """Training and held-out pictures, one group in `HELD_OUT`; near-identical pictures are one group.

    Args:
        photographs: at least `HELD_OUT` groups of them, or none is held out.
        seed: decides which groups are held out.
        share: of the groups that is held out.
    """
    out = held_out(alike_groups([photograph.path for photograph in photographs]), seed, share)
    kept, aside = ([p for p, o in zip(photographs, out, strict=True) if o == side] for side in (False, True))
    return kept, aside


def held_out(group: np.ndarray, seed: int = 0, share: float = 1 / HELD_OUT) -> np.ndarray:
    """Which pictures are held out, (N,) bool, by the number of the group that each one is in; see `split`."""
    names = np.unique(group)
    return np.isin(group, np.random.default_rng(seed).permutation(names)[: int(share * len(names) + 1e-9)])


def read_with_reference(photograph: Photograph, short_side: int = 0) -> list[Image.Image]:
    """A photograph and, where it has one, its reference, as `read` gives them.

    Raises:
        ValueError: as `read`, or they differ in size.
    """
    paths = [path for path in (photograph.path, photograph.reference) if path is not None]
    pictures = [read(path, short_side) for path in paths]
    sizes = ["x".join(map(str, picture.size)) for picture in pictures]
    if len(set(sizes)) > 1:
        raise ValueError(f"{photograph.path} is {sizes[0]} px and its reference {sizes[1]}; expected equal sizes.")
    return pictures
