"""Text on the pictures that a node shows. Needs no ComfyUI."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..images import over_white, to_pil, to_tensor
from .tables import number

SHARE = 20
"""A label's height is this part of the picture's short side."""
SMALLEST = 10
"""Of a label, in pixels."""


def labelled(image: Tensor, text: str) -> Tensor:
    """A picture (H, W, C) in [0, 1] with a line of text in its corner; (H, W, 3). NaN is shown black."""
    picture = to_pil(over_white(image[None].movedim(-1, 1).float().nan_to_num(0.0).clamp(0, 1)))
    write(picture, text)
    return to_tensor(picture)[0].movedim(0, -1)


def ranked_labels(images: Sequence[Tensor], scores: Sequence[float]) -> list[Tensor]:
    """Pictures (H, W, C), best first, each with its rank and score."""
    return [
        labelled(image, f"#{rank} {number(score)}")
        for rank, (image, score) in enumerate(zip(images, scores, strict=True), 1)
    ]


def grid(images: Sequence[Tensor]) -> Image.Image:
    """Pictures (H, W, 3) of one size in about as many rows as columns, from left to right."""
    columns = math.ceil(math.sqrt(len(images)))
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(images):
        sheet.paste(to_pil(image.movedim(-1, 0)), (index % columns * width, index // columns * height))
    return sheet


def write(picture: Image.Image, text: str) -> None:
    """White text on black in the upper left corner, so that it can be read on anything."""
    draw = ImageDraw.Draw(picture)
    size = max(min(picture.size) // SHARE, SMALLEST)
    font = ImageFont.load_default(size)
    corner = (size // 3, size // 3)
    left, top, right, bottom = draw.textbbox(corner, text, font=font)
    pad = size // 4
    draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), fill=(0, 0, 0))
    draw.text(corner, text, fill=(255, 255, 255), font=font)
