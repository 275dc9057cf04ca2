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
    assert blue.sum() > 3 * 30  # a dot for each method


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "words").mkdir()
    prompted_pipeline(tmp_path / "words").save_pretrained(tmp_path / "pipeline")
    monkeypatch.setattr(search_budget, "judges", lambda: {"dark": lambda images: 1 - images.mean((1, 2, 3))})
    monkeypatch.setattr(
        search_budget, "DEMO_CALL", {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32}
    )
    monkeypatch.setattr(search_budget, "SIZES", (1, 2))
    monkeypatch.setattr(search_budget, "SEEDS", 2)
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
    lines = before.splitlines(keepends=True)
    (out / "search_budget.csv").write_text("".join(lines[:-2]))
    search_budget.main([*arguments, "--groups", "0:2"])
    again = {(row["group"], row["method"]): row for row in search_budget.read(out / "search_budget.csv")}
    for key, row in found.items():
        assert {**again[key], "seconds": 0} == {**row, "seconds": 0}
    with pytest.raises(SystemExit, match="other weights or steps"):
        search_budget.main([*arguments[:-1], "4", "--groups", "0:2"])
