"""Draw every ladder of the 24 published distortions, one sheet per group.

python recipes/distortion_ladders.py photo.jpg --out docs/images/distortions
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import iqguide
from iqguide.images import to_pil
from iqguide.training import arniqa_distortions as arniqa

GAP, LABEL = 4, 16  # px


def sheet(image: torch.Tensor, group: str) -> Image.Image:
    side = image.shape[-1]
    ladders = arniqa.GROUPS[group]
    drawn = Image.new("RGB", (6 * (side + GAP) - GAP, len(ladders) * (side + LABEL + GAP)), "white")
    write = ImageDraw.Draw(drawn)
    for row, (name, (_, parameters)) in enumerate(ladders.items()):
        top = row * (side + LABEL + GAP)
        generator = torch.Generator().manual_seed(0)
        degraded = arniqa.distort(image.expand(5, -1, -1, -1), name, torch.arange(5), generator)
        captions = [name, *(f"{value:g}" for value in parameters)]
        for column, (picture, caption) in enumerate(zip([*image, *degraded], captions, strict=True)):
            left = column * (side + GAP)
            write.text((left, top), caption, fill="black", font=ImageFont.load_default(12))
            drawn.paste(to_pil(picture), (left, top + LABEL))
    return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photograph", type=Path, help="its middle is shown")
    parser.add_argument("--out", type=Path, default=Path("distortions"), help="folder of the sheets (%(default)s)")
    parser.add_argument("--side", type=int, default=144, help="pixels of each picture (%(default)s)")
    args = parser.parse_args(arguments)
    image = iqguide.load_images(args.photograph, size=args.side)
    top, left = ((length - args.side) // 2 for length in image.shape[-2:])
    image = image[..., top : top + args.side, left : left + args.side]
    args.out.mkdir(parents=True, exist_ok=True)
    for group in arniqa.GROUPS:
        sheet(image, group).save(args.out / f"{group}.jpg", quality=85)


if __name__ == "__main__":
    main()
