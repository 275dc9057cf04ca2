"""What people really feed a tool: each gives one clear sentence or the right conversion, never a wrong score."""

import errno
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from iqguide import cli, create_model, images, load_images, rank
from iqguide.cli import score as cli_score
from iqguide.images import ImageError, save_image, to_tensor
from iqguide.models import WeightsError

RANDOM = ["--weights", "random", "--device", "cpu"]


@pytest.fixture
def run(capsys):
    """Run the command in this process -> (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def picture():
    """A smooth picture with some noise, (48, 64, 3) uint8."""
    y, x = np.mgrid[:48, :64]
    noise = np.random.default_rng(0).integers(0, 40, (48, 64, 3))
    return (np.stack([x * 3, y * 4, 200 - x - y], -1) + noise).astype(np.uint8)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def one_sentence(text):
    return "\n" not in text and len(text) < 400 and text.endswith(".")


# --- files ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")  # what Pillow says of a TIFF, before its error
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path, picture, kind):
    data = encoded(picture, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data)
    whole = to_tensor(path)
    errors = []
    for end in range(0, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:end])
        try:
            assert torch.equal(to_tensor(path), whole)  # some formats end in bytes that hold no pixels
        except ImageError as error:
            errors.append(str(error))
    assert len(errors) >= 55
    assert all(str(path) in error and one_sentence(error) for error in errors)


def test_damage_inside_a_png_is_noticed(tmp_path, picture):
    data = bytearray(encoded(picture, "PNG"))
    data[len(data) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="truncated or damaged: get the file again"):
        to_tensor(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text file\n", b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as info:
        load_images(path)
    assert str(path) in str(info.value)
    assert one_sentence(str(info.value))


def test_a_picture_with_a_wrong_ending_is_read_all_the_same(tmp_path, picture):
    (tmp_path / "really_a_png.jpg").write_bytes(encoded(picture, "PNG"))
    torch.testing.assert_close(to_tensor(tmp_path / "really_a_png.jpg"), to_tensor(picture))


def test_missing_files_and_folders_keep_their_usual_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "gone.png")
    with pytest.raises(IsADirectoryError):
        load_images(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (500, 31)])
def test_too_small_is_refused_with_the_size(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "dot.png")
    with pytest.raises(ImageError, match=rf"dot\.png is {size[0]}x{size[1]} pixels; .* 32"):
        load_images(tmp_path / "dot.png")
    with pytest.raises(ImageError, match="needs at least 32"):  # nor does enlarging help
        load_images(tmp_path / "dot.png", size=64)
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels"):  # the models check it themselves
        rank([Image.new("RGB", size)], create_model("tiny", weights="random"))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(body)
    with pytest.raises(ImageError, match=r"bomb\.png has more than \d+ pixels; reduce it first"):
        load_images(tmp_path / "bomb.png")
    Image.new("L", (150, 100)).save(tmp_path / "large.png")  # between one and two times the limit Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    with pytest.raises(ImageError, match=r"large\.png has more than 10000 pixels"):
        load_images(tmp_path / "large.png")


def test_sizes_that_do_not_match_are_named(tmp_path):
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 40)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png is 50x40 pixels and .*a\.png is 40x50"):
        load_images(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ImageError, match="got no paths"):
        load_images()


@pytest.mark.parametrize("depth", [0.0, 255.0, 65535.0])
def test_float_files_are_read_only_in_the_unit_range(tmp_path, depth):
    values = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    Image.fromarray(values * (depth or 1)).save(tmp_path / "f.tiff")
    if depth:
        with pytest.raises(ImageError, match=rf"from 0 to {depth:g} in .*f\.tiff; expected \[0, 1\]"):
            to_tensor(tmp_path / "f.tiff")
    else:
        torch.testing.assert_close(to_tensor(tmp_path / "f.tiff")[0, 1], torch.from_numpy(values))


def test_thirty_two_bit_integers_are_not_guessed(tmp_path):
    Image.fromarray(np.full((48, 64), 100, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(ImageError, match="32-bit integers of unknown range; save it with 8 or 16 bits"):
        to_tensor(tmp_path / "i.tiff")


@pytest.mark.parametrize("kind", ["grey", "sixteen bit", "opaque alpha", "palette", "CMYK"])
def test_the_same_picture_in_another_form_has_the_same_score(tmp_path, picture, kind):
    model = create_model("tiny", weights="random")
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    plain, path = picture, tmp_path / "other.png"
    if kind == "grey":
        plain = np.repeat(grey[..., None], 3, -1)
        Image.fromarray(grey).save(path)
    elif kind == "sixteen bit":
        plain = np.repeat(grey[..., None], 3, -1)
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "opaque alpha":
        Image.fromarray(np.concatenate([picture, np.full_like(grey, 255)[..., None]], -1)).save(path)
    elif kind == "palette":
        few = Image.fromarray(picture).quantize(32)
        few.save(path)
        plain = np.asarray(few.convert("RGB"))
    else:
        path = tmp_path / "other.tiff"
        inks = np.concatenate([255 - picture, np.zeros_like(grey)[..., None]], -1)
        Image.frombytes("CMYK", (64, 48), inks.tobytes()).save(path)
    score = model(load_images(path))
    torch.testing.assert_close(score, model(to_tensor(plain)), rtol=0, atol=1e-6)


# --- tensors and arrays ---


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            torch.rand(3, 40, 40),
            r"shape \(3, 40, 40\); expected \(N, 3, H, W\)\. Add a batch dimension: images\[None\]",
        ),
        (torch.rand(2, 40, 40, 3), r"Move the channels first: images\.movedim\(-1, 1\)"),
        (torch.rand(40, 40), r"shape \(40, 40\); expected \(N, 3, H, W\)"),
        (torch.rand(2, 1, 40, 40), r"shape \(2, 1, 40, 40\); expected \(N, 3, H, W\)"),
        (torch.rand(0, 3, 40, 40), "non-empty batch"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), r"Divide by 255: images\.float\(\) / 255"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.int64), r"torch\.int64; expected floating"),
        (torch.rand(1, 3, 40, 40) * 2 - 1, r"expected \[0, 1\]\. If they are in \[-1, 1\], use images / 2 \+ 0\.5"),
        (torch.rand(1, 3, 40, 40) * 255, "If they are bytes, divide by 255"),
        (torch.full((1, 3, 40, 40), torch.nan), "NaN or infinite"),
        (torch.full((1, 3, 40, 40), torch.inf), "NaN or infinite"),
        (torch.rand(1, 3, 40, 40).index_fill(3, torch.tensor([7]), torch.nan), "NaN or infinite"),
    ],
)
def test_tensors_that_are_no_pictures(images, said):
    with pytest.raises(ImageError, match=said):
        to_tensor(images)
    said = "no score of 1 is a finite number" if said == "NaN or infinite" else said  # one of several is ranked last
    if len(images):
        with pytest.raises(ValueError, match=said):
            rank(images, lambda x: x.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\); expected \(H, W\)"),
        (np.zeros((3, 40, 40), np.uint8), r"shape \(3, 40, 40\)"),
        (np.zeros((0, 40, 3), np.uint8), r"shape \(0, 40, 3\)"),
        (np.zeros((40, 40, 3), np.int64), "dtype int64; expected uint8, uint16 or floating"),
        (np.zeros((40, 40, 3), bool), "dtype bool"),
        (np.full((40, 40, 3), 200.0), r"values from 200 to 200 in array; expected \[0, 1\]"),
        (np.full((40, 40, 3), np.nan), "NaN"),
    ],
)
def test_arrays_that_are_no_pictures(array, said):
    with pytest.raises(ImageError, match=said):
        to_tensor(array)


def test_other_types_are_named():
    with pytest.raises(TypeError, match="got list; expected a path"):
        to_tensor([1, 2, 3])


def test_a_nan_pixel_never_gets_a_rank():
    batch = torch.rand(3, 3, 40, 40)
    batch[1, 0, 5, 5] = torch.nan
    ranking = rank(batch, create_model("tiny", weights="random"))
    assert ranking.order.tolist()[-1] == 1
    assert ranking.scores.isfinite().tolist() == [True, False, True]


# --- checkpoints and names ---


class Malice:
    """Unpickling this makes a file: proof that a checkpoint ran code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("model", ["tiny", "qualiclip"])
@pytest.mark.parametrize("kind", ["pickle", "torch pickle", "noise", "empty", "text", "wrong keys", "cut safetensors"])
def test_a_bad_checkpoint_is_refused_and_runs_nothing(run, tmp_path, picture, model, kind):
    from safetensors.torch import save_file

    proof, path = tmp_path / "proof", tmp_path / "bad.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malice(proof)))
    elif kind == "torch pickle":
        torch.save({"weight": Malice(proof)}, path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("404: not found")
    elif kind == "wrong keys":
        torch.save({"some.other.model": torch.zeros(3)}, path)
    else:
        path = tmp_path / "bad.safetensors"
        save_file({"weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError) as info:
        create_model(model, weights=path)
    assert path.name in str(info.value)

    save_image(to_tensor(picture), tmp_path / "a.png")
    status, out, err = run("score", tmp_path / "a.png", "--model", model, "--weights", path, "--json")
    assert (status, out) == (2, "")
    assert err.startswith("iqguide: error: ")
    assert err.count("\n") == 1
    assert not proof.exists()


def test_names_that_do_not_exist(run, tmp_path, picture):
    save_image(to_tensor(picture), tmp_path / "a.png")
    status, out, err = run("score", tmp_path / "a.png", "--model", "qualclip")
    assert (status, out) == (2, "")
    assert "unknown model 'qualclip'. Did you mean 'qualiclip'?" in err
    status, _, err = run("score", tmp_path / "a.png", "--weights", tmp_path / "gone.safetensors")
    assert status == 2
    assert "gone.safetensors" in err
    status, _, err = run("score", tmp_path / "a.png", "--weights", "random", "--device", "warp9")
    assert status == 2
    assert "device 'warp9' cannot be used here" in err
    assert err.endswith("try --device cpu.\n")


# --- disks and folders ---


@pytest.fixture
def full_disk(monkeypatch):
    """Every write of a file fails half way, as on a full disk."""

    def write(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images.Path, "write_bytes", write)


def test_a_full_disk_leaves_no_half_picture(tmp_path, picture, full_disk):
    with pytest.raises(OSError, match="No space left on device") as info:
        save_image(to_tensor(picture), tmp_path / "a.png")
    assert info.value.errno == errno.ENOSPC
    assert str(tmp_path / "a.png") in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_copying_the_best(run, tmp_path, picture, monkeypatch):
    save_image(to_tensor(picture), tmp_path / "a.png")

    def copy(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", copy)
    status, out, err = run("rank", tmp_path, "--copy-to", tmp_path / "best", *RANDOM)
    assert status == 2
    assert out.endswith(f"{tmp_path / 'a.png'}\n")  # what was found out is not lost
    assert "No space left on device" in err.splitlines()[-1]
    assert list((tmp_path / "best").iterdir()) == []


def test_an_output_folder_that_is_a_file(run, tmp_path, picture):
    (tmp_path / "file").touch()
    status, _, err = run("sample", "--out", tmp_path / "file", *RANDOM)
    said = f"cannot make the folder {tmp_path / 'file'} (File exists); choose another one."
    assert (status, err) == (2, f"iqguide: error: {said}\n")


def test_one_bad_file_in_a_folder_of_a_thousand(run, tmp_path, picture):
    good = encoded(picture[:32, :32], "PNG")
    for index in range(1000):
        (tmp_path / f"{index:04}.png").write_bytes(good)
    (tmp_path / "0500.png").write_bytes(good[: len(good) // 2])
    status, out, err = run("score", tmp_path, "--json", *RANDOM)
    rows = json.loads(out)
    assert status == 0
    assert len(rows) == 1000
    assert [row["path"] for row in rows if row["error"]] == [str(tmp_path / "0500.png")]
    assert len({round(row["score"], 5) for row in rows if not row["error"]}) == 1
    assert "0500.png cannot be decoded" in err
    assert "999 of 1000 images scored" in err


def test_what_is_bundled_loads_without_a_word(tmp_path):
    command = [sys.executable, "-m", "iqguide.cli", "sample", "--out", tmp_path, "--steps", "1", *RANDOM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("iqguide: 1 images in")
    assert "Expected types" not in done.stderr


def test_names_that_are_no_text_go_out_as_they_are(tmp_path, picture):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(encoded(picture, "PNG"))
    command = [sys.executable, "-m", "iqguide.cli", "score", name, *RANDOM]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=strict, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(name + b"\n")


@pytest.mark.parametrize("form", ["--json", "--csv", None])
def test_an_interrupt_keeps_the_scores_that_are_there(run, tmp_path, picture, monkeypatch, form):
    for index in range(20):
        (tmp_path / f"{index:02}.png").write_bytes(encoded(picture, "PNG"))
    (tmp_path / "00.png").write_bytes(b"")
    score, batches = cli_score.score_batch, []

    def interrupted(*arguments):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(cli_score, "score_batch", interrupted)
    status, out, err = run("score", tmp_path, *RANDOM, *([form] if form else []))
    assert status == 130
    assert err.splitlines()[-1].endswith("iqguide: interrupted after 9 of 20 images.")
    if form == "--json":
        rows = json.loads(out)
        assert [row["path"] for row in rows] == [str(tmp_path / f"{index:02}.png") for index in range(9)]
        assert [row["score"] is None for row in rows] == [True] + [False] * 8
    else:
        assert len(out.splitlines()) == {"--csv": 1 + 9, None: 8}[form]


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"_class_name": "NoSuchPipeline"}', '{"_class_name": "StableDiffusionPipeline"}']
)
def test_a_damaged_pipeline_is_one_sentence(run, tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    status, out, err = run("sample", "--pipeline", tmp_path, "--out", tmp_path / "out", *RANDOM)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"iqguide: error: cannot load the pipeline '{tmp_path}' (")
