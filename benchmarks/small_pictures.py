"""How small a picture may be: clean photographs reduced to a side, scored as they are and enlarged again.

python benchmarks/small_pictures.py --data DIR

Prints for each side and enlargement the median score of the clean photographs, and how often a clean one scores higher
than a degraded one.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from iqguide import create_model
from iqguide.images import resize_short_side, to_tensor
from iqguide.training.crops import read
from iqguide.training.data import clean_photographs

SIDES, ENLARGED = (32, 48, 64, 96, 128, 192, 256), (None, 64, 96, 128, 192, 256)


def jpeg(picture: Image.Image) -> Image.Image:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=15)
    return Image.open(encoded)


def noise(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture) + np.random.default_rng(0).normal(0, 25, (picture.height, picture.width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


KINDS = {
    "clean": lambda picture: picture,
    "JPEG 15": jpeg,
    "blur 1.5": lambda picture: picture.filter(ImageFilter.GaussianBlur(1.5)),
    "noise 25": noise,
}


def square(path: Path) -> Image.Image:
    """The middle of a photograph."""
    picture = read(path)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["tiny", "bpclip-mini"])
    parser.add_argument("--photographs", type=int, default=30)
    args = parser.parse_args(arguments)
    models = {name: create_model(name) for name in args.models}
    photographs = clean_photographs(args.data)
    step = max(1, len(photographs) // args.photographs)
    squares = [square(photograph.path) for photograph in photographs[::step][: args.photographs]]
    for side in SIDES:
        reduced = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in squares]
        for enlarged in (to for to in ENLARGED if to is None or to > side):
            shown = {
                kind: resize_short_side(torch.cat([to_tensor(degrade(picture)) for picture in reduced]), enlarged)
                for kind, degrade in KINDS.items()
            }
            for name, model in models.items():
                clean, *worse = (torch.cat([model(part) for part in images.split(10)]) for images in shown.values())
                wins = " ".join(f"{(clean[:, None] > other).float().mean():.2f}" for other in worse)
                print(f"{name:<12} {side:>4} px enlarged to {enlarged or '-':<4} {clean.median():.3f}   {wins}")


if __name__ == "__main__":
    main()
