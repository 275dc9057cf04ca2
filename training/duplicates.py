"""Near-identical pictures, which must not stand on both sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from .crops import read

SIDE = 16
ALIKE = 0.95
"""Correlation of two thumbnails above which the pictures count as one."""
COARSE = 12
"""Dimensions in which neighbours are looked for."""


def alike_groups(paths: Sequence[Path]) -> np.ndarray:
    """Number of the group of near-identical pictures that each one is in, (N,): the index of the group's first.

    Two pictures are near-identical when their 16x16 grey thumbnails, standardised, correlate above 0.95; chains of such
    pairs make one group.

    Raises:
        ValueError: a picture cannot be read.
    """
    pictures = (read(path) for path in tqdm(paths, desc="near-identical pictures", unit="picture", delay=1))
    return _groups(thumbnail(picture) for picture in pictures)


def thumbnail_groups(pictures: Sequence[Tensor]) -> np.ndarray:
    """`alike_groups` of pictures (3, H, W) uint8 that are decoded already."""
    return _groups(thumbnail(Image.fromarray(picture.permute(1, 2, 0).numpy())) for picture in pictures)


def thumbnail(picture: Image.Image) -> np.ndarray:
    """256 numbers of mean 0 and length 1: the picture's grey values at 16x16 px, standardised."""
    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64).ravel()
    return (values - values.mean()) / (values.std() + 1e-6) / SIDE


def alike_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Pairs (M, 2) of rows of thumbnails (N, 256) that correlate above `ALIKE`.

    Vectors of length 1 that correlate above c are nearer than sqrt(2 - 2 c), and so are their projections on any
    directions. A tree over the main directions finds these in much less than N^2 comparisons; what it finds is compared
    in full.
    """
    centred = thumbnails - thumbnails.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    coarse = thumbnails @ directions[:, -COARSE:]
    near = cKDTree(coarse).query_pairs(np.sqrt(2 - 2 * ALIKE) + 1e-9, output_type="ndarray")
    full = np.concatenate(
        [np.empty(0), *((thumbnails[a] * thumbnails[b]).sum(1) for a, b in _blocks(near))]
    )  # blocks, as many near pairs do not fit into memory side by side
    return near[full > ALIKE]


def _blocks(pairs: np.ndarray, rows: int = 2**16) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(pairs), rows):
        yield pairs[start : start + rows, 0], pairs[start : start + rows, 1]


def _groups(thumbnails: Iterable[np.ndarray]) -> np.ndarray:
    stack = np.array(list(thumbnails)).reshape(-1, SIDE * SIDE)
    if not len(stack):
        return np.empty(0, dtype=int)
    rows, columns = alike_pairs(stack).T.astype(np.int32)  # older scipy takes no larger indices here
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(stack), len(stack)))
    label = connected_components(links, directed=False)[1]
    return np.unique(label, return_index=True)[1][label]
