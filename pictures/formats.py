"""Which files are pictures here: the formats that are opened, their endings, and those that need another tool."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import Image

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
"""Pillow's names of the raster formats that are opened. No other decoder sees a file: no PostScript, no PDF."""

RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2"
    " .srf .srw .x3f".split()
)
"""Endings (lower case) of camera raw files."""

PLUGIN_SUFFIXES = frozenset((".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl"))
"""Endings (lower case) that some installations of Pillow need a plugin for."""

GET_PLUGINS = "needs a plugin of Pillow: pip install iqguide[formats]"
DEVELOP = "a camera raw file, which holds no finished picture: develop it first, with darktable, RawTherapee or rawpy"


@functools.cache
def readable() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow reads, with its plugins for HEIC and JPEG XL where there are any."""
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if importlib.util.find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401 - importing it registers the format
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings (lower case) of the files that are taken from a folder: all of the formats that are read."""
    formats = readable()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats)


def why_not(path: Path) -> str | None:
    """Why a file of this ending is not taken from a folder; None for a picture."""
    suffix = path.suffix.lower()
    if suffix in suffixes():
        return None
    if suffix in RAW_SUFFIXES:
        return DEVELOP
    if suffix in PLUGIN_SUFFIXES:
        return GET_PLUGINS
    return "no picture by its ending"
