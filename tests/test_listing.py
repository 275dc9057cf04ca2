"""One walker for every listing: what is taken, what is left out and said, and that it always comes to an end."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from iqguide import cli, load_images
from iqguide.images import ImageError
from iqguide.pictures import formats, opening
from iqguide.pictures.listing import list_pictures
from iqguide.training.data import clean_photographs

RANDOM = ["--weights", "random", "--device", "cpu"]


def write(path, kind="PNG", size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def folder(tmp_path):
    """Pictures of many endings, and much that is none."""
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    folder = tmp_path / "pictures"
    endings = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".png": "PNG", ".avif": "AVIF", ".qoi": "QOI"}
    for ending, kind in endings.items():
        write(folder / f"a{ending}", kind)
    write(folder / "inside" / "deep" / "b.webp", "WEBP")
    write(tmp_path / "elsewhere" / "c.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    (folder / "inside" / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "named.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    for name in ("._a.png", ".hidden.jpg", "notes.txt", "table.csv", "photo.dng", "paper.pdf", "drawing.eps"):
        (folder / name).write_bytes(b"x")
    return folder


def names(listing, folder):
    return [path.relative_to(folder).as_posix() for path in listing.files]


def test_everything_that_pillow_reads_is_taken_and_the_rest_is_named(folder):
    listing = list_pictures([folder])
    taken = ["a.JPG", "a.avif", "a.jfif", "a.jpe", "a.png", "a.qoi", "inside/deep/b.webp", "link.png", "linked/c.png"]
    assert names(listing, folder) == taken
    left_out = {reason: sorted(path.name for path in paths) for reason, paths in listing.left_out.items()}
    assert left_out == {
        "hidden": ["._a.png", ".hidden.jpg"],
        "a link to nothing": ["gone.png"],
        "a pipe or a device": ["pipe.png"],
        "a folder that is listed already": ["loop"],
        "no picture by its ending": ["drawing.eps", "notes.txt", "paper.pdf", "table.csv"],
        formats.DEVELOP: ["photo.dng"],
    }
    assert any(
        "left out 4 (no picture by its ending): " in line and "and 1 more." in line for line in listing.remarks()
    )
    flat = list_pictures([folder], recursive=False)
    assert names(flat, folder) == [name for name in taken if "/" not in name]
    assert sorted(path.name for path in flat.left_out["a folder inside, not searched"]) == [
        "inside",
        "linked",
        "named.png",
    ]


def test_plugins_bring_their_endings(folder, monkeypatch):
    monkeypatch.setattr(formats, "suffixes", lambda: frozenset([".png"]))  # a Pillow without AVIF, and no plugin
    write(folder / "d.heic", "PNG")
    left_out = list_pictures([folder], recursive=False).left_out
    assert sorted(path.name for path in left_out[formats.GET_PLUGINS]) == ["a.avif", "d.heic"]
    assert "pip install iqguide[formats]" in formats.GET_PLUGINS
    monkeypatch.setattr(opening, "suffixes", formats.suffixes)
    (folder / "e.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ImageError, match=r"e\.heic .*pip install iqguide\[formats\]"):
        load_images(folder / "e.heic")


@pytest.mark.parametrize(
    ("module", "kind", "ending"), [("pillow_heif", "HEIF", ".heic"), ("pillow_jxl", "JXL", ".jxl")]
)
def test_files_of_the_plugins_are_read(tmp_path, module, kind, ending):
    pytest.importorskip(module)
    assert ending in formats.suffixes()
    pixels = np.full((64, 48, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{ending}", kind, quality=95)
    image = load_images(tmp_path / f"a{ending}")
    assert image.shape == (1, 3, 64, 48)
    assert image[0, :, 30, 20].tolist() == pytest.approx([200 / 255, 100 / 255, 50 / 255], abs=0.03)
    assert list_pictures([tmp_path]).files == [tmp_path / f"a{ending}"]


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = list_pictures([folder])
    assert "cannot be read: Permission denied" in listing.left_out
    assert "a.png" in names(listing, folder)
    with pytest.raises(PermissionError):
        list_pictures([folder / "inside" / "deep"])


def test_a_pipe_is_never_waited_for(folder):
    for name in (folder / "pipe.png", "/dev/null"):
        with pytest.raises(ImageError, match="is a pipe or a device; expected a file"):
            load_images(name)


def test_the_command_and_training_list_alike(folder, capsys, caplog):
    assert cli.main(["score", str(folder), "--recursive", *RANDOM]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 9
    assert f"iqguide: left out 1 ({formats.DEVELOP}): {folder / 'photo.dng'}." in said.err
    assert "left out 2 (hidden)" in said.err
    shutil.rmtree(folder / "linked", ignore_errors=True)
    photographs = clean_photographs(folder, folder)
    assert [p.path.name for p in photographs] == ["a.JPG", "a.avif", "a.jfif", "a.jpe", "a.png", "a.qoi", "link.png"]
    assert f"left out 1 (a pipe or a device): {folder / 'pipe.png'}." in caplog.text


def test_postscript_never_reaches_its_interpreter(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    def called(*_, **__):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", called)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EndProlog\n(x) run\n%%EOF\n"
    for name in ("holiday.jpg", "holiday.eps"):
        (tmp_path / name).write_bytes(program)
        with pytest.raises(ImageError, match="is not a picture of a format that is read here"):
            load_images(tmp_path / name)


def test_names_of_255_bytes_are_read(tmp_path):
    path = write(tmp_path / ("ä" * 125 + "x.png"))
    assert len(os.fsencode(path.name)) == 255
    assert list_pictures([tmp_path]).files == [path]
    assert load_images(path).shape == (1, 3, 40, 48)
