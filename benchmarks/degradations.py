"""The degradations that the benchmark's judge learns to tell apart, at a strength from 0 (nothing) to 1 (severe).

Written for the benchmarks with numpy, scipy and Pillow's own codecs; nothing here is shared with the training of the
rewards. Every function takes one RGB image (H, W, 3) float32 in [0, 1], a strength in [0, 1] and a numpy
generator, and returns such an image.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

GREY = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709


def _between(strength: float, weak: float, severe: float) -> float:
    """Geometric interpolation."""
    return weak * (severe / weak) ** strength


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8))


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32) / 255


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian, box, or reduced and enlarged again."""
    way = rng.integers(4)
    if way < 2:
        sigma = _between(strength, 0.55, 4.5)
        return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    if way == 2:
        kernel = np.ones(2 * int(_between(strength, 1, 7) + 0.5) + 1, np.float32)
        rows = ndimage.convolve1d(image, kernel / kernel.size, 0, mode="nearest")
        return ndimage.convolve1d(rows, kernel / kernel.size, 1, mode="nearest")
    h, w, _ = image.shape
    factor = _between(strength, 1.4, 8)
    small = _pillow(image).resize((max(2, round(w / factor)), max(2, round(h / factor))), Image.Resampling.BOX)
    return _array(small.resize((w, h), Image.Resampling.BICUBIC))


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """White or coarse, coloured or grey, even or stronger where it is bright (speckle)."""
    h, w, _ = image.shape
    field = rng.standard_normal((h, w, 1 if rng.random() < 0.5 else 3), np.float32)
    if rng.random() < 0.5:
        width = rng.uniform(0.4, 1.3)
        field = ndimage.gaussian_filter(field, (width, width, 0), mode="wrap")
    field = field / field.std() * _between(strength, 0.012, 0.25)
    return image + field * (image * 1.6 if rng.random() < 0.25 else 1)


def blocks(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Pillow's JPEG; the block grid starts anywhere in half of the cases."""
    dy, dx = rng.integers(0, 8, 2) if rng.random() < 0.5 else (0, 0)
    padded = np.pad(image, ((dy, -dy % 8), (dx, -dx % 8), (0, 0)), mode="reflect")
    file = io.BytesIO()
    _pillow(padded).save(file, "JPEG", quality=round(_between(strength, 45, 2)), subsampling=int(rng.choice([0, 2])))
    return _array(Image.open(file))[dy : dy + image.shape[0], dx : dx + image.shape[1]]


def halos(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Oversharpening: an unsharp mask of a radius from 0.7 to 3 pixels."""
    radius = rng.uniform(0.7, 3)
    detail = image - ndimage.gaussian_filter(image, (radius, radius, 0), mode="nearest")
    return image + _between(strength, 0.5, 9) * detail


def contrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Flattened, or so harsh that it clips."""
    centre = image.mean() if rng.random() < 0.5 else np.float32(0.5)
    factor = _between(strength, 0.75, 0.15) if rng.random() < 0.5 else _between(strength, 1.4, 5)
    return centre + factor * (image - centre)


def garish(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Oversaturated. Less colour is not a degradation here: a grey photograph is a good photograph."""
    grey = (image @ GREY)[..., None]
    return grey + _between(strength, 1.5, 6) * (image - grey)


KINDS = {"blur": blur, "noise": noise, "blocks": blocks, "halos": halos, "contrast": contrast, "garish": garish}
NAMES = ("clean", *KINDS)


def degrade(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Degrade an RGB image (H, W, 3) uint8 and round it to uint8 again, as files are; "clean" returns it as it is."""
    if kind == "clean":
        return image
    degraded = KINDS[kind](image.astype(np.float32) / 255, strength, rng)
    return np.rint(degraded.clip(0, 1) * 255).astype(np.uint8)
