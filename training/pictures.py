"""Every photograph of a training, decoded once and kept as bytes on the training device; crops are cut there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .crops import read, to_tensor
from .data import GOOD, biq_photographs, clean_photographs, held_out, scored_photographs
from .duplicates import thumbnail_groups

SETS = ("live-challenge", "biq2021")
"""Sets of human-scored photographs, in folders of these names."""
BIQ_GOOD = 78.0
"""Mean opinion score, 0 to 100, of biq2021 above which a photograph counts as clean."""
THREADS = 8


@dataclass(frozen=True)
class Pictures:
    """Photographs and which of them may be learnt from."""

    images: list[Tensor]
    """(3, H, W) uint8 each, on the training device."""
    names: list[str]
    """Folder and file name."""
    origin: np.ndarray
    """(N,): index into `SETS`, or -1 for clean photographs without a score."""
    opinion: np.ndarray
    """(N,) float32: mean opinion score from 0 to 100; NaN for clean photographs."""
    group: np.ndarray
    """(N,): number of the group of near-identical pictures, within a set."""
    kept: np.ndarray
    """(N,) bool: the training part; the others are held out."""

    def split(self, seed: int) -> Pictures:
        """The same pictures with another fifth of each set's groups held out."""
        kept = np.ones(len(self.names), dtype=bool)
        for part in np.unique(self.origin):
            rows = np.flatnonzero(self.origin == part)
            kept[rows] = ~held_out(self.group[rows], seed)
        return replace(self, kept=kept)

    def scored(self, origin: int, kept: bool = True) -> np.ndarray:
        """Indices of a set's training part, or of its held-out part."""
        return np.flatnonzero((self.origin == origin) & (self.kept == kept))

    def clean(self, kept: bool = True) -> np.ndarray:
        """Indices of the clean photographs of one part."""
        return self.scored(-1, kept)

    def ladder_bases(self) -> np.ndarray:
        """Indices of what degradations begin at: clean photographs and the good ones of the scored, training part."""
        good = (self.origin == 0) & (self.opinion > GOOD) | (self.origin == 1) & (self.opinion > BIQ_GOOD)
        return np.flatnonzero(self.kept & ((self.origin == -1) | good))


def read_pictures(data: Path, seed: int = 0, device: torch.device | str = "cpu") -> Pictures:
    """Decode a data folder and split each of its sets: one group of near-identical pictures in five is held out.

    Args:
        data: folder with pristine/, live-challenge/ and biq2021/ (`mos.csv` there from 0 to 1).
        seed: of the split.
        device: where the pictures are kept.

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: a picture or a table is damaged.
    """
    listed = [(p.path, -1, np.nan) for p in clean_photographs(data)]
    listed += [(p.path, 0, p.mos) for p in scored_photographs(data)]
    listed += [(p.path, 1, p.mos) for p in biq_photographs(data)]
    paths, origin, opinion = zip(*listed, strict=True)
    origin = np.array(origin)
    with ThreadPoolExecutor(THREADS) as pool:
        pictures = list(pool.map(lambda path: to_tensor(read(path)), paths))
    group = np.zeros(len(paths), dtype=int)
    for part in np.unique(origin):
        rows = np.flatnonzero(origin == part)
        group[rows] = thumbnail_groups([pictures[row] for row in rows])
    names = [f"{path.parent.parent.name}/{path.name}" for path in paths]
    opinion = np.array(opinion, np.float32)
    whole = Pictures([p.to(device) for p in pictures], names, origin, opinion, group, np.ones(len(paths), dtype=bool))
    return whole.split(seed)


def crops(pictures: Pictures, rows: np.ndarray, size: int, scale: float, rng: np.random.Generator) -> Tensor:
    """A random square of each picture, mirrored half of the time, (N, 3, size, size) in [0, 1].

    Args:
        pictures: where from.
        rows: (N,) indices.
        size: side of the results, px.
        scale: side of the squares before they are reduced, in units of `size`; less where a picture is smaller.
        rng: decides places and mirroring.
    """
    side = min(round(size * scale), *(min(pictures.images[row].shape[1:]) for row in rows))
    squares = []
    for row in rows:
        image = pictures.images[row]
        y, x = (int(rng.integers(0, extent - side + 1)) for extent in image.shape[1:])
        square = image[:, y : y + side, x : x + side]
        squares.append(square.flip(2) if rng.random() < 0.5 else square)
    batch = torch.stack(squares).float() / 255
    if side == size:
        return batch
    return F.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def whole_squares(pictures: Pictures, rows: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    """Whole pictures, resized to (N, 3, size, size) whatever their shape, mirrored half of the time."""
    squares = [
        F.interpolate(pictures.images[row][None].float() / 255, (size, size), mode="bicubic", antialias=True)
        for row in rows
    ]
    return torch.cat([x.flip(3) if rng.random() < 0.5 else x for x in squares]).clamp(0, 1)
