"""What the numbers of a picture mean: which is black and which is white, as its file says; never guessed.

| kind | black | white |
|---|---|---|
| 8 bits and fewer, as Pillow delivers them | 0 | 255 |
| 16 bits; 12 bits packed | 0 | 65535; 4095 |
| TIFF, samples that fill fewer bits than they have (MaxSampleValue, SMaxSampleValue) | 0, or -2^n | 2^n - 1 |
| TIFF, floating point | 0 | 1, or 2^n - 1 (SMaxSampleValue) |
| PGM and PPM of any maxval above 255, which Pillow scales | 0 | 65535 |
| TIFF, PhotometricInterpretation WhiteIsZero | the two change places | |

Everything else is refused by name: signed or 32-bit integers without a range, a largest sample that names no number of
bits while the highest bit is unused (it may be the brightest pixel of a dark picture, or a range), a TIFF that does not
say whether 0 is black; and of 16-bit colour, which Pillow reads as 8 bits, what fills fewer bits or is transparent in
one colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..errors import ImageError

BITS, PHOTOMETRIC, MAX_SAMPLE, INK_SET, FORMAT, SMIN, SMAX = 258, 262, 281, 332, 339, 340, 341
WHITE_IS_ZERO, SEPARATED = 0, 5
UNSIGNED, SIGNED, FLOATING = 1, 2, 3


@dataclass(frozen=True)
class Samples:
    """The numbers that stand for black and white in what Pillow delivers, and the one that is transparent."""

    black: float = 0.0
    white: float = 255.0
    clear: int | tuple[int, ...] | None = None
    """In those numbers; one for grey, three for colour."""


def samples_of(image: Image.Image, name: str) -> Samples:
    """What the samples of a picture mean; to be asked before it is decoded: Pillow then forgets how it was stored.

    Raises:
        ImageError: the file does not say it, or says something that cannot be read.
    """
    if hasattr(image, "tag_v2"):
        return _of_tiff(image, name)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Samples(0, 65535, image.info.get("transparency"))
    if image.mode == "F":
        if image.info.get("scale", 1) != 1:
            raise ImageError(f"{name} has the scale {image.info['scale']:g}; expected 1: save it with 8 or 16 bits.")
        return Samples(0, 1)
    if image.mode == "I":
        raise ImageError(f"{name} holds 32-bit integers of unknown range; save it with 8 or 16 bits.")
    return Samples(clear=_clear(image, name))


def _clear(image: Image.Image, name: str) -> int | tuple[int, ...] | None:
    """The transparent colour of 8 bits: Pillow keeps it as the file has it, in 2, 4 or 16, and scales the samples."""
    clear, stored = image.info.get("transparency"), _stored_as(image)
    if isinstance(clear, tuple) and stored == "RGB;16B":
        raise ImageError(f"{name} has 16-bit colour with a transparent colour; save it with an alpha channel.")
    if isinstance(clear, int) and image.mode == "L":
        return clear * {"L;2": 85, "L;4": 17}.get(stored, 1)
    return clear if image.mode in ("L", "RGB") else None


def _stored_as(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""


def _of_tiff(image: Image.Image, name: str) -> Samples:
    tags = image.tag_v2
    photometric = tags.get(PHOTOMETRIC)
    bits, kind = max(_all(tags, BITS, 1)), max(_all(tags, FORMAT, UNSIGNED))
    if photometric is None:
        raise ImageError(f"{name} does not say whether 0 is black (PhotometricInterpretation); save it as PNG.")
    if photometric == SEPARATED and tags.get(INK_SET, 1) != 1:
        raise ImageError(f"{name} is made of other inks than CMYK; save it as RGB.")
    if kind == FLOATING:
        black, white = _float_range(tags, name)
    elif kind == SIGNED:
        black, white = _signed_range(tags, bits, name)
    else:
        black, white = _unsigned_range(tags, bits, name)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Samples(white, black) if photometric == WHITE_IS_ZERO else Samples(black, white)
    if (black, white) == (0, 2**bits - 1):
        return Samples()  # Pillow has scaled, and turned WhiteIsZero round
    raise ImageError(f"{name} holds samples from {black:g} to {white:g} in {bits} bits; save it with all of 8 or 16.")


def _unsigned_range(tags, bits: int, name: str) -> tuple[float, float]:
    """A stated maximum is a range if it names a number of bits; with the highest bit in use it is mere statistics."""
    full, top = 2**bits - 1, max(_all(tags, SMAX, 0) + _all(tags, MAX_SAMPLE, 0))
    if bits > 16 and not top:
        raise ImageError(f"{name} holds {bits}-bit integers of unknown range; save it with 8 or 16 bits.")
    if bits <= 16 and (not top or top >= full // 2 + 1):
        return 0, full
    if not _is_full(top) or top >= 2**31:
        raise ImageError(f"{name} has {top:g} as its largest sample in {bits} bits; save it with all of 8 or 16.")
    return 0, top


def _signed_range(tags, bits: int, name: str) -> tuple[float, float]:
    low, high = min(_all(tags, SMIN, 1)), max(_all(tags, SMAX, 0))
    if low not in (0, -high - 1) or not _is_full(high):
        raise ImageError(f"{name} holds signed {bits}-bit integers of unknown range; save it with 8 or 16 bits.")
    return low, high


def _float_range(tags, name: str) -> tuple[float, float]:
    """[0, 1] unless the file names another; a smaller maximum is that of this picture."""
    low, high = min(_all(tags, SMIN, 0)), max(_all(tags, SMAX, 1))
    if low < 0 or (high > 1 and not _is_full(high)):
        raise ImageError(f"{name} holds floating samples from {low:g} to {high:g}; save it with 8 or 16 bits.")
    return 0, high if high > 1 else 1


def _is_full(top: float) -> bool:
    """Whether a number is the largest of 8 to 32 bits: 255, 1023, 4095, ..."""
    return 255 <= top < 2**32 and float(top).is_integer() and (int(top) + 1) & int(top) == 0


def _all(tags, tag: int, default: float) -> tuple[float, ...]:
    """All values of a tag; what is no number is as good as absent."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(float(v) if tag in (SMIN, SMAX) else int(v) for v in values if _is_number(v)) or (default,)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or hasattr(value, "numerator")
