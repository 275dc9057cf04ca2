"""Natural image patches of mixed quality, with words that can be computed from the clean picture.

    python recipes/demo_generator/corpus.py --data DIR --out corpus.npz

Every patch is a 128-pixel crop of a clean photograph at a random scale, most of them wide enough to show what it is a
picture of. About one in three stays clean; the others are blurred, grainy or blocky at a random strength that is plain
to see. The words describe brightness, colour, texture and tint of the patch before it was degraded, so they say nothing
about its quality.

The file holds `images` (N, 3, 128, 128) uint8, `kinds` (N,) as an index into KINDS, and `attributes` (N, 4).
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from iqguide.training import distortions
from iqguide.training.crops import read
from iqguide.training.data import Photograph, clean_photographs, good_photographs, scored_photographs
from iqguide.training.datasets import load_dataset

SIZE = 128
KINDS = ("clean", "blur", "noise", "blocks")
DEGRADATIONS = (  # one row a kind after the first: function, weakest and strongest parameter
    (distortions.gaussian_blur, 1.5, 3.5),
    (distortions.grain, 0.07, 0.16),
    (distortions.jpeg, 14, 4),
)
SHARES = (0.34, 0.22, 0.22, 0.22)  # of the kinds
WORDS = (("dark", "bright"), ("grey", "colourful"), ("smooth", "busy"), ("cool", "warm"))


def attributes(images: torch.Tensor) -> torch.Tensor:
    """Brightness, colourfulness, busyness and warmth of images (N, 3, H, W) in [0, 1] -> (N, 4)."""
    luma = distortions.luma(images)[:, 0]
    chroma = images - luma[:, None]
    busy = (luma.diff(dim=-1).abs().mean((1, 2)) + luma.diff(dim=-2).abs().mean((1, 2)) + 1e-3).log()
    warm = (images[:, 0] - images[:, 2]).mean((1, 2))
    return torch.stack([luma.mean((1, 2)), chroma.abs().mean((1, 2, 3)), busy, warm], 1)


def photographs(data: Path) -> list[Photograph]:
    """The clean photographs, and the better ones of the human-scored (which are reduced before use)."""
    scored = scored_photographs(data)
    if (data / "biq2021").is_dir():
        laboratory = load_dataset("csv", data / "biq2021" / "mos.csv", (0, 1))
        scored += [Photograph(sample.image, 100 * sample.mos) for sample in laboratory]
    good = good_photographs(scored)
    return clean_photographs(data) + sorted(good, key=lambda photograph: photograph.path)


def crop(photograph: Photograph, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random square crops, from SIZE (of a scored photograph: half of it) to the whole, resampled to SIZE."""
    photo = read(photograph.path)
    short = min(photo.size)
    least = SIZE if photograph.mos is None else max(SIZE, short / 2)
    patches = []
    while len(patches) < count:
        side = int(np.exp(rng.uniform(np.log(min(least, short)), np.log(short))))
        x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
        patch = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS, (x, y, x + side, y + side)))
        patches.append(patch[:, ::-1] if rng.random() < 0.5 else patch)
    return patches


def degrade(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrade images by SHARES, each in one way; returns images and kind (N,) as an index into KINDS."""
    n = len(images)
    kind = torch.multinomial(torch.tensor(SHARES), n, replacement=True, generator=generator)
    level = torch.rand(n, generator=generator)
    out = images.clone()
    for k, (function, low, high) in enumerate(DEGRADATIONS, start=1):
        chosen = kind == k
        if chosen.any():
            out[chosen] = function(images[chosen], low + (high - low) * level[chosen], generator)
    return out, kind


def patches_of(numbered: tuple[int, Photograph], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, kinds and attributes of `count` patches of a photograph; its number seeds what is random."""
    number, photograph = numbered
    rng, generator = np.random.default_rng(number), torch.Generator().manual_seed(number)
    clean = torch.from_numpy(np.stack(crop(photograph, count, rng))).permute(0, 3, 1, 2) / 255
    degraded, kind = degrade(clean, generator)
    return (degraded * 255).round().byte().numpy(), kind.numpy(), attributes(clean).numpy()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/ and biq2021/")
    parser.add_argument("--out", type=Path, default=Path("corpus.npz"))
    parser.add_argument("--patches", type=int, default=16, help="per photograph")
    parser.add_argument("--workers", type=int, default=0, help="further processes that do the work")
    args = parser.parse_args(arguments)
    photos, make = photographs(args.data), partial(patches_of, count=args.patches)
    images = np.empty((len(photos) * args.patches, 3, SIZE, SIZE), np.uint8)
    kinds, values = np.empty(len(images), np.int64), np.empty((len(images), len(WORDS)), np.float32)
    order = np.random.default_rng(0).permutation(len(images)).reshape(-1, args.patches)
    with ExitStack() as stack:
        made = map(make, enumerate(photos))
        if args.workers:
            processes = get_context("spawn").Pool(args.workers, torch.set_num_threads, (1,))
            made = stack.enter_context(processes).imap(make, enumerate(photos), chunksize=8)
        for rows, content in zip(order, tqdm(made, desc="photographs", total=len(photos)), strict=True):
            images[rows], kinds[rows], values[rows] = content
    np.savez(args.out, images=images, kinds=kinds, attributes=values)


if __name__ == "__main__":
    main()
