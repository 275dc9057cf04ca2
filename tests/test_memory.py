"""Memory follows the result: large files, extreme shapes and small files that claim to be large."""

import io
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from picture_files import png
from PIL import Image

from iqguide import load_images
from iqguide.images import ImageError, resize_short_side, to_tensor
from iqguide.pictures import decoding
from iqguide.pictures.opening import MAX_RATIO, check_headers, opened
from iqguide.training.data import clean_photographs
from iqguide.training.evaluate import score_samples
from iqguide.training.sample import Sample

PEAK = """
import resource, sys, torch
from iqguide import load_images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_images(sys.argv[1], size=512)
except ValueError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def gif(width, height):
    """35 bytes that claim to hold a picture of any size."""
    screen = struct.pack("<HH", width, height)
    return b"GIF89a" + screen + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0" + screen + b"\0\x02\x02\x44\x01\0;"


def peak(path):
    """MB that reading a file takes in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux")
def test_peaks_are_those_of_the_decoder(tmp_path):
    """6000x4000: 96 MB decoded, 288 MB as float32; 32x60000 at 512 pixels would be 5.9 GB."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((6000, 4000)).save(tmp_path / "plain.png", compress_level=1)
    Image.fromarray(pixels).resize((6000, 4000)).save(tmp_path / "plain.jpg")
    (tmp_path / "thin.png").write_bytes(png(np.zeros((60000, 32), np.uint8), 8))
    (tmp_path / "claims.gif").write_bytes(gif(9400, 9400))
    assert peak(tmp_path / "plain.png") < 240
    assert peak(tmp_path / "plain.jpg") < 240
    assert peak(tmp_path / "thin.png") < 60
    assert peak(tmp_path / "claims.gif") < 240


@pytest.mark.parametrize("size", [33, 64, 100])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reading_in_strips_is_reading_at_once(tmp_path, monkeypatch, size, orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (61, 97, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    whole = resize_short_side(to_tensor(pixels), size)
    whole = whole if orientation == 1 else whole.mT.flip(-1)
    monkeypatch.setattr(decoding, "STRIP", 97 * 7)
    torch.testing.assert_close(load_images(tmp_path / "a.png", size=size), whole, rtol=0, atol=1e-6)
    if orientation == 1:
        assert torch.equal(load_images(tmp_path / "a.png"), to_tensor(pixels))


def test_a_jpeg_is_decoded_smaller_only_far_above_the_size_that_is_wanted(tmp_path):
    Image.fromarray(np.zeros((512, 800, 3), np.uint8)).save(tmp_path / "a.jpg")
    for size, stored in ((None, 800), (100, 800), (64, 400), (32, 200)):
        with opened(tmp_path / "a.jpg", size) as image:
            assert image.width == stored


def test_one_rule_for_extreme_shapes(tmp_path):
    for width, height, fine in ((40, 40 * MAX_RATIO, True), (40, 40 * MAX_RATIO + 1, False), (3000, 64, False)):
        (tmp_path / "a.png").write_bytes(png(np.zeros((height, width), np.uint8), 8))
        if fine:
            assert load_images(tmp_path / "a.png").shape == (1, 3, height, width)
            continue
        said = f"{width}x{height} pixels; expected a long side of at most 32 times the short one: crop it"
        with pytest.raises(ImageError, match=said):
            load_images(tmp_path / "a.png")
        with pytest.raises(ImageError, match=said):
            resize_short_side(torch.zeros(1, 3, height, width), 512)


@pytest.fixture
def photographs(tmp_path):
    for name, size in (("a", (64, 48)), ("b", (200, 100)), ("c", (64, 48))):
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_limit_is_one_for_scoring_training_and_evaluation_and_found_out_first(photographs, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)

    def model(*_):
        raise AssertionError("something was scored before all headers were looked at")

    samples = [Sample(path, 1.0) for path in sorted(photographs.iterdir())]
    for read in (
        lambda: load_images(photographs / "b.png"),
        lambda: clean_photographs(photographs, photographs),
        lambda: score_samples(model, samples, 512, torch.device("cpu"), full_reference=False),
        lambda: check_headers(sorted(photographs.iterdir())),
    ):
        with pytest.raises(ImageError, match=r"b\.png has more than 10000 pixels; reduce it first"):
            read()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_images(photographs / "b.png").shape == (1, 3, 100, 200)


def test_memory_that_runs_out_is_no_damage(photographs, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "crop", out_of_memory)
    with pytest.raises(MemoryError):
        load_images(photographs / "a.png")
    monkeypatch.undo()
    picture = Image.open(io.BytesIO((photographs / "a.png").read_bytes()))
    monkeypatch.setattr(picture, "load", out_of_memory)
    with pytest.raises(MemoryError):
        to_tensor(picture)


def test_threads_that_read_leave_the_filters_of_warnings_alone(photographs):
    before = list(warnings.filters)
    paths = sorted(photographs.iterdir()) * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: load_images(path).shape, paths))
    assert found[:3] * 20 == found
    assert warnings.filters == before
