"""How a picture is turned to stand upright: all that is wanted of EXIF and XMP, read alone, and nothing rewritten."""

from __future__ import annotations

import re
import struct

from PIL import Image

ORIENTATION = 0x0112
UPRIGHT = 1
XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")


def orientation_of(image: Image.Image) -> int:
    """The orientation, 1 to 8 as in EXIF, that a picture still has to be turned by.

    A TIFF, HEIC or JPEG XL file is turned by its decoder.
    """
    if image.format in ("TIFF", "HEIF", "JXL"):
        return UPRIGHT
    orientation = exif_orientation(_bytes(image.info.get("exif"))) or exif_orientation(_raw_profile(image))
    if orientation is None:
        match = XMP.search(_bytes(image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")) or _xmp_of_jpeg(image))
        orientation = int(match[1]) if match else UPRIGHT
    return orientation


def exif_orientation(exif: bytes) -> int | None:
    """The tag Orientation of an EXIF block; None where there is none, or none that means something.

    Looks at nothing else, so whatever else the block holds cannot get in the way (EXIF 2.32, 4.5 and 4.6.2).
    """
    body = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", body, 4)
        (count,) = struct.unpack_from(f"{order}H", body, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", body, place)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), body, place + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:  # no byte order, or cut off
        pass
    return None


def keep_orientation_alone(image: Image.Image) -> None:
    """Take everything else out of the EXIF of a TIFF, which Pillow reads again, and may fail on, while it decodes."""
    exif = image.getexif()
    for tag in [tag for tag in exif if tag != ORIENTATION]:
        del exif[tag]


def _xmp_of_jpeg(image: Image.Image) -> bytes:
    """XMP among the segments of a JPEG, which older versions of Pillow do not put into `info`."""
    segments = [body for name, body in getattr(image, "applist", ()) if name == "APP1"]
    return next((body for body in segments if body.startswith(b"http://ns.adobe.com/xap/1.0/\0")), b"")


def _raw_profile(image: Image.Image) -> bytes:
    """EXIF that ImageMagick writes into the texts of a PNG, as hexadecimal digits after three lines."""
    text = image.info.get("Raw profile type exif")
    digits = "".join(text.split("\n")[3:]) if isinstance(text, str) else ""
    return bytes.fromhex(digits) if re.fullmatch(r"(?:[0-9a-fA-F]{2})*", digits) else b""


def _bytes(value: object) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""
