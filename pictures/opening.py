"""Opening a picture file: what is allowed, how large it may be, and which of its pages is the picture."""

from __future__ import annotations

import math
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from .containers import without_metadata
from .formats import DEVELOP, GET_PLUGINS, PLUGIN_SUFFIXES, RAW_SUFFIXES, readable, suffixes
from .orientation import keep_orientation_alone

MIN_SIDE = 32
"""Shortest side in pixels that a picture may have: below it no quality model has anything to look at."""

MAX_RATIO = 32
"""How many times longer than the short side the long side of a picture may be."""

DRAFT = 4
"""A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves this many times the size that is wanted, or more."""

NEW_SUBFILE_TYPE, SUBFILE_TYPE, DNG_VERSION = 254, 255, 50706
REDUCED_OR_MASK = 1 | 4
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextmanager
def opened(path: str | os.PathLike[str], short_side: int | None = None) -> Iterator[Image.Image]:
    """A picture file whose header has been read and checked; it is decoded when its pixels are asked for.

    Args:
        path: the file.
        short_side: to which the picture will be reduced, in px: a JPEG may be decoded smaller then, see `DRAFT`.

    Raises:
        ImageError: no regular file, no picture of a format that is read here, a camera raw file, more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`, or sides further apart than `MAX_RATIO`.
        FileNotFoundError: there is no such file.
    """
    name = os.fspath(path)
    mode = os.stat(name).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # to open a pipe would wait for somebody who writes
        raise ImageError(f"{name} is a pipe or a device; expected a file: save the picture first.")
    with open(name, "rb") as file:
        image = _opened(file, name)
        _check_shape(image, name)
        if short_side and image.format == "JPEG":
            width, height = image.size
            scale = DRAFT * short_side / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        yield image


def check_headers(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Find out from the headers alone, before long work begins, which picture could not be read, or is too small.

    Raises:
        ImageError: as `opened`, or a side below `MIN_SIDE`; names the first such file.
        OSError: a file cannot be opened.
    """
    for path in paths:
        with opened(path) as image:
            check_side(image.width, image.height, path)


def check_side(width: int, height: int, name: str | os.PathLike[str]) -> None:
    """Raise `ImageError` if a side is below `MIN_SIDE`."""
    if min(width, height) < MIN_SIDE:
        size = f"{os.fspath(name)} is {width}x{height} pixels"
        raise ImageError(f"{size}; a quality score needs at least {MIN_SIDE} on the short side.")


def check_ratio(width: int, height: int, name: str) -> None:
    """Raise `ImageError` if the sides are further apart than `MAX_RATIO`; smaller than `MIN_SIDE` is another matter."""
    if max(width, height) > MAX_RATIO * max(min(width, height), MIN_SIDE):
        raise ImageError(
            f"{name} is {width}x{height} pixels; expected a long side of at most {MAX_RATIO} times the short one: crop "
            "it."
        )


def damaged(name: str, error: Exception) -> ImageError:
    """What is said of pixels that cannot be decoded."""
    return ImageError(f"{name} cannot be decoded ({error}); it is truncated or damaged: get the file again.")


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises of damaged data, almost any type, into an `ImageError`; memory that ran out is none.

    Pillow's warnings of metadata and of its own pixel limit, for which there is an error here, are not shown.
    """
    with _without_warnings():
        try:
            yield
        except (MemoryError, ImageError):
            raise
        except Exception as error:
            raise damaged(name, error) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow's warnings are not shown, in the main thread: the filters are those of the process, not of a thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(file: BinaryIO, name: str) -> Image.Image:
    shown, metadata = without_metadata(file)
    with decoding(name):
        try:
            image = Image.open(shown, formats=readable())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(name) from error
        except (UnidentifiedImageError, KeyError) as error:  # KeyError: a compression that Pillow does not have
            raise ImageError(_not_read(file, name)) from error
        image.info |= metadata
        if image.format == "TIFF":
            _check_raw(image, file, name)
            _find_page(image, name)
            keep_orientation_alone(image)
    return image


def _check_shape(image: Image.Image, name: str) -> None:
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name)
    check_ratio(width, height, name)


def _too_large(name: str) -> ImageError:
    return ImageError(
        f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels; reduce it first, or raise PIL.Image.MAX_IMAGE_PIXELS "
        "if you trust it."
    )


def _not_read(file: BinaryIO, name: str) -> str:
    """Why no decoder took a file."""
    file.seek(0)
    head = file.read(4)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in RAW_SUFFIXES and head:
        return f"{name} is {DEVELOP}."
    if suffix in PLUGIN_SUFFIXES and suffix not in suffixes():
        return f"{name} {GET_PLUGINS}."
    if head in TIFF:
        return f"{name} is a TIFF that is cut off, or of a kind that Pillow does not read; save it as 8- or 16-bit PNG."
    return f"{name} is not a picture of a format that is read here (PNG, JPEG, TIFF, WebP, ...); check the file."


def _check_raw(image: Any, file: BinaryIO, name: str) -> None:
    file.seek(8)
    raw = file.read(2) == b"CR" or DNG_VERSION in image.tag_v2
    if raw or os.path.splitext(name)[1].lower() in RAW_SUFFIXES:
        raise ImageError(f"{name} is {DEVELOP}.")


def _find_page(image: Any, name: str) -> None:
    """Go to the first page that is a picture of its own, and no reduced one or mask (TIFF 6.0, NewSubfileType)."""
    page = 0
    while image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED_OR_MASK or image.tag_v2.get(SUBFILE_TYPE, 1) == 2:
        page += 1
        try:
            image.seek(page)
        except EOFError as error:
            raise ImageError(
                f"{name} holds only reduced pictures; if it is a camera raw file, develop it first, with darktable, "
                "RawTherapee or rawpy."
            ) from error
        except (SyntaxError, KeyError) as error:
            raise ImageError(
                f"{name} begins with a reduced picture, and Pillow does not read the whole one."
            ) from error
