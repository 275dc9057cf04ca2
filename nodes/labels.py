"""Text on the pictures that a node shows. Knows no host."""

from PIL import Image, ImageDraw
from torch import Tensor

from ..images import to_pil, to_tensor


def labelled(image: Tensor, text: str) -> Tensor:
    """A picture (H, W, C) in [0, 1] with a line of text in its corner; (H, W, 3)."""
    picture = to_pil(image[..., :3].movedim(-1, 0).float().clamp(0, 1))
    write(picture, (4, 4), text)
    return to_tensor(picture)[0].movedim(0, -1)


def write(picture: Image.Image, corner: tuple[int, int], text: str) -> None:
    """White text on black, so that it can be read on anything."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox(corner, text)
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(0, 0, 0))
    draw.text(corner, text, fill=(255, 255, 255))
