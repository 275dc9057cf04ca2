"""Photographs for training: what may be used, how it is split, and how crops are cut.

The folder has `pristine/images/` (clean photographs) and `live-challenge/` with `images/` and `mos.csv` (human scores:
columns `image` and `mos`, 0 to 100, higher is better; others are ignored).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import to_rgb
from ..pictures.listing import Listing, list_pictures
from ..pictures.opening import check_headers, opened
from .datasets import load_dataset, official_split, seeded_splits

logger = logging.getLogger(__name__)

GOOD = 55.0  # mean opinion score above which a photograph, at half its size, counts as clean
HELD_OUT = 5  # one picture group in five is never trained on
BLOCK = 2**24  # correlations of thumbnails that are in memory at once


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


def good_photographs(scored: list[Photograph]) -> list[Photograph]:
    """Those of the human-scored photographs that count as clean at half their size."""
    return [photograph for photograph in scored if photograph.mos > GOOD]


def scored_parts(
    data: Path, dataset: str = "", root: Path | None = None, validation: float = 0.0, full_reference: bool = False
) -> tuple[list[Photograph], list[Photograph], list[Photograph]]:
    """Human-scored photographs to learn from, to choose the best checkpoint by, and held out.

    Args:
        data: a data folder, whose own are split as in `split`.
        dataset: a data set instead, as `load_dataset` names it: held out is its official test part, else that of the
            first seeded split.
        root: its folder.
        validation: share of the groups that are not held out which choose the best checkpoint. A data set's official
            validation part goes before it.
        full_reference: whether the references are asked for, which a data folder does not have.

    Raises:
        FileNotFoundError: as `load_dataset`.
        ValueError: as `load_dataset`, a picture without the reference that is asked for, or fewer than five pictures to
            choose by.
    """
    if not dataset:
        kept, held_out = split(scored_photographs(data))
        learnt, chosen_by = split(kept, 1, validation) if validation else (kept, [])
    else:
        samples = load_dataset(dataset, root)
        official = any(sample.part == "test" for sample in samples)
        train, test = official_split(samples) if official else seeded_splits(samples, 1)[0]
        aside = [n for n in train if samples[n].part == "validation"]
        if not aside:
            rest = [samples[n] for n in train]
            aside = train[seeded_splits(rest, 1, validation)[0][1]].tolist() if validation else []
        parts = ([n for n in train if n not in set(aside)], aside if validation else [], test)
        found = [Photograph(s.image, 100 * s.normalised_mos, s.reference if full_reference else None) for s in samples]
        learnt, chosen_by, held_out = ([found[n] for n in part] for part in parts)
    if full_reference:
        _require_references([*learnt, *chosen_by, *held_out])
    if validation and len(chosen_by) < 5:
        raise ValueError(
            f"a validation share of {validation:g} is {len(chosen_by)} pictures; expected five or more: "
            "give more pictures, a larger share, or 0 to keep the last checkpoint."
        )
    return learnt, chosen_by, held_out


def _require_references(photographs: list[Photograph]) -> None:
    bare = [photograph.path for photograph in photographs if photograph.reference is None]
    if bare:
        raise ValueError(
            f"{bare[0]} has no reference, which a full-reference model needs: give dataset and root of pictures that "
            "have one, or set mos_weight, squared_weight and validation to 0 and give no dataset."
        )


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


def alike_groups(paths: Sequence[Path]) -> np.ndarray:
    """Number of the group of near-identical pictures that each one is in, (N,): the index of the group's first.

    Two pictures are near-identical when their 16x16 grey thumbnails, standardised, correlate above 0.95; chains of such
    pairs make one group.
    """
    return _groups(read(path) for path in paths)


def thumbnail_groups(pictures: Sequence[Tensor]) -> np.ndarray:
    """`alike_groups` of pictures (3, H, W) uint8 that are decoded already."""
    return _groups(Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures)


def _thumbnail(picture: Image.Image) -> np.ndarray:
    """(256,): 16x16 grey values, standardised."""
    values = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel()
    return (values - values.mean()) / (values.std() + 1e-6)


def _groups(pictures: Iterable[Image.Image]) -> np.ndarray:
    thumbnails = np.array([_thumbnail(picture) for picture in pictures]).reshape(-1, 256)
    group = np.arange(len(thumbnails))
    rows = max(1, BLOCK // max(1, len(thumbnails)))
    for start in range(0, len(thumbnails), rows):
        for alike in thumbnails[start : start + rows] @ thumbnails.T / 256 > 0.95:
            linked = alike.nonzero()[0]
            if len(linked) > 1:  # the smallest index that a picture is linked to, through any chain
                group[np.isin(group, group[linked])] = group[linked].min()
    return group


def read(path: Path) -> Image.Image:
    """A picture as 8-bit RGB, converted as for scoring.

    Raises:
        ImageError: the file is no picture, not whole, or has more pixels than are read anywhere.
    """
    with opened(path) as image:
        return to_rgb(image, str(path))


def read_with_reference(photograph: Photograph) -> list[Image.Image]:
    """A photograph and, where it has one, its reference, as `read` gives them.

    Raises:
        ValueError: as `read`, or they differ in size.
    """
    pictures = [read(path) for path in (photograph.path, photograph.reference) if path is not None]
    sizes = ["x".join(map(str, picture.size)) for picture in pictures]
    if len(set(sizes)) > 1:
        raise ValueError(f"{photograph.path} is {sizes[0]} px and its reference {sizes[1]}; expected equal sizes.")
    return pictures


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def random_crop(
    picture: Image.Image, size: int, rng: np.random.Generator, most: float = 3.0, least: float = 1.0
) -> Image.Image:
    """A random square of one picture; see `random_crops`."""
    return random_crops([picture], size, rng, most, least)[0]


def random_crops(
    pictures: Sequence[Image.Image], size: int, rng: np.random.Generator, most: float = 3.0, least: float = 1.0
) -> list[Image.Image]:
    """The same random square of every picture, reduced to `size` and mirrored half of the time.

    Args:
        pictures: all of one size, whichever; those smaller than `size` are enlarged.
        size: side of the result in px.
        rng: decides place, scale and mirroring.
        most: the square is `least * size` to `most * size` px wide, evenly in the logarithm, where the picture has that
            many.
        least: at 2, what comes out is sharp although the picture may be a little soft.
    """
    extents = pictures[0].size
    short = min(extents)
    side = int(np.exp(rng.uniform(np.log(min(least * size, short)), np.log(min(most * size, short)))))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in extents)
    square = (x, y, x + side, y + side)
    patches = [picture.resize((size, size), Image.Resampling.LANCZOS, square) for picture in pictures]
    return [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in patches] if rng.random() < 0.5 else patches
