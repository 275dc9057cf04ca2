"""From a picture that Pillow has opened to upright sRGB numbers, a strip of rows at a time.

What happens to unusual pictures, always the same way:

* Orientation is applied; of an animation the first frame is taken, of a TIFF the first page that is no preview.
* Colour profiles: what is not sRGB becomes sRGB, see `profiles`.
* Grey, palette, 1-bit and CMYK pictures become RGB; grey of 16 bits and floating point keeps its precision.
* Transparent pictures are laid over white.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from . import profiles
from .opening import decoding
from .orientation import orientation_of
from .samples import Samples, samples_of

STRIP = 2**20
"""Pixels that are converted at once: what is in memory beside the decoded file and the result."""


class Picture:
    """A decoded picture: its size in px as stored, its orientation, and its rows on request.

    Args:
        image: what Pillow has opened; it is decoded here.
        name: what messages call it.

    Raises:
        ImageError: its data are damaged, or its samples mean something unknown.
    """

    def __init__(self, image: Image.Image, name: str) -> None:
        self._samples: Samples = samples_of(image, name)
        with decoding(name):
            image.load()
        self.orientation = orientation_of(image)
        self._image, self._profile = image, image.info.get("icc_profile")
        self.width, self.height = image.size

    def strips(self) -> Iterator[np.ndarray]:
        """The rows from top to bottom, as (h, W, 3) uint8, or float32 where 8 bits would not do; black 0, white 1."""
        rows = max(1, STRIP // self.width)
        for top in range(0, self.height, rows):
            bottom = min(top + rows, self.height)
            yield self._converted(self._image.crop((0, top, self.width, bottom)))

    def _converted(self, strip: Image.Image) -> np.ndarray:
        if strip.mode in ("I", "F") or strip.mode.startswith("I;16"):
            return self._precise(np.asarray(strip))
        if self._samples.clear is not None:
            strip.info["transparency"] = self._samples.clear
        return np.asarray(_over_white(strip, self._profile))

    def _precise(self, values: np.ndarray) -> np.ndarray:
        samples = self._samples
        scaled = (values.astype(np.float32) - np.float32(samples.black)) / np.float32(samples.white - samples.black)
        curve = profiles.grey_curve(self._profile) if self._profile else None
        if curve is not None:
            scaled = np.interp(scaled * 255, np.arange(256), curve).astype(np.float32)
        if samples.clear is not None:
            scaled = np.where(values == samples.clear, np.float32(1), scaled)
        return np.repeat(scaled[:, :, None], 3, 2)


def _over_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of 8 bits as RGB in sRGB, laid over white where it is transparent."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image if image.mode != "PA" else image.convert("RGBA")
    transparent = "A" in image.getbands() or "transparency" in image.info
    if profile:
        image = _in_srgb(image, profile, transparent)
    if not transparent:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes, transparent: bool) -> Image.Image:
    if image.mode in ("L", "LA", "1"):
        curve = profiles.grey_curve(profile)
        if curve is None:
            return image
        whole = image.convert("RGBA" if transparent else "RGB")
        table = [round(value * 255) for value in curve.tolist()]
        return whole.point(table * 3 + list(range(256)) * transparent)
    mode = "CMYK" if image.mode == "CMYK" else "RGBA" if transparent else "RGB"
    transform = profiles.to_srgb(profile, mode)
    return image if transform is None else ImageCms.applyTransform(image.convert(mode), transform)
