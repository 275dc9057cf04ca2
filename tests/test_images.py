"""Pictures in and out: exact values for every kind of file, exact round trips, files complete or not there at all."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from iqguide.images import (
    ImageError,
    atomic_write,
    load_images,
    over_white,
    resize_short_side,
    save_image,
    to_pil,
    to_tensor,
)
from iqguide.pictures.listing import list_pictures


@pytest.fixture
def pixels():
    """(40, 48, 3) uint8: gradients with noise, so that no flip or channel swap goes unseen."""
    y, x = np.mgrid[:40, :48]
    noise = np.random.default_rng(0).integers(0, 30, (40, 48, 3))
    return (np.stack([x * 4, y * 5, 200 - x - y], -1) + noise).astype(np.uint8)


def expected(pixels):
    return torch.from_numpy(pixels.astype(np.float64) / 255).movedim(-1, 0)[None].float()


def png16(path, pixels):
    """Write a 16-bit PNG by the format's definition: Pillow itself cannot write 16-bit RGB."""
    height, width = pixels.shape[:2]
    colour = {1: 0, 3: 2, 4: 6}[pixels.shape[2]]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_path_pil_and_array_give_the_same_exact_values(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), Image.fromarray(pixels), pixels, pixels[None], pixels / 255.0):
        converted = to_tensor(source)
        assert converted.dtype == torch.float32
        torch.testing.assert_close(converted, expected(pixels), rtol=0, atol=1e-7)


def test_grey_palette_and_bilevel_become_rgb(tmp_path, pixels):
    grey = pixels[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    for mode, value in [("L", three), ("1", np.where(three >= 128, 255, 0))]:
        picture = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
        picture.save(tmp_path / f"{mode}.png")
        torch.testing.assert_close(to_tensor(tmp_path / f"{mode}.png"), expected(value))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "p.png")
    colours = np.array(palette.getpalette()).reshape(-1, 3)[np.array(palette)]
    torch.testing.assert_close(to_tensor(tmp_path / "p.png"), expected(colours))
    torch.testing.assert_close(to_tensor(grey), expected(three))


def test_sixteen_bit_grey_keeps_its_precision(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (40, 48, 1))
    png16(tmp_path / "g.png", values)
    converted = to_tensor(tmp_path / "g.png")
    exact = torch.from_numpy(values[..., 0] / 65535).float()
    torch.testing.assert_close(converted, exact.expand(1, 3, -1, -1), rtol=0, atol=1e-7)
    torch.testing.assert_close(to_tensor(values[..., 0].astype(np.uint16)), converted, rtol=0, atol=0)


def test_sixteen_bit_rgb_is_right_to_eight_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (40, 48, 3))
    png16(tmp_path / "c.png", values)
    exact = torch.from_numpy(values / 65535).movedim(-1, 0)[None].float()
    torch.testing.assert_close(to_tensor(tmp_path / "c.png"), exact, rtol=0, atol=1 / 255)


def test_alpha_is_laid_over_white(tmp_path, pixels):
    alpha = np.random.default_rng(1).integers(0, 256, (40, 48, 1)).astype(np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(tmp_path / "rgba.png")
    a = alpha / 255
    over = torch.from_numpy(pixels / 255 * a + 1 - a).movedim(-1, 0)[None].float()
    torch.testing.assert_close(to_tensor(tmp_path / "rgba.png"), over, rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(to_tensor(np.concatenate([pixels, alpha], -1)), over, rtol=0, atol=1e-6)

    Image.fromarray(np.concatenate([pixels[..., :1], alpha], -1)).save(tmp_path / "la.png")
    grey = torch.from_numpy(pixels[..., :1] / 255 * a + 1 - a).movedim(-1, 0)[None].float().expand(-1, 3, -1, -1)
    torch.testing.assert_close(to_tensor(tmp_path / "la.png"), grey, rtol=0, atol=1.01 / 255)


def test_a_transparent_palette_colour_becomes_white(tmp_path, pixels):
    palette = Image.fromarray(pixels).quantize(8)
    index = np.array(palette)
    palette.save(tmp_path / "p.png", transparency=3)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[index]
    colours[index == 3] = 255
    torch.testing.assert_close(to_tensor(tmp_path / "p.png"), expected(colours))


def test_cmyk_follows_the_formula(tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (40, 48, 4)).astype(np.uint8)
    Image.frombytes("CMYK", (48, 40), inks.tobytes()).save(tmp_path / "c.tiff")
    exact = (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255)
    torch.testing.assert_close(
        to_tensor(tmp_path / "c.tiff"), torch.from_numpy(exact).movedim(-1, 0)[None].float(), rtol=0, atol=1.01 / 255
    )


def test_exif_orientation_is_applied(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(to_tensor(tmp_path / "turned.png"), expected(np.rot90(pixels, -1).copy()))


def test_an_animation_gives_its_first_frame(tmp_path, pixels):
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    torch.testing.assert_close(to_tensor(tmp_path / "a.png"), expected(pixels))


def test_load_images_makes_one_batch(tmp_path, pixels):
    for name, picture in [("a", pixels), ("b", 255 - pixels)]:
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    batch = load_images(tmp_path / "a.png", tmp_path / "b.png")
    torch.testing.assert_close(batch, torch.cat([expected(pixels), expected(255 - pixels)]))
    assert load_images(tmp_path / "a.png", size=80).shape == (1, 3, 80, 96)


def test_a_tensor_passes_through_with_its_gradient():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert to_tensor(images) is images
    half = torch.rand(2, 3, 8, 8).bfloat16()
    assert to_tensor(half).dtype == torch.float32


def test_resizing_is_antialiased_differentiable_and_bounded():
    checker = (torch.arange(64)[:, None] + torch.arange(96)[None]) % 2
    small = resize_short_side(checker.float().expand(1, 3, -1, -1), 16)
    assert small.shape == (1, 3, 16, 24)
    # Without antialiasing a checkerboard would alias to black or white; its mean is grey.
    torch.testing.assert_close(small, torch.full_like(small, 0.5), rtol=0, atol=0.02)

    images = torch.rand(2, 3, 20, 30, requires_grad=True)
    large = resize_short_side(images, 33)
    assert large.shape == (2, 3, 33, 50)
    assert large.min() >= 0
    assert large.max() <= 1
    assert torch.autograd.grad(large.sum(), images)[0].abs().min() > 0

    assert resize_short_side(images, 20) is images
    assert resize_short_side(images, 40, enlarge=False) is images


def test_tensor_to_pil_rounds_to_the_nearest_level(pixels):
    np.testing.assert_array_equal(np.asarray(to_pil(expected(pixels))), pixels)
    np.testing.assert_array_equal(
        np.asarray(to_pil(expected(pixels)[0] + 0.4 / 255 * (expected(pixels)[0] < 0.9))), pixels
    )


def test_save_and_load_are_exact_and_keep_metadata(tmp_path, pixels):
    save_image(expected(pixels), tmp_path / "a.png", metadata={"prompt": "a cat, größer", "seed": "7"})
    torch.testing.assert_close(load_images(tmp_path / "a.png"), expected(pixels), rtol=0, atol=0)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "a cat, größer", "seed": "7"}
    save_image(Image.fromarray(255 - pixels), tmp_path / "a.png")
    torch.testing.assert_close(load_images(tmp_path / "a.png"), expected(255 - pixels))
    assert os.listdir(tmp_path) == ["a.png"]


def test_save_refuses_what_it_cannot_keep(tmp_path, pixels):
    with pytest.raises(ImageError, match=r"name it a\.png"):
        save_image(expected(pixels), tmp_path / "a.jpg", metadata={"seed": "7"})
    with pytest.raises(ImageError, match=r"ends in '\.txt'"):
        save_image(expected(pixels), tmp_path / "a.txt")
    with pytest.raises(OSError, match="cannot write"):
        save_image(expected(pixels), tmp_path / "no such folder" / "a.png")
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, sys, torch
from iqguide.images import save_image
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_image(torch.rand(3, 64, 64), sys.argv[1])
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limit to run into")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_a_write_that_the_system_cuts_off_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    save_image(torch.zeros(3, 32, 32), path)
    before = path.read_bytes()
    result = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"cannot write {path}: ")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.data
def test_every_photograph_of_the_data_folder_loads(data_dir):
    paths = list_pictures([data_dir / "tid2013-6ref"]).files[:30]
    assert len(paths) == 30
    for path in paths:
        image = to_tensor(path)
        with Image.open(io.BytesIO(path.read_bytes())) as reference:
            assert image.shape == (1, 3, reference.height, reference.width)
            array = np.asarray(reference.convert("RGB"))
        torch.testing.assert_close(image, expected(array))


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path):
    pipe = tmp_path / "scores.csv"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    got = []
    reader.start()
    atomic_write(pipe, b"0.5")
    reader.join()
    assert got == [b"0.5"]
    assert pipe.is_fifo()
    link, target = tmp_path / "link.csv", tmp_path / "target.csv"
    link.symlink_to(target)
    atomic_write(link, b"0.6")
    assert link.is_symlink()
    assert target.read_bytes() == b"0.6"


def test_transparency_is_one_rule_for_files_arrays_and_batches(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    batch = torch.from_numpy(pixels / 255).float().movedim(-1, 0)[None]
    torch.testing.assert_close(over_white(batch), load_images(tmp_path / "a.png"), rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(over_white(batch), to_tensor(pixels), rtol=0, atol=1e-6)
    assert torch.equal(over_white(batch[:, :1]), batch[:, :1].expand(-1, 3, -1, -1))
