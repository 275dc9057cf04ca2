"""The benchmark of all searches: what its table says, and that a stopped run goes on."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import prompted_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # its scripts are no package

import search_budget


def rows(method, nfe, values):
    return [
        {"group": group, "prompt": "", "method": method, "nfe": nfe, "seconds": 1.0 + group, "reward": value}
        for group, value in enumerate(values)
    ]


def test_the_summary_is_paired_and_of_shared_groups(tmp_path):
    plain = np.array([0.2, 0.4, 0.9, 0.5])
    raw = rows("unguided", 50, plain) + rows("best of 2", 100, plain + 0.1) + rows("guided", 50, plain[:3] + 0.2)
    for row in raw:
        search_budget.append(tmp_path / "raw.csv", row)
    found = search_budget.summary(search_budget.read(tmp_path / "raw.csv"), ["reward"])
    assert found["groups"] == 3
    best = found["methods"]["best of 2"]
    spread = plain[:3].std(ddof=1)
    assert best["reward"] == pytest.approx([0.1 / spread] * 3)  # the same gain everywhere: an interval of no width
    assert (best["nfe"], best["seconds"]) == (100, 2.0)
    lines = search_budget.page(found, ["reward"]).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["50", "50", "100"]
    search_budget.plot(found, ["reward"], tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        blue = (np.asarray(picture) == (40, 90, 160)).all(-1)
    dots = [half.sum() for half in np.split(blue[: 2 * search_budget.SIDE], 2)]
    assert all(dot > 3 * 30 for dot in dots)  # one for each method, over rows and over seconds


def test_what_is_reached_of_what(tmp_path):
    plain, gain = np.array([0.2, 0.4, 0.9, 0.5]), np.array([0.3, 0.1, 0.2, 0.2])
    raw = rows("unguided", 50, plain) + rows("best of 8", 400, plain + gain)
    raw += rows("best of 8, halved", 240, plain + 0.9 * gain)
    (line,) = search_budget.against(raw, ["reward"]).splitlines()[2:]
    spread = plain.std(ddof=1)
    gains = f"{0.9 * gain.mean() / spread:+.2f} of {gain.mean() / spread:+.2f}"
    assert line == f"| best of 8, halved, of best of 8 | 60% | 100% | {gains}: 90% (90% to 90%) |"
    assert search_budget.share_of_gain(gain, np.array([-1.0, 1.0, 2.0, -2.0])) == "+0.20 of +0.00"  # a ratio of nothing


def test_winners_are_the_same_picture():
    raw = rows("a", 1, [0.5, 0.25, 0.75]) + rows("b", 1, [0.5, 0.5, 0.750001])
    assert search_budget.winners_kept(raw, "a", "b") == "a: the winner of b in 2 of 3 groups."


def test_one_group_compares_nothing():
    raw = rows("unguided", 50, [0.2]) + rows("best of 8", 400, [0.4])
    assert search_budget.summary(raw, ["reward"]) == {"groups": 0, "methods": {}}


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "words").mkdir()
    prompted_pipeline(tmp_path / "words").save_pretrained(tmp_path / "pipeline")
    monkeypatch.setattr(search_budget, "judges", lambda: {"dark": lambda images: 1 - images.mean((1, 2, 3))})
    monkeypatch.setattr(
        search_budget, "DEMO_CALL", {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32}
    )
    monkeypatch.setattr(search_budget, "SIZES", (1, 2))
    monkeypatch.setattr(search_budget, "SEEDS", 2)
    monkeypatch.setattr(search_budget, "PAIRS", [("best of 2", "best of 2")])
    original = search_budget.methods

    def few(reward):
        particles = search_budget.one(search_budget.fk_steering, particles=2, eta=1.0)
        return {"guided": original(reward)["guided"], "FK": particles, "noise": search_budget.noise_optimisation(1)}

    monkeypatch.setattr(search_budget, "methods", few)
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--pipeline", str(tmp_path / "pipeline"), "--steps", "3"]
    search_budget.main([*arguments, "--groups", "0:2"])
    printed = capsys.readouterr().out
    before = (out / "search_budget.csv").read_text()
    found = {(row["group"], row["method"]): row for row in search_budget.read(out / "search_budget.csv")}
    assert {method for _, method in found} == {"unguided", "best of 2", "guided", "FK", "noise"}
    assert [found[0, name]["nfe"] for name in ("unguided", "best of 2", "guided", "FK")] == [6, 12, 6, 12]
    assert found[0, "noise"]["nfe"] >= 2 * 4 * 2 + 6
    assert found[0, "best of 2"]["reward"] >= found[0, "unguided"]["reward"]
    assert "| best of 2 | 12 |" in printed
    assert (out / "search_budget.png").is_file()
    assert "| best of 2, of best of 2 | 100% | 100% |" in printed
    lines = before.splitlines(keepends=True)
    (out / "search_budget.csv").write_text("".join(lines[:-2]))
    search_budget.main([*arguments, "--groups", "0:2"])
    again = {(row["group"], row["method"]): row for row in search_budget.read(out / "search_budget.csv")}
    for key, row in found.items():
        assert {**again[key], "seconds": 0} == {**row, "seconds": 0}
    with pytest.raises(SystemExit, match="other weights, steps"):
        search_budget.main([*arguments[:-1], "4", "--groups", "0:2"])
    monkeypatch.setattr(search_budget, "plain", lambda guidance: {"scale": 7.0})
    with pytest.raises(SystemExit, match="defaults"):
        search_budget.main([*arguments, "--groups", "0:2"])
