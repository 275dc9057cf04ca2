"""Metadata say how a picture is turned and what its colours are; they never decide whether it is read."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
from picture_files import COLORANTS, chunk, exif, png, profile, tiff, with_segments
from PIL import Image

from iqguide import load_images
from iqguide.images import ImageError, to_tensor
from iqguide.pictures.orientation import exif_orientation

TURNS = {  # EXIF 2.32, 4.6.5: what to do with the stored rows and columns
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}
ODD = {  # entries that Pillow reads but cannot write again, or cannot read at all
    "negative altitude": (0x8825, 4, 1, (8).to_bytes(4, "little")),
    "text for a resolution": (0x011A, 2, 4, b"72\0\0"),
    "exposure bias -2/0": (0x9204, 10, 1, (2**31).to_bytes(4, "little")),
    "a type that does not exist": (0x010F, 99, 2**31, b"abcd"),
    "beyond the end": (0x010F, 2, 1000, (2**30).to_bytes(4, "little")),
}


@pytest.fixture(scope="module")
def pixels():
    y, x = np.mgrid[:40, :48]
    noise = np.random.default_rng(0).integers(0, 30, (40, 48, 3))
    return (np.stack([x * 4, y * 5, 200 - x - y], -1) + noise).astype(np.uint8)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, 0)[None].float() / 255


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("where", ["PNG eXIf", "PNG text", "PNG XMP", "JPEG", "JPEG XMP", "TIFF", "WebP", "AVIF"])
def test_a_picture_stands_upright_wherever_it_is_said(tmp_path, pixels, orientation, where):
    path, block = tmp_path / "a", exif(orientation, order="<>"[orientation % 2])
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    if where == "PNG eXIf":
        path.write_bytes(png(pixels, 8, chunk(b"eXIf", block[6:])))
    elif where == "PNG text":
        text = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())
        path.write_bytes(png(pixels, 8, chunk(b"zTXt", text)))
    elif where == "PNG XMP":
        path.write_bytes(png(pixels, 8, after=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)))
    elif where == "TIFF":
        path.write_bytes(tiff(pixels, 8, 2, [(0x0112, "H", orientation)]))
    elif where == "WebP":
        path.write_bytes(encoded(pixels, "WEBP", lossless=True, exif=block))
    elif where == "AVIF":
        if ".avif" not in Image.registered_extensions():
            pytest.skip("this Pillow has no AVIF")
        path.write_bytes(encoded(pixels, "AVIF", quality=100, subsampling="4:4:4", exif=block))
    else:
        segment = (0xE1, block if where == "JPEG" else b"http://ns.adobe.com/xap/1.0/\0" + xmp)
        path.write_bytes(with_segments(encoded(pixels, "JPEG", quality=100, subsampling=0), segment))
    lossy = where.startswith("JPEG") or where == "AVIF"
    expected = tensor(TURNS[orientation](pixels))
    assert load_images(path).shape == expected.shape
    torch.testing.assert_close(load_images(path), expected, rtol=0, atol=0.05 if lossy else 1e-7)
    with Image.open(path) as picture:
        torch.testing.assert_close(to_tensor(picture), load_images(path), rtol=0, atol=0)


@pytest.mark.parametrize("oddity", ODD)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_what_else_is_in_the_exif_does_not_matter(tmp_path, pixels, oddity, kind):
    path, turned = tmp_path / "a", np.rot90(pixels, -1)
    if kind == "TIFF":
        tag, _, _, body = ODD[oddity]
        path.write_bytes(tiff(pixels, 8, 2, [(0x0112, "H", 6), (tag, "s", body)]))
    elif kind == "PNG":
        path.write_bytes(png(pixels, 8, chunk(b"eXIf", exif(6, ODD[oddity])[6:])))
    else:
        jpeg = encoded(pixels, "JPEG", quality=100, subsampling=0)
        path.write_bytes(with_segments(jpeg, (0xE1, exif(6, ODD[oddity]))))
    torch.testing.assert_close(load_images(path), tensor(turned), rtol=0, atol=0.05 if kind == "JPEG" else 1e-7)
    assert path.read_bytes().count(b"II*\0") == 1  # the file is as it was


def test_an_exif_block_cut_off_anywhere_is_no_error():
    block = exif(6)
    for end in range(len(block)):
        assert exif_orientation(block[:end]) in (None, 6)
    assert exif_orientation(block) == 6
    assert exif_orientation(exif(9)) is None


HUGE = zlib.compress(bytes(3 * 2**20))
CHUNKS = {
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + HUGE),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + HUGE),
    "damaged text": chunk(b"zTXt", b"Comment\0\0no zlib stream"),
    "much text": chunk(b"tEXt", b"parameters\0" + bytes(2**20)) * 70,
    "a huge profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**25))),
    "a profile of noise": chunk(b"iCCP", b"x\0\0" + zlib.compress(os.urandom(3000))),
    "EXIF of noise": chunk(b"eXIf", os.urandom(3000)),
}


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_no_chunk_of_metadata_stops_a_png(tmp_path, pixels, kind, place):
    (tmp_path / "a.png").write_bytes(png(pixels, 8, **{place: CHUNKS[kind]}))
    torch.testing.assert_close(load_images(tmp_path / "a.png"), tensor(pixels), rtol=0, atol=1e-7)


def test_no_segment_of_metadata_stops_a_jpeg(tmp_path, pixels):
    plain = encoded(pixels, "JPEG")
    (tmp_path / "plain.jpg").write_bytes(plain)
    segments = [(0xFE, bytes(65000))] * 40 + [
        (0xE2, b"ICC_PROFILE\0" + bytes((i, 255)) + bytes(60000)) for i in range(9)
    ]
    segments += [(0xE1, b"Exif\0\0" + os.urandom(500)), (0xE2, b"MPF\0" + os.urandom(100)), (0xED, os.urandom(3000))]
    (tmp_path / "a.jpg").write_bytes(with_segments(plain, *segments))
    assert torch.equal(load_images(tmp_path / "a.jpg"), load_images(tmp_path / "plain.jpg"))


def test_damage_of_pixels_is_still_called_so(tmp_path, pixels):
    for kind in ("PNG", "JPEG"):
        data = encoded(pixels, kind)
        (tmp_path / "a").write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="truncated or damaged"):
            load_images(tmp_path / "a")


# --- colour profiles ---


def decode(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode(values):
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.clip(values, 0, None) ** (1 / 2.4) - 0.055)


def in_srgb(colours, colorants, gamma):
    """The same colours in sRGB by the definition: linear light, both matrices, sRGB's curve; cut to its range."""
    light = decode(colours) if gamma is None else colours**gamma
    matrix = np.linalg.inv(np.array(COLORANTS["srgb"])) @ np.array(COLORANTS[colorants])
    return encode((light @ matrix.T).clip(0, 1))


@pytest.mark.parametrize(("colorants", "gamma"), [("p3", None), ("adobe", 563 / 256), ("srgb", 1.8)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_known_colours_of_other_spaces_become_srgb(tmp_path, colorants, gamma, kind):
    levels = np.array([30, 90, 160, 220], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(8, 8, 3).repeat(8, 0).repeat(8, 1)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    path = tmp_path / "a"
    path.write_bytes(encoded(colours, kind, icc_profile=profile(colorants, gamma), **options))
    expected = torch.from_numpy(in_srgb(colours / 255.0, colorants, gamma)).movedim(-1, 0)[None].float()
    moved = (expected - tensor(colours)).abs().max()
    assert moved > 0.05  # colours that do not change would test nothing
    torch.testing.assert_close(load_images(path), expected, rtol=0, atol=0.012 if kind == "JPEG" else 0.008)


def test_a_red_of_display_p3():
    """The red of sRGB is (0.9175, 0.2003, 0.1386) in Display P3, as CSS Color 4 has it."""
    colours = np.full((40, 40, 3), (234, 51, 35), np.uint8)
    picture = Image.open(io.BytesIO(encoded(colours, "PNG", icc_profile=profile("p3"))))
    assert [round(255 * value) for value in to_tensor(picture)[0, :, 0, 0].tolist()] == pytest.approx(
        [255, 0, 0], abs=3
    )


def test_srgb_stays_bit_identical(tmp_path, pixels):
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = np.concatenate([pixels, pixels[..., :1]], -1)
    for icc in (own, profile("srgb"), b"", b"no profile at all"):
        for values in (pixels, alpha):
            (tmp_path / "a.png").write_bytes(encoded(values, "PNG", icc_profile=icc))
            (tmp_path / "b.png").write_bytes(encoded(values, "PNG"))
            assert torch.equal(load_images(tmp_path / "a.png"), load_images(tmp_path / "b.png"))


def test_a_profile_for_another_kind_of_picture_is_left_alone(tmp_path, pixels):
    (tmp_path / "a.png").write_bytes(encoded(pixels, "PNG", icc_profile=profile(gamma=1.0)))
    torch.testing.assert_close(load_images(tmp_path / "a.png"), tensor(pixels), rtol=0, atol=1e-7)
    (tmp_path / "a.png").write_bytes(encoded(pixels[..., 0], "PNG", icc_profile=profile("p3")))
    torch.testing.assert_close(
        load_images(tmp_path / "a.png"), tensor(pixels[..., :1].repeat(3, -1)), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_linear_grey_becomes_srgb(tmp_path, bits):
    ramp = np.linspace(0, 1, 64)[None].repeat(40, 0)
    top = 2**bits - 1
    values = np.round(ramp * top).astype(np.uint16)
    icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(gamma=1.0)))
    (tmp_path / "a.png").write_bytes(png(values, bits, icc))
    expected = torch.from_numpy(encode(values / top)).float().expand(1, 3, -1, -1)
    torch.testing.assert_close(load_images(tmp_path / "a.png"), expected, rtol=0, atol=0.012)


def test_transparency_stays_with_a_profile(tmp_path):
    colours = np.full((40, 48, 4), (60, 200, 90, 255), np.uint8)
    colours[:, 24:, 3] = 0
    (tmp_path / "a.png").write_bytes(encoded(colours, "PNG", icc_profile=profile("p3")))
    found = load_images(tmp_path / "a.png")[0]
    expected = in_srgb(np.array([60, 200, 90]) / 255, "p3", None)
    assert found[:, 0, 0].tolist() == pytest.approx(expected.tolist(), abs=0.008)
    assert found[:, 0, 40].tolist() == [1, 1, 1]
