"""Picture files made by their formats' definitions, byte by byte: what Pillow itself cannot or would not write."""

import struct
import zlib

import numpy as np

TIFF_TYPES = {"H": 3, "I": 4, "i": 9, "f": 11, "s": 2}
CODES = {8: "B", 16: "H", 32: "I"}


def tiff(pixels, bits, photometric=1, tags=(), pages=(), order="<"):
    """A TIFF of one strip, or of several pages.

    Args:
        pixels: (H, W) or (H, W, C); 12 bits are packed.
        bits: per sample.
        photometric: PhotometricInterpretation; None leaves it out.
        tags: (tag, type as in struct, value or values).
        pages: (pixels, bits, photometric, tags) of the pages after this one.
        order: "<" or ">".
    """
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for page in ((pixels, bits, photometric, tags), *pages):
        link = _append_page(content, link, order, *page)
    return bytes(content)


def _append_page(content, link, order, pixels, bits, photometric, tags):
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = packed(pixels, bits, order)
    entries = [(256, "I", width), (257, "I", height), (258, "H", [bits] * channels), (259, "H", 1)]
    entries += [(262, "H", photometric)] if photometric is not None else []
    entries += [(273, "I", len(content)), (277, "H", channels), (278, "I", height), (279, "I", len(data)), *tags]
    content += data + b"\0" * (len(data) % 2)
    struct.pack_into(f"{order}I", content, link, len(content))
    start, extra = len(content), b""
    beyond = start + 2 + 12 * len(entries) + 4
    content += struct.pack(f"{order}H", len(entries))
    for tag, kind, value in sorted(entries, key=lambda entry: entry[0]):
        values = [value] if isinstance(value, (int, float, bytes)) else list(value)
        body = values[0] if kind == "s" else struct.pack(f"{order}{len(values)}{kind}", *values)
        count = len(body) if kind == "s" else len(values)
        if len(body) > 4:
            place, extra = beyond + len(extra), extra + body + b"\0" * (len(body) % 2)
            body = struct.pack(f"{order}I", place)
        content += struct.pack(f"{order}HHI", tag, TIFF_TYPES[kind], count) + body.ljust(4, b"\0")
    content += bytes(4) + extra
    return beyond - 4


def packed(pixels, bits, order="<"):
    """Samples as a TIFF stores them."""
    if bits == 12:
        flat = pixels.reshape(pixels.shape[0], -1).astype(np.uint32)
        a, b = flat[:, 0::2], flat[:, 1::2]
        return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    return pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()


def chunk(kind, body):
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels, bits, before=b"", after=b""):
    """A PNG of any bit depth, grey (H, W) or colour (H, W, 3 or 4).

    Args:
        pixels: whole numbers.
        bits: 1, 2, 4, 8 or 16.
        before: chunks between header and data.
        after: chunks after the data.
    """
    height, width = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else {3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + _row(row, bits) for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def _row(row, bits):
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    digits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(digits.ravel()).tobytes()


def with_segments(jpeg, *segments):
    """A JPEG with segments (marker, body) right after its first two bytes."""
    return jpeg[:2] + b"".join(bytes((255, m)) + struct.pack(">H", len(b) + 2) + b for m, b in segments) + jpeg[2:]


def exif(orientation, *tags, order="<"):
    """An EXIF block with an orientation and raw entries (tag, type, count, four bytes)."""
    entries = [(0x0112, 3, 1, struct.pack(f"{order}HH", orientation, 0)), *tags]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + head + b"".join(struct.pack(f"{order}HHI", *e[:3]) + e[3] for e in entries) + bytes(4)


COLORANTS = {  # adapted to D50, columns red, green, blue (the ICC's own registrations)
    "srgb": ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410)),
    "p3": ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)),
    "adobe": ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)),
}


def profile(colorants=None, gamma=None):
    """An ICC profile (version 2.1): RGB with three colorants, or grey without; sRGB's curve where there is no gamma."""
    curve = b"curv" + bytes(4)
    if gamma is None:
        x = np.arange(1024) / 1023
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        curve += struct.pack(">I1024H", 1024, *np.round(linear * 65535).astype(int))
    else:
        curve += struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78), b"wtpt": _xyz(0.9642, 1, 0.8249)}
    if colorants is None:
        tags[b"kTRC"] = curve
    else:
        columns = zip(*COLORANTS[colorants], strict=True)
        tags |= {name: _xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    space = b"RGB " if colorants else b"GRAY"
    head = bytes(8) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head = head.ljust(64, b"\0") + struct.pack(">I3i", 0, 63190, 65536, 54061)
    whole = head.ljust(128, b"\0") + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def _xyz(*values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
