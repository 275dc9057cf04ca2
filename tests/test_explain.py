"""What a score is made of: the models' describe(), the command's --explain, and the pictures of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_bpclip import SMALL, make_fr

from iqguide import charts, cli, create_model, load_images
from iqguide.images import save_image
from iqguide.models import ClipConfig, save_bpclip

CLIP = ClipConfig(layers=(1, 1, 1, 1), width=8, embed_dim=16, text_width=32, text_heads=2, text_layers=2)


@pytest.fixture
def run(capsys):
    """Run the command in this process -> (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in (*arguments, "--device", "cpu")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    """Two pictures of one size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        save_image(torch.rand(3, 40, 48), folder / name)
    return folder


@pytest.fixture
def weights(tmp_path):
    """A BPCLIP file."""
    path = tmp_path / "bpclip.safetensors"
    save_bpclip(create_model("bpclip", weights="random", config=SMALL), path)
    return path


@pytest.mark.parametrize(("name", "count"), [("qualiclip", 7), ("clipiqa", 1)])
def test_pairs_are_named_and_make_the_score(name, count):
    model = create_model(name, weights="random", config=CLIP)
    image = torch.rand(1, 3, 40, 48)
    found = model.describe(image)
    pairs = found.parts["pairs"]
    assert len(pairs) == count
    assert next(iter(pairs)) == "Good photo. / Bad photo."
    assert list(pairs.values()) == pytest.approx(model.scores(image)[0].tolist())
    assert found.score == pytest.approx(model(image).item())
    assert model.describe(image[0]) == found
    with pytest.raises(ValueError, match="got 2 pictures; expected one"):
        model.describe(torch.rand(2, 3, 40, 48))


def test_own_pairs_are_named():
    pairs = (("Sharp photo.", "Blurry photo."), ("Calm photo.", "Wild photo."))
    model = create_model("clipiqa", weights="random", config=CLIP, pairs=pairs)
    found = model.describe(torch.rand(1, 3, 40, 48))
    assert list(found.parts["pairs"]) == ["Sharp photo. / Blurry photo.", "Calm photo. / Wild photo."]


def test_json_has_the_parts(run, folder, weights):
    status, out, _ = run("score", folder, "--model", "bpclip", "--weights", weights, "--explain", "--json")
    assert status == 0
    rows = json.loads(out)
    assert [list(row) for row in rows] == [["path", "score", "error", "parts"]] * 2
    model = create_model("bpclip", weights=weights)
    for row in rows:
        expected = model.describe(load_images(row["path"]))
        assert row["parts"]["adjectives"] == pytest.approx(expected.parts["adjectives"], abs=1e-5)
        assert row["parts"]["dimensions"] == pytest.approx(expected.parts["dimensions"], abs=1e-5)
        assert len(row["parts"]["adjectives"]) == 40


def test_table_shows_dimensions_before_adjectives(run, folder, weights):
    _, out, err = run("score", folder / "a.png", "--model", "bpclip", "--weights", weights, "--explain")
    assert "are random directions" in err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][1] == str(folder / "a.png")
    assert lines[1] == ["dimensions"]
    assert [line[1] for line in lines[2:8]] == ["sharpness", "noise", "brightness", "colour", "contrast", "overall"]
    assert lines[8] == ["adjectives"]
    assert len(lines) == 49


def test_pictures_of_the_parts(run, folder, weights, tmp_path):
    (folder / "inside").mkdir()
    save_image(torch.rand(3, 40, 48), folder / "inside" / "a.png")
    options = ("--recursive", "--model", "bpclip", "--weights", weights, "--explain-to", tmp_path / "bars", "--json")
    status, out, _ = run("score", folder, *options)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "bars").iterdir()) == ["1_a.png", "3_a.png", "b.png"]
    assert json.loads(out)[1]["path"].endswith("b.png")
    with Image.open(tmp_path / "bars" / "b.png") as picture:
        assert picture.height > 48 * charts.LINE


def test_what_cannot_be_explained(run, folder):
    status, _, err = run("score", folder, "--weights", "random", "--explain")
    assert status == 2
    assert err == "iqguide: error: lite has nothing to explain its score with; use bpclip, qualiclip or clipiqa.\n"
    assert "a CSV has no columns for --explain" in run("score", folder, "--csv", "--explain")[2]


def test_full_reference_from_the_command_line(run, folder, tmp_path):
    model = make_fr()
    weights = tmp_path / "fr.safetensors"
    save_bpclip(model, weights)
    options = ("--model", "bpclip-fr", "--weights", weights)
    status, out, _ = run("score", folder, *options, "--reference", folder / "b.png", "--json", "--explain")
    rows = json.loads(out)
    model = create_model("bpclip-fr", weights=weights)
    images, reference = [load_images(row["path"]) for row in rows], load_images(folder / "b.png")
    assert status == 0
    assert [row["score"] for row in rows] == pytest.approx([model(x, reference).item() for x in images], abs=1e-5)
    assert rows[0]["parts"]["dimensions"] == pytest.approx(
        model.describe(images[0], reference).parts["dimensions"], abs=1e-5
    )
    assert "name it: --reference PATH" in run("score", folder, *options)[2]
    assert "lite takes no reference" in run("score", folder, "--weights", "random", "--reference", "x.png")[2]
    save_image(torch.rand(3, 40, 40), folder / "b.png")
    status, out, _ = run("score", folder / "a.png", *options, "--reference", folder / "b.png", "--json")
    assert status == 2
    assert "expected equal sizes" in json.loads(out)[0]["error"]


def test_sampling_has_no_reference(run, tmp_path):
    status, _, err = run("sample", "--model", "bpclip-fr", "--weights", "random", "--out", tmp_path)
    assert status == 2
    assert "samples have none" in err


# --- charts ---


def bar_pixels(picture):
    """Columns from first to last bar pixel, for each line of text that has a bar."""
    found = (np.asarray(picture) == charts.BAR).all(-1)
    rows = [np.flatnonzero(line) for line in found if line.any()]
    spans = []
    for columns in rows:
        span = (int(columns[0]), int(columns[-1]))
        if not spans or spans[-1] != span:
            spans.append(span)
    return spans


def test_bars_are_as_long_as_their_values():
    (zero, one), (_, half), (low, back) = bar_pixels(charts.bars({"all": {"a": 1.0, "b": 0.5, "c": -0.25}}, "title"))
    assert half - zero == pytest.approx((one - zero) / 2, abs=2)
    assert back - low == pytest.approx((one - zero) / 4, abs=2)
    assert back == pytest.approx(zero, abs=2)


def test_bars_that_are_all_zero():
    assert charts.bars({"all": {"a": 0.0}}, "title").width == 640


def test_dots_are_where_their_values_are():
    x, y = [0.0, 0.5, 1.0], [10.0, 20.0, 10.0]
    picture = np.asarray(charts.scatter(x, y, ("score", "opinion"), "title", size=400))
    found = (picture == charts.DOT).all(-1)
    rows, columns = np.nonzero(found)
    thirds = [columns < 150, (columns > 150) & (columns < 300), columns > 300]
    heights = [rows[third].mean() for third in thirds]
    centres = [columns[third].mean() for third in thirds]
    assert heights[0] == pytest.approx(heights[2], abs=0.5)
    assert heights[1] < heights[0] - 250
    assert centres[1] == pytest.approx((centres[0] + centres[2]) / 2, abs=1)


def test_a_curve_is_drawn_over_the_dots():
    plain = charts.scatter([0, 1], [0, 1], ("a", "b"), "title")
    drawn = charts.scatter([0, 1], [0, 1], ("a", "b"), "title", curve=([0, 1], [0, 1]))
    assert (np.asarray(drawn) == charts.CURVE).all(-1).sum() > 300
    assert not (np.asarray(plain) == charts.CURVE).all(-1).any()
