"""Colour profiles (ICC): what a picture's numbers are as sRGB.

Relative colorimetric with black point compensation, as browsers do it. A profile that is sRGB already, to one level of
255, changes nothing at all; one that is broken, or made for another kind of picture, is left alone.
"""

from __future__ import annotations

import functools
import io
from itertools import product

import numpy as np
from PIL import Image, ImageCms

LATTICE = range(0, 256, 51)
NOOPTIMIZE, BLACKPOINTCOMPENSATION = 0x0100, 0x2000  # of LittleCMS; Pillow has names for them from 10.3 on


@functools.lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from pictures of a mode (RGB, RGBA or CMYK) with this profile to RGB or RGBA; None for none."""
    space, target = {"RGB": "RGB ", "RGBA": "RGB ", "CMYK": "CMYK"}[mode], "RGBA" if mode == "RGBA" else "RGB"
    transform = _transform(profile, space, mode, target)
    if transform is None or mode == "CMYK":
        return transform
    probe = Image.new(mode, (216, 1))
    probe.putdata([(*colour, 255)[: len(mode)] for colour in product(LATTICE, repeat=3)])
    return transform if _changes(probe, ImageCms.applyTransform(probe, transform)) else None


@functools.lru_cache(maxsize=16)
def grey_curve(profile: bytes) -> np.ndarray | None:
    """The sRGB value (256,) in [0, 1] of each grey level of this profile; None for none."""
    transform = _transform(profile, "GRAY", "L", "RGB", NOOPTIMIZE)  # its tables are coarse in the dark
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    if transform is None:
        return None
    converted = ImageCms.applyTransform(ramp, transform).getchannel("G")
    return np.asarray(converted)[0] / np.float32(255) if _changes(ramp, converted) else None


def _transform(profile: bytes, space: str, mode: str, target: str, flags: int = 0) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.ljust(4) != space:
            return None
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, flags | BLACKPOINTCOMPENSATION
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target, intent, flags)
    except (ImageCms.PyCMSError, OSError):  # no profile that can be used
        return None


def _changes(before: Image.Image, after: Image.Image) -> bool:
    moved = np.asarray(after, dtype=np.int16) - np.asarray(before, dtype=np.int16)
    return bool(np.abs(moved).max() > 1)
