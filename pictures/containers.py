"""PNG and JPEG files as a decoder shall see them: the pixels, without the metadata that could get in their way.

Text, comments, EXIF and profiles can be broken or larger than Pillow's limits while the pixels are sound. So the two
formats that carry most of them are opened without them, and what decides about pixels is read here: orientation and
colour profile.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
MOST = 2**24
"""Bytes of a profile, and of EXIF or XMP; what is larger is left alone."""

Span = tuple[int, int]
"""First byte and length."""


class Spans(io.RawIOBase):
    """Some spans of a file, one after the other, as a file of its own."""

    def __init__(self, file: BinaryIO, spans: list[Span]) -> None:
        self.file, self.spans = file, [span for span in spans if span[1]]
        self.ends = list(accumulate(length for _, length in self.spans))
        self.place = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As in any file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.ends[-1] if self.ends else 0}[whence]
        self.place = max(0, start + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        """As in any file; no further than the end of a span."""
        index = bisect_right(self.ends, self.place)
        if index == len(self.spans):
            return 0
        start, length = self.spans[index]
        before = self.place - (self.ends[index] - length)
        self.file.seek(start + before)
        data = self.file.read(min(len(buffer), length - before))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def without_metadata(file: BinaryIO) -> tuple[BinaryIO, dict[str, Any]]:
    """A file for Pillow, and what belongs into its `info`: `exif`, `xmp`, `icc_profile` as far as they are there.

    Args:
        file: of any format; a PNG or JPEG comes back without its metadata, another as it is.
    """
    head = file.read(8)
    metadata: dict[str, Any] = {}
    if head == PNG:
        spans = list(_png(file, metadata))
    elif head[:2] == JPEG:
        spans = list(_jpeg(file, metadata))
    else:
        file.seek(0)
        return file, metadata
    return io.BufferedReader(Spans(file, spans), 2**16), metadata


def _png(file: BinaryIO, metadata: dict[str, Any]) -> Iterator[Span]:
    """Everything but texts, EXIF and profile (PNG specification, third edition, 11.3)."""
    end = file.seek(0, io.SEEK_END)
    yield 0, 8
    place = 8
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP"):
            yield place, min(12 + length, end - place)
        elif length <= MOST:
            _keep_png(kind, file.read(length), metadata)
        place += 12 + length
    yield place, max(0, end - place)


def _keep_png(kind: bytes, body: bytes, metadata: dict[str, Any]) -> None:
    name, _, rest = body.partition(b"\0")
    if kind == b"eXIf":
        metadata["exif"] = body
    elif kind == b"iCCP" and (profile := _inflated(rest[1:])):
        metadata["icc_profile"] = profile
    elif kind == b"iTXt" and name == b"XML:com.adobe.xmp" and rest[:1] == b"\0":
        metadata["xmp"] = rest.split(b"\0", 4)[-1]
    elif name == b"Raw profile type exif":  # as ImageMagick writes it: a line, the length, hexadecimal digits
        text = _inflated(rest[1:]) if kind == b"zTXt" else rest
        digits = b"".join((text or b"").split(b"\n")[3:])
        try:
            metadata.setdefault("exif", bytes.fromhex(digits.decode("ascii")))
        except ValueError:  # no digits: no orientation is to be had
            return


def _inflated(data: bytes) -> bytes | None:
    """Decompressed data; None where it is damaged or larger than `MOST`."""
    try:
        engine = zlib.decompressobj()
        content = engine.decompress(data, MOST)
    except zlib.error:
        return None
    return None if engine.unconsumed_tail else content


def _jpeg(file: BinaryIO, metadata: dict[str, Any]) -> Iterator[Span]:
    """Everything but comments and application segments; JFIF's and Adobe's stay, which say how colours are stored."""
    end = file.seek(0, io.SEEK_END)
    yield 0, 2
    place, profile = 2, []
    while place + 4 <= end:
        file.seek(place)
        head = file.read(4)
        code, length = head[1], int.from_bytes(head[2:], "big")
        if head[0] != 0xFF or code in (0xDA, 0xD9):  # the scan, or nothing that is understood: the rest as it is
            break
        if code in (0x00, 0x01, 0xFF) or 0xD0 <= code <= 0xD8:  # fill bytes, and markers without a segment
            yield place, (step := 1 if code == 0xFF else 2)
            place += step
            continue
        if code in (0xE0, 0xEE) or not (0xE0 <= code <= 0xEF or code == 0xFE):
            yield place, 2 + length
        elif code in (0xE1, 0xE2):
            _keep_jpeg(file.read(length - 2) if length > 2 else b"", metadata, profile)
        place += 2 + max(length, 2)
    if profile:
        metadata["icc_profile"] = b"".join(part[2:] for part in sorted(profile))
    yield min(place, end), max(0, end - place)


def _keep_jpeg(body: bytes, metadata: dict[str, Any], profile: list[bytes]) -> None:
    if body.startswith(b"Exif\0\0"):
        metadata.setdefault("exif", body)
    elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        metadata.setdefault("xmp", body)
    elif body.startswith(b"ICC_PROFILE\0"):
        profile.append(body[12:])  # its number, the number of parts, the part
