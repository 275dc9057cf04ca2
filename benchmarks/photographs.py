"""Clean 128-pixel crops of photographs, and the fifth of the photographs that no judge is fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 128


def split(data: Path) -> tuple[list[Path], list[Path]]:
    """Clean photographs of DATA/pristine: those to fit on, and every fifth of a seeded permutation, kept aside."""
    paths = sorted((data / "pristine" / "images").glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{data} has no pristine/images/*.jpg; give --data the folder that holds pristine/.")
    order = np.random.default_rng(20).permutation(len(paths))
    held_out = set(order[::5].tolist())
    return [p for i, p in enumerate(paths) if i not in held_out], [p for i, p in enumerate(paths) if i in held_out]


def crops(path: Path, count: int, rng: np.random.Generator, *, scales: bool = True) -> Iterator[Image.Image]:
    """Random square crops, SIZE x SIZE.

    Args:
        scales: the side is log-uniform from SIZE to the photograph's short side and resampled to SIZE (Lanczos), which
            is what the demo generator learns from; else the crop is at native size, untouched.
    """
    with Image.open(path) as file:
        photo = file.convert("RGB")
    for _ in range(count):
        side = round(math.exp(rng.uniform(math.log(SIZE), math.log(min(photo.size))))) if scales else SIZE
        x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
        box = (x, y, x + side, y + side)
        yield photo.crop(box) if side == SIZE else photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)


def to_tensor(images: list[Image.Image] | list[np.ndarray]) -> Tensor:
    """RGB images of one size -> (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 255


def clean_crops(paths: list[Path], per_photo: int, seed: int, *, scales: bool = True) -> Tensor:
    """(len(paths) * per_photo, 3, SIZE, SIZE) in [0, 1]."""
    rng = np.random.default_rng(seed)
    return to_tensor([crop for path in paths for crop in crops(path, per_photo, rng, scales=scales)])
