"""What the samples of a file mean is read from the file: one picture, written in every way, has the same values."""

import io

import numpy as np
import pytest
import torch
from picture_files import chunk, png, tiff
from PIL import Image

from iqguide import load_images
from iqguide.images import ImageError, to_tensor

SMIN, SMAX, FORMAT, MAX_SAMPLE, SUBFILE = 340, 341, 339, 281, 254


@pytest.fixture(scope="module")
def shades():
    """(40, 48) in [0, 1], dark at the left: an inverted or a dark reading would show."""
    y, x = np.mgrid[:40, :48]
    return (x / 47) ** 1.5 * (0.6 + 0.4 * y / 39)


def scaled(shades, top, dtype=np.uint16):
    return np.round(shades * top).astype(dtype)


GREYS = {  # name -> (samples, bits, photometric, tags)
    "16 bits": lambda s: (scaled(s, 65535), 16, 1, []),
    "16 bits, white is zero": lambda s: (65535 - scaled(s, 65535), 16, 0, []),
    "12 bits, packed": lambda s: (scaled(s, 4095), 12, 1, []),
    "12 bits in 16": lambda s: (scaled(s, 4095), 16, 1, [(MAX_SAMPLE, "H", 4095)]),
    "10 bits in 16, by the newer tag": lambda s: (scaled(s, 1023), 16, 1, [(SMAX, "H", 1023)]),
    "14 bits in 16, white is zero": lambda s: (16383 - scaled(s, 16383), 16, 0, [(MAX_SAMPLE, "H", 16383)]),
    "the largest sample is mere statistics": lambda s: (scaled(s, 65535), 16, 1, [(MAX_SAMPLE, "H", 50001)]),
    "signed, all of 16 bits": lambda s: (
        (scaled(s, 65535).astype(np.int32) - 32768).astype(np.int16),
        16,
        1,
        [(FORMAT, "H", 2), (SMIN, "i", -32768), (SMAX, "i", 32767)],
    ),
    "signed, from 0": lambda s: (
        scaled(s, 4095, np.int16),
        16,
        1,
        [(FORMAT, "H", 2), (SMIN, "i", 0), (SMAX, "i", 4095)],
    ),
    "32 bits of 1023": lambda s: (scaled(s, 1023, np.uint32), 32, 1, [(MAX_SAMPLE, "I", 1023)]),
    "floating point": lambda s: (s.astype(np.float32), 32, 1, [(FORMAT, "H", 3)]),
    "floating point, white is zero": lambda s: ((1 - s).astype(np.float32), 32, 0, [(FORMAT, "H", 3)]),
    "floating point to 255": lambda s: ((255 * s).astype(np.float32), 32, 1, [(FORMAT, "H", 3), (SMAX, "f", 255)]),
    "floating point, statistics": lambda s: (s.astype(np.float32), 32, 1, [(FORMAT, "H", 3), (SMAX, "f", 0.96)]),
    "8 bits, white is zero": lambda s: (255 - scaled(s, 255, np.uint8), 8, 0, []),
}


@pytest.mark.parametrize("kind", GREYS)
def test_a_grey_tiff_means_what_it_says(tmp_path, shades, kind):
    pixels, bits, photometric, tags = GREYS[kind](shades)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(pixels, bits, photometric, tags))
    step = 1 / 255 if bits == 8 else 1 / 1023
    expected = torch.from_numpy(shades).float().expand(1, 3, -1, -1)
    torch.testing.assert_close(load_images(path), expected, rtol=0, atol=0.51 * step)
    with Image.open(path) as picture:  # and as a PIL picture
        torch.testing.assert_close(to_tensor(picture), load_images(path), rtol=0, atol=0)


@pytest.mark.parametrize("top", [1023, 4095, 40000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_is_read_by_its_maxval(tmp_path, shades, top, plain):
    values = scaled(shades, top)
    if plain:
        content = f"P2\n48 40\n{top}\n".encode() + "\n".join(" ".join(map(str, row)) for row in values).encode()
    else:
        content = f"P5\n48 40\n{top}\n".encode() + values.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(content)
    expected = torch.from_numpy(shades).float().expand(1, 3, -1, -1)
    torch.testing.assert_close(load_images(tmp_path / "a.pgm"), expected, rtol=0, atol=0.51 / top + 1e-5)


REFUSED = {
    "signed without a range": ((np.zeros((40, 48), np.int16), 16, 1, [(FORMAT, "H", 2)]), "signed 16-bit integers"),
    "signed 8 bits": ((np.zeros((40, 48), np.int8), 8, 1, [(FORMAT, "H", 2)]), "signed 8-bit integers"),
    "32 bits without a range": ((np.zeros((40, 48), np.uint32), 32, 1, []), "32-bit integers of unknown range"),
    "a maximum that is no depth": (
        (np.zeros((40, 48), np.uint16), 16, 1, [(MAX_SAMPLE, "H", 4000)]),
        "4000 as its largest sample in 16 bits",
    ),
    "colour of 12 bits in 16": (
        (np.zeros((40, 48, 3), np.uint16), 16, 2, [(MAX_SAMPLE, "H", 4095)]),
        "samples from 0 to 4095 in 16 bits",
    ),
    "floating point of no known range": (
        (np.zeros((40, 48), np.float32), 32, 1, [(FORMAT, "H", 3), (SMAX, "f", 1000.0)]),
        "floating samples from 0 to 1000",
    ),
    "black or white is zero": ((np.zeros((40, 48), np.uint16), 16, None, []), "does not say whether 0 is black"),
    "other inks": ((np.zeros((40, 48, 4), np.uint8), 8, 5, [(332, "H", 2)]), "other inks than CMYK"),
    "colour in floating point": ((np.zeros((40, 48, 3), np.float32), 32, 2, [(FORMAT, "H", [3] * 3)]), "kind that"),
    "a preview alone": ((np.zeros((40, 48), np.uint8), 8, 1, [(SUBFILE, "I", 1)]), "holds only reduced pictures"),
    "a DNG under another name": (
        (np.zeros((40, 48), np.uint8), 8, 1, [(50706, "I", 0x01040000)]),
        "camera raw file.*develop it first, with darktable, RawTherapee or rawpy",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path, kind):
    page, said = REFUSED[kind]
    (tmp_path / "a.tif").write_bytes(tiff(*page))
    with pytest.raises(ImageError, match=rf"a\.tif .*{said}"):
        load_images(tmp_path / "a.tif")


def test_the_picture_of_a_tiff_is_its_first_whole_page(tmp_path, shades):
    small, whole = scaled(shades, 255, np.uint8)[::2, ::2], scaled(shades, 65535)
    preview, mask = (255 - small, 8, 1, [(SUBFILE, "I", 1)]), (np.zeros_like(whole), 16, 1, [(SUBFILE, "I", 4)])
    for pages in ((preview, (whole, 16, 1, [])), (preview, mask, (whole, 16, 1, []))):
        (tmp_path / "a.tif").write_bytes(tiff(*pages[0], pages=pages[1:]))
        expected = torch.from_numpy(shades).float().expand(1, 3, -1, -1)
        torch.testing.assert_close(load_images(tmp_path / "a.tif"), expected, rtol=0, atol=1e-5)


def test_raw_files_are_refused_by_what_they_are(tmp_path):
    (tmp_path / "a.NEF").write_bytes(tiff(np.zeros((40, 48), np.uint8), 8))
    (tmp_path / "a.cr3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100))
    for name in ("a.NEF", "a.cr3"):
        with pytest.raises(ImageError, match=r"camera raw file.*darktable, RawTherapee or rawpy"):
            load_images(tmp_path / name)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_white_at_every_depth(tmp_path, shades, bits):
    top = 2**bits - 1
    values = scaled(shades, top)
    clear = int(values[20, 30])
    (tmp_path / "a.png").write_bytes(png(values, bits, chunk(b"tRNS", clear.to_bytes(2, "big"))))
    expected = np.where(values == clear, 1, values / top)
    loaded = load_images(tmp_path / "a.png")
    torch.testing.assert_close(loaded, torch.from_numpy(expected).float().expand(1, 3, -1, -1), rtol=0, atol=1e-6)
    with Image.open(tmp_path / "a.png") as picture:
        torch.testing.assert_close(to_tensor(picture), loaded, rtol=0, atol=0)


def test_a_transparent_colour_becomes_white_or_is_refused(tmp_path, shades):
    values = np.stack([scaled(shades, 255), scaled(1 - shades, 255), scaled(shades**2, 255)], -1)
    clear, path = values[20, 30], tmp_path / "a.png"
    transparent = chunk(b"tRNS", clear.astype(">u2").tobytes())
    path.write_bytes(png(values, 8, transparent))
    expected = np.where((values == clear).all(-1, keepdims=True), 1, values / 255)
    torch.testing.assert_close(load_images(path), torch.from_numpy(expected).float().movedim(-1, 0)[None])
    path.write_bytes(png(values, 16, transparent))  # which Pillow reads with 8 bits: too few to tell colours apart
    with pytest.raises(ImageError, match=r"a\.png has 16-bit colour with a transparent colour"):
        load_images(path)


def test_the_same_shades_in_memory(shades):
    values = scaled(shades, 65535)
    expected = torch.from_numpy(values / 65535).float().expand(1, 3, -1, -1)
    for picture in (Image.fromarray(values), Image.open(io.BytesIO(png(values, 16)))):
        torch.testing.assert_close(to_tensor(picture), expected, rtol=0, atol=1e-6)
