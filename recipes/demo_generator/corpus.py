"""Natural image patches of mixed quality, with words that can be computed from the clean picture.

    python recipes/demo_generator/corpus.py --data DIR --out corpus.npz

Every patch is a 128-pixel crop of a clean photograph at a random scale. About one in five stays clean; the others are
blurred or grainy at a random strength that the autoencoder keeps (it draws neither a faint blur nor the blocks of a
codec), grainy more often, because a generator draws fewer grainy pictures than it has seen. The words describe
brightness, colour, texture and tint of the patch before it was degraded, so they say nothing about its quality.

The file holds `images` (N, 3, 128, 128) uint8, `kinds` (N,) as an index into KINDS, and `attributes` (N, 4).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from iqguide.training import distortions
from iqguide.training.crops import read
from iqguide.training.data import Photograph, clean_photographs, good_photographs, scored_photographs

SIZE = 128
KINDS = ("clean", "blur", "noise")
DEGRADATIONS = (  # one row a kind after the first: function, weakest and strongest parameter
    (distortions.gaussian_blur, 2.2, 4.5),
    (distortions.grain, 0.12, 0.22),
)
SHARES = (0.22, 0.3, 0.48)  # of the kinds
WORDS = (("dark", "bright"), ("grey", "colourful"), ("smooth", "busy"), ("cool", "warm"))


def attributes(images: torch.Tensor) -> torch.Tensor:
    """Brightness, colourfulness, busyness and warmth of images (N, 3, H, W) in [0, 1] -> (N, 4)."""
    luma = distortions.luma(images)[:, 0]
    chroma = images - luma[:, None]
    busy = (luma.diff(dim=-1).abs().mean((1, 2)) + luma.diff(dim=-2).abs().mean((1, 2)) + 1e-3).log()
    warm = (images[:, 0] - images[:, 2]).mean((1, 2))
    return torch.stack([luma.mean((1, 2)), chroma.abs().mean((1, 2, 3)), busy, warm], 1)


def photographs(data: Path) -> list[Photograph]:
    """The clean photographs, and the better half of the human-scored ones (which are reduced before use)."""
    good = good_photographs(scored_photographs(data))
    return clean_photographs(data) + sorted(good, key=lambda photograph: photograph.path)


def crop(photograph: Photograph, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random square crops at scales from nearly the whole picture to twice reduced, resampled to SIZE."""
    photo = read(photograph.path)
    short = min(photo.size)
    least = SIZE * (1.0 if photograph.mos is None else 2.0)
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/ and live-challenge/")
    parser.add_argument("--out", type=Path, default=Path("corpus.npz"))
    parser.add_argument("--patches", type=int, default=40, help="per photograph")
    args = parser.parse_args(arguments)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    images, kinds, values = [], [], []
    for photograph in tqdm(photographs(args.data), desc="patches"):
        clean = torch.from_numpy(np.stack(crop(photograph, args.patches, rng))).permute(0, 3, 1, 2) / 255
        degraded, kind = degrade(clean, generator)
        images.append((degraded * 255).round().byte())
        kinds.append(kind)
        values.append(attributes(clean))
    order = torch.randperm(sum(map(len, kinds)), generator=generator)
    np.savez(
        args.out,
        images=torch.cat(images)[order].numpy(),
        kinds=torch.cat(kinds)[order].numpy(),
        attributes=torch.cat(values)[order].numpy(),
    )


if __name__ == "__main__":
    main()
