"""Pictures in and out: path | PIL | numpy | tensor  <->  (N, 3, H, W) float32 RGB in [0, 1].

What happens to unusual pictures is always the same, whichever way they come; `pictures.decoding` lists it. Everything
that cannot be read for sure (truncated, not a picture, samples of unknown meaning, NaN) is an `ImageError`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from .errors import ImageError, atomic_write
from .pictures.decoding import Picture
from .pictures.opening import MIN_SIDE, check_side, opened
from .resize import WorkingSize, interpolated, resize_short_side, resized_shape

RANGE_TOLERANCE = 1e-4
"""How far outside [0, 1] rounding may put a value before it is an error."""

FLIPS = {1: (), 2: (-1,), 3: (-1, -2), 4: (-2,), 5: (), 6: (-1,), 7: (-1, -2), 8: (-2,)}
"""Axes to flip for each EXIF orientation, after rows and columns have changed places from 5 on."""


def load_images(*paths: str | os.PathLike, size: int | WorkingSize | None = None) -> Tensor:
    """Read picture files into one batch.

    Memory is that of the result and of one decoded file: files are reduced while they are converted.

    Args:
        paths: one or more files of one size (or of one shape after `size`).
        size: short side in pixels that every picture is resized to (up or down, antialiased), or between which limits;
            None keeps the size.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the CPU.

    Raises:
        ImageError: a file is truncated, is no picture, is smaller than `MIN_SIDE`, has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` or sides further apart than `MAX_RATIO`, or the sizes differ.
        FileNotFoundError: there is no such file.
    """
    if not paths:
        raise ImageError("got no paths; expected at least one picture file.")
    images = [_from_path(os.fspath(path), size, MIN_SIDE) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ImageError(
                f"{os.fspath(path)} is {_size(image)} pixels and {os.fspath(paths[0])} is {_size(images[0])}; one "
                "batch needs one size: load them one by one, or use iqguide.rank, which takes pictures of any sizes."
            )
    return torch.cat(images)


def to_tensor(
    image: str | os.PathLike | Image.Image | np.ndarray | Tensor, size: int | WorkingSize | None = None
) -> Tensor:
    """Convert one picture, or a batch that is a tensor or an array, to the package's layout.

    Args:
        image: a path; a PIL picture of any mode; an array (H, W), (H, W, C) or (N, H, W, C) with C in {1, 3, 4}, uint8,
            uint16 or floating in [0, 1]; or a floating tensor (N, 3, H, W) in [0, 1].
        size: as in `load_images`.

    Returns:
        (N, 3, H, W) float32 in [0, 1]. A tensor stays on its device and keeps its gradient; a float32 tensor is
        returned as it is. Everything else arrives on the CPU.

    Raises:
        ImageError: the picture cannot be read, or has a wrong shape, dtype or range; says what to do.
        FileNotFoundError: there is no such file.
        TypeError: `image` is none of these types.
    """
    if isinstance(image, Tensor):
        check_images(image)
        return resize_short_side(image.float(), size)
    if isinstance(image, np.ndarray):
        return resize_short_side(_from_array(image, "array"), size)
    if isinstance(image, Image.Image):
        return _assembled(Picture(image, f"{image.mode} picture"), f"{image.mode} picture", size)
    if isinstance(image, (str, os.PathLike)):
        return _from_path(os.fspath(image), size)
    raise TypeError(f"got {type(image).__name__}; expected a path, a PIL picture, a numpy array or a tensor.")


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise `ImageError` unless `images` is a floating (N, 3, H, W) tensor with finite values in [0, 1].

    Reads the values, so on an accelerator it waits for the device: for the edges of the package, not for inner loops.

    Args:
        images: what to check; any device.
        name: what the message says of where the values are.

    Raises:
        ImageError: wrong shape, dtype or range, or NaN or infinite values.
    """
    shape = tuple(images.shape)
    expected = f"images have shape {shape}; expected (N, 3, H, W)."
    if images.ndim == 3 and shape[0] == 3:
        raise ImageError(f"{expected} Add a batch dimension: images[None].")
    if images.ndim == 4 and shape[1] != 3 and shape[3] == 3:
        raise ImageError(f"{expected} Move the channels first: images.movedim(-1, 1).")
    if images.ndim != 4 or shape[1] != 3 or 0 in shape:
        raise ImageError(f"{expected} Give a non-empty batch of RGB pictures.")
    if not images.is_floating_point():
        hint = "Divide by 255: images.float() / 255." if images.dtype == torch.uint8 else "Use images.float()."
        raise ImageError(f"images have dtype {images.dtype}; expected floating values in [0, 1]. {hint}")
    low, high = (float(value) for value in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"got NaN or infinite values in {name}; expected [0, 1]: check what made them.")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        hint = "If they are bytes, divide by 255." if high > 1.5 else "If they are in [-1, 1], use images / 2 + 0.5."
        raise ImageError(f"got values from {low:.6g} to {high:.6g} in {name}; expected [0, 1]. {hint}")


def over_white(images: Tensor) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1] as RGB (N, 3, H, W): grey (C 1) is repeated, alpha (C 4) is laid over white."""
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    return images[:, :3] * images[:, 3:4] + (1 - images[:, 3:4]) if images.shape[1] == 4 else images


def to_pil(image: Tensor) -> Image.Image:
    """One picture as an 8-bit RGB PIL picture, rounded to the nearest level.

    Args:
        image: (3, H, W) or (1, 3, H, W), floating in [0, 1], any device.

    Returns:
        The PIL picture.

    Raises:
        ImageError: wrong shape, dtype or range, or more than one picture.
    """
    batch = image[None] if image.ndim == 3 else image
    check_images(batch)
    if len(batch) != 1:
        raise ImageError(f"got {len(batch)} pictures; expected one: [to_pil(image) for image in images].")
    levels = (batch[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """A PIL picture of any mode as an 8-bit RGB one: what `to_tensor` makes of it, rounded to the nearest level.

    Args:
        image: the picture; a file that Pillow has opened may be decoded here.
        name: what messages call it.

    Returns:
        A picture of its own, upright.

    Raises:
        ImageError: as `to_tensor`.
    """
    picture = Picture(image, name)
    strips = list(picture.strips())
    if strips[0].dtype != np.uint8:
        return to_pil(_assembled(picture, name))
    pixels = np.concatenate(strips)
    pixels = pixels.swapaxes(0, 1) if picture.orientation > 4 else pixels
    axes = tuple(axis + 2 for axis in FLIPS[picture.orientation])
    return Image.fromarray(np.ascontiguousarray(np.flip(pixels, axes)))


def save_image(image: Tensor | Image.Image, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write one picture; the file appears complete or not at all, and replaces an older one in one step.

    Args:
        image: a PIL picture, or a tensor (3, H, W) or (1, 3, H, W) in [0, 1].
        path: where to; the ending chooses the format; the folder must exist.
        metadata: text fields (keyword -> text), written into a PNG.

    Raises:
        ImageError: the ending is no known format, or there is metadata for a format other than PNG.
        OSError: the file cannot be written (disk full, no permission, no such folder); nothing is left behind.
    """
    path, kind = Path(path), picture_format(path)
    image = to_pil(image) if isinstance(image, Tensor) else image
    options = {}
    if metadata:
        if kind != "PNG":
            raise ImageError(f"{path} is no PNG; metadata is written into PNG files only: name it {path.stem}.png.")
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in metadata.items():
            options["pnginfo"].add_itxt(key, text)
    encoded = io.BytesIO()
    image.save(encoded, format=kind, **options)
    atomic_write(path, encoded.getvalue())


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that the ending of a path stands for, such as PNG.

    Raises:
        ImageError: the ending is no format that can be written.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ImageError(f"{path} ends in '{Path(path).suffix}'; expected a format that can be written, such as .png.")
    return kind


def _from_path(path: str, size: int | WorkingSize | None, min_side: int = 1) -> Tensor:
    with opened(path, size.most if isinstance(size, WorkingSize) else size) as image:
        if min_side > 1:
            check_side(image.width, image.height, path)
        return _assembled(Picture(image, path), path, size)


def _assembled(picture: Picture, name: str, size: int | WorkingSize | None = None) -> Tensor:
    """(1, 3, H, W) float32 of a picture, resized on the way: columns strip by strip, rows at the end."""
    height, width = picture.height, picture.width
    target = resized_shape(height, width, size)
    image = torch.empty(1, 3, height, target[1])
    top = 0
    for strip in picture.strips():
        rows = _from_array(strip, name)
        image[:, :, top : top + len(strip)] = interpolated(rows, (len(strip), target[1]))
        top += len(strip)
    if target != (height, width):
        image = interpolated(image, target).clamp(0, 1)
    if picture.orientation > 4:
        image = image.mT
    return image.flip(FLIPS[picture.orientation]).contiguous()


def _from_array(pixels: np.ndarray, name: str) -> Tensor:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    batch = pixels[None] if pixels.ndim == 3 else pixels
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or batch.size == 0:
        raise ImageError(
            f"{name} has shape {pixels.shape}; expected (H, W), (H, W, C) or (N, H, W, C), C of 1, 3 or 4."
        )
    if batch.dtype in (np.uint8, np.uint16):
        batch = batch / np.float32(np.iinfo(batch.dtype).max)
    elif not np.issubdtype(batch.dtype, np.floating):
        raise ImageError(f"{name} has dtype {batch.dtype}; expected uint8, uint16 or floating values in [0, 1].")
    images = torch.from_numpy(np.array(batch, dtype=np.float32)).permute(0, 3, 1, 2)  # a copy: the array may change
    images = over_white(images).contiguous()
    check_images(images, name)
    return images


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
