"""The sweep of the guidance's settings and the attacks on rewards: closed forms, and both commands at tiny size."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import training_folder
from PIL import Image
from tiny_pipelines import demo_like_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # its scripts are no package

import attack
import natural_range
import panels
import settings_sweep
import tables
from demo_statistics import compare

from iqguide import RewardGuidance, create_model

DEFAULT = RewardGuidance.scale


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    demo_like_pipeline(folder).save_pretrained(folder / "saved")
    return str(folder / "saved")


@pytest.fixture
def random_tiny(monkeypatch):
    """The same random weights in every run, and one quick judge."""
    weights = create_model("tiny", weights="random")
    for script in (attack, settings_sweep):
        monkeypatch.setattr(script, "create_model", lambda *_, **__: weights)
        monkeypatch.setattr(script, "judges", lambda: {"dark": lambda images: 1 - images.mean((1, 2, 3))})
    return weights


# ---- the chart


def test_panels_put_a_value_where_it_belongs():
    line = panels.Line(np.array([0.0, 2.0]), np.array([[0.0, 0, 0], [1.0, 1, 1]]))
    canvas = panels.grid([[panels.Panel("a", [line])], [panels.Panel("b", [line])]], ["way"], width=200, height=100)
    assert canvas.size[0] == 200
    for top in (0, 100):
        assert canvas.getpixel((panels.LEFT, top + 100 - panels.BOTTOM)) == panels.COLOURS[0]  # (0, 0)
        assert canvas.getpixel((200 - panels.RIGHT, top + panels.TOP)) == panels.COLOURS[0]  # (2, 1)
        assert canvas.getpixel((panels.LEFT + 10, top + panels.TOP + 10)) == (255, 255, 255)


def test_panels_of_a_column_share_their_axis():
    def row(height):
        return [panels.Panel("", [panels.Line(np.array([0.0, 1.0]), np.array([[0.0] * 3, [height] * 3]))])]

    canvas = panels.grid([row(1.0), row(0.5)], width=200, height=100)
    span = 100 - panels.TOP - panels.BOTTOM
    assert canvas.getpixel((200 - panels.RIGHT, 100 + panels.TOP + span // 2)) == panels.COLOURS[0]


# ---- the sweep


def test_every_setting_has_a_folder_of_its_own_and_one_default():
    every = [setting for sweep in settings_sweep.VALUES for setting in settings_sweep.settings_of(sweep)]
    by_folder = {}
    for setting in every:
        by_folder.setdefault(setting.folder, []).append(dict(setting.changes))
        RewardGuidance(lambda images: images.mean((1, 2, 3)), **setting.changes)  # refuses what it does not know
    assert all(changes == same[0] for same in by_folder.values() for changes in same)
    for sweep, values in settings_sweep.VALUES.items():
        assert values.count(settings_sweep.DEFAULTS[sweep]) == 1, sweep
        alone = [setting for setting in every if setting.sweep == sweep and not setting.changes]
        assert len(alone) == (sweep not in settings_sweep.HARD)
    assert len(by_folder) <= 23  # what the page promises the whole run to take rests on it


def test_sweep_end_to_end_and_resumed(pipeline, tmp_path, capsys, monkeypatch, random_tiny):
    monkeypatch.setattr(settings_sweep, "VALUES", {"scale": (0.0, DEFAULT, 0.4), "max_drift": (0.05, None)})
    page = tmp_path / "page.md"
    page.write_text("<!-- settings-sweep -->\n<!-- /settings-sweep -->\n")
    monkeypatch.setattr(settings_sweep, "README", page)
    monkeypatch.setattr(settings_sweep, "RESULTS", tmp_path)
    out = tmp_path / "out"
    arguments = ["--pipeline", pipeline, "--out", str(out), *"--seeds 0:4 --batch 4 --steps 4 --publish".split()]
    settings_sweep.main(arguments)
    printed = capsys.readouterr().out
    folders = {"unguided", "default", "scale=0.4", "max_drift=0.05,scale=0.4", "max_drift=None,scale=0.4"}
    assert {path.name for path in out.iterdir() if path.is_dir()} == folders
    rows = list(csv.DictReader((tmp_path / "settings_sweep.csv").read_text().splitlines()))
    assert len(rows) == 5 * 4
    dark = {folder: [float(row["dark"]) for row in rows if row["setting"] == folder] for folder in folders}
    strong = compare(dark["unguided"], dark["scale=0.4"])
    assert strong["mean"] != 0
    (line,) = (line for line in printed.splitlines() if line.startswith("| 0.4 |"))
    assert float(line.split("|")[3].split()[0]) == pytest.approx(strong["mean"], abs=0.011, rel=0.01)
    assert "| 0.0 | +0.00 (+0.00 to +0.00), 0% | +0.00 (+0.00 to +0.00), 0% | 1.00 |" in printed
    assert f"| **{DEFAULT}** |" in printed
    assert "| `max_drift`, scale 0.4 |" in printed
    assert page.read_text().count(f"| **{DEFAULT}** |") == 1
    assert (tmp_path / "settings_sweep.png").is_file()

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.parent != out}
    assert len(times) == 5 * 4
    with pytest.raises(SystemExit):
        settings_sweep.main([*arguments, "--only", "scale"])
    assert "--only" in capsys.readouterr().err
    assert "max_drift" in page.read_text()  # the published table is still whole
    settings_sweep.main([*arguments[:-1], "--only", "scale"])
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


# ---- attacks


def towards(pattern):
    """A reward that rises along one pattern (C, h, w) and along nothing else."""
    return lambda images: (images * pattern).flatten(1).sum(1)


def signs():
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1)).sign()


def as_it_is(latents):
    return latents


def test_ascent_goes_straight_up_a_linear_reward():
    start = torch.rand(2, 3, 16, 16)
    path = attack.ascend(towards(signs()), as_it_is, start, 0.02, 9)
    assert len(path) == 5  # after 0, 1, 2, 4 and 8 steps
    for steps, place in zip(attack.KEPT, path, strict=False):
        torch.testing.assert_close(place - start, 0.02 * steps * signs().expand(2, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.05, 2.0])
def test_defended_ascent_goes_as_far_as_guidance_does(scale):
    guidance = RewardGuidance(towards(signs()), scale=scale)
    start = torch.rand(2, 3, 16, 16)
    moved = attack.defended(guidance, as_it_is, start, 7) - start
    high, low = (level / (1 - level) for level in guidance.noise_window)
    far = min(scale * math.log(high / low), guidance.max_drift)
    torch.testing.assert_close(moved, far * signs().expand(2, -1, -1, -1), atol=1e-4, rtol=0)


def test_natural_range_holds_photographs_and_not_what_leaves_them():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)
    region = natural_range.fit(smooth)
    assert (region.outside(smooth) == 0).float().mean().item() == pytest.approx(natural_range.USUAL, abs=0.02)
    noisy = (smooth + 0.2 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    assert region.outside(noisy).min() > 1
    reward = natural_range.kept_inside(lambda images: images.mean((1, 2, 3)), region, 2.0)
    torch.testing.assert_close(reward(noisy), noisy.mean((1, 2, 3)) - 2 * (region.distance(noisy) - region.radius))


def test_attack_end_to_end(pipeline, tmp_path, capsys, monkeypatch, random_tiny):
    monkeypatch.setattr(attack, "README", tmp_path / "page.md")
    monkeypatch.setattr(attack, "RESULTS", tmp_path)
    monkeypatch.setattr(attack, "TIMES", (1, 4))
    monkeypatch.setattr(attack, "EVALUATIONS", 2)
    (tmp_path / "page.md").write_text("<!-- attack -->\n<!-- /attack -->\n")
    data, out = training_folder(tmp_path / "data", scored=0), tmp_path / "out"
    options = "--models tiny --count 2 --steps 2 --sampling-steps 3 --publish".split()
    attack.main(["--data", str(data), "--pipeline", pipeline, "--out", str(out), *options])
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "attack.csv").read_text().splitlines()))
    ways = [(start, way) for start in ("photographs", "samples") for way in attack.WAYS][:5]
    ways += [("samples", way) for way in attack.WAYS]
    assert list(dict.fromkeys((row["start"], row["way"]) for row in rows)) == ways
    for row in rows:
        gains = [float(row[name]) for name in ("moved", "reward mean", "dark mean")]
        assert (gains == [0, 0, 0]) == (row["stop"] in ("0 steps", "scale 0"))
    climbs = [float(row["reward mean"]) for row in rows if row["way"] == "pixels" and row["start"] == "photographs"]
    assert climbs == sorted(climbs)
    moved = {row["stop"]: float(row["moved"]) for row in rows if row["way"] == "pixels"}
    assert moved["2 steps"] == pytest.approx(2 * attack.PIXEL_STEP, rel=0.2)  # the direction turns, and 8 bits
    assert printed.count("photographs: ") == 5
    assert printed.count("samples: ") == 7
    assert f"| samples: guided sampling, scale {DEFAULT:g} |" in printed
    with Image.open(tmp_path / "attack_tiny.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[:2] == ((2 + len(attack.WAYS)) * 128, 130 + 2 * 2 * 128)
    assert (pixels[-2 * 128 :, 130 : 130 + 2 * 128] == 255).all()  # no sampling leads to a photograph
    assert not (pixels[-2 * 128 :, 130 + 2 * 128 :] == 255).all()
    assert "![Paths](results/attack.png)" in (tmp_path / "page.md").read_text()


def test_the_page_has_their_markers():
    page = tables.README.read_text()
    for name in ("settings-sweep", "attack", "search-budget"):
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1
