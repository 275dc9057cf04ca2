"""Fitting the head of `tiny` alone."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from made_photographs import training_folder
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import spearmanr

import iqguide.models
from iqguide.models.tiny import Tiny
from iqguide.training import batches, fit_tiny_head
from iqguide.training.data import Photograph

SECOND = Path(iqguide.models.__file__).parent / "assets" / "bpclip-mini.safetensors"
SMALL = "--steps 60 --batch 16 --crop 48 --each 1 --large-crop 64 --large 2".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a refitted model, and the file that it started from."""
    folder = tmp_path_factory.mktemp("fit_tiny_head")
    data = training_folder(folder / "data")
    torch.manual_seed(0)
    before = folder / "before.safetensors"
    Tiny().save(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        second = ["--second-opinion", str(SECOND), "--second-crop", "48", "--each-second", "1"]
        fit_tiny_head.main(["--data", str(data), "--init", str(before), "--out", str(folder / "out"), *SMALL, *second])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / "out", before


def test_only_the_head_changes(run):
    out, before = run
    old, new = load_file(before), load_file(out / "tiny.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert all(name.startswith(("head.", "pooled_", "margin_", "score_")) for name in changed)
    assert {"head.0.weight", "pooled_mean", "margin_mean"} <= changed


def test_the_run_is_recorded(run):
    record = json.loads((run[0] / "run.json").read_text())
    assert record["settings"]["steps"] == 60
    assert set(record["held_out"]) == {"srcc", "plcc", "ladders", "worst_ladder"}


def test_a_fitted_head_says_what_the_statistics_say():
    """Statistics of a few causes, at scales a thousand times apart; severity is one, MOS another."""
    torch.manual_seed(0)
    mixing = torch.randn(6, 668) * torch.logspace(-1, 2, 668)
    severities, labels = torch.rand(200, 6).sort(1)[0] * 4, torch.randn(300)
    causes, others = torch.randn(200, 7, 6), torch.randn(300, 6)
    causes[..., 0], causes[..., 1] = torch.cat([severities, severities[:, -1:]], 1), 0
    others[:, 0], others[:, 1] = 2, labels
    ladders, scored = causes @ mixing, others @ mixing
    weights = {
        "mos_weight": 1.0,
        "prediction_weight": 1.0,
        "back_weight": 0.0,
        "step_weight": 0.3,
        "second_weight": 1,
    }
    settings = SimpleNamespace(seed=0, steps=150, batch=64, lr=3e-3, dropout=0.3, slope=0.5, **weights)
    model = Tiny().eval()
    known = fit_tiny_head.Statistics(
        ladders[:150], severities[:150], scored[:200], labels[:200],
        ladders[:150, 1:3] + 1, severities[:150, 1:3],
        scored[:0], labels[:0],
    )  # fmt: skip
    fit_tiny_head.fit(model, known, settings, "cpu")
    fresh = model.judge(ladders[150:, :6])
    assert spearmanr(fresh.flatten(), -severities[150:].flatten())[0] > 0.9
    assert spearmanr(model.judge(scored[200:]), labels[200:])[0] > 0.9


def test_a_second_opinion_is_learnt_where_people_were_not_asked():
    torch.manual_seed(0)
    ladders, severities = torch.randn(20, 1, 668).expand(-1, 7, -1), torch.arange(6.0).expand(20, -1)
    people, crops = torch.randn(100, 668), torch.randn(300, 668)
    labels = torch.randn(300)
    crops[:, 0] += 20 * labels
    settings = {"seed": 0, "steps": 80, "batch": 64, "lr": 3e-3, "dropout": 0, "slope": 0}
    settings |= dict.fromkeys(("mos_weight", "prediction_weight", "back_weight", "step_weight"), 0.0)
    known = (
        ladders,
        severities,
        people,
        torch.randn(100),
        ladders[:0, :2],
        severities[:0, :2],
        crops[:200],
        labels[:200],
    )
    found = []
    for weight in (0.0, 1.0):
        model = Tiny().eval()
        fit_tiny_head.fit(
            model, fit_tiny_head.Statistics(*known), SimpleNamespace(second_weight=weight, **settings), "cpu"
        )
        found.append(spearmanr(model.judge(crops[200:]), labels[200:])[0])
    assert abs(found[0]) < 0.7
    assert found[1] > 0.9


def test_the_second_opinion_is_what_the_other_model_says_of_undistorted_crops(run, tmp_path):
    photographs = [Photograph(path) for path in sorted((run[0].parent / "data" / "pristine" / "images").iterdir())[:3]]
    options = ["--data", "", "--init", "", "--out", "", "--second-crop", "40", "--each-second", "2"]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    brightness = SimpleNamespace(margin=lambda crops: (weights * crops).sum(1).mean((1, 2)))
    statistics, scores = fit_tiny_head.second_scores(
        Tiny().eval(), brightness, photographs, fit_tiny_head.parse(options)
    )
    assert statistics.shape == (6, 668)
    # the first statistic of `tiny` is the same mean
    torch.testing.assert_close(scores, statistics[:, 0], atol=1e-4, rtol=1e-4)


def test_halfway_between_two_opinions_is_on_the_scale_of_the_own():
    own, other = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([30.0, 10.0, 20.0])
    torch.testing.assert_close(fit_tiny_head.halfway(own, own * 7 + 2), own)
    torch.testing.assert_close(fit_tiny_head.halfway(own, other), torch.tensor([3.0, 2.0, 4.0]))


def test_the_second_fit_is_to_what_lies_halfway(tmp_path, monkeypatch):
    data = training_folder(tmp_path / "data")
    before = tmp_path / "before.safetensors"
    Tiny().save(before)
    ladders, crops, other = torch.rand(4, 7, 668), torch.rand(5, 668), torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    known = fit_tiny_head.Statistics(
        ladders, torch.rand(4, 6), crops, torch.rand(5), ladders[:0, :2], torch.empty(0, 2), crops, other
    )
    fitted, fit = [], fit_tiny_head.fit

    def noted(model, statistics, args, device):
        own = model.judge(statistics.crops).detach() if len(statistics.crops) else None
        fitted.append((statistics, own))
        fit(model, statistics, args, device)

    monkeypatch.setattr(fit_tiny_head, "gather", lambda model, args, parts: known)
    monkeypatch.setattr(fit_tiny_head, "fit", noted)
    fit_tiny_head.main(
        ["--data", str(data), "--init", str(before), "--out", str(tmp_path / "out"), "--steps", "2", "--batch", "4"]
    )
    (first, _), (second, own) = fitted
    assert len(first.crops) == 0
    assert torch.equal(second.crops, crops)
    torch.testing.assert_close(second.second_scores, fit_tiny_head.halfway(own, other))


def test_ladders_have_a_rung_on_the_way_back():
    crops = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    model = Tiny().eval()
    statistics, severities = fit_tiny_head.ladder_statistics(
        model, crops, ("gaussian_blur", "darken"), torch.Generator().manual_seed(1)
    )
    assert statistics.shape == (4, 7, 668)
    assert severities.shape == (4, 6)
    levels = torch.arange(5.0)
    for row, kind in ((0, "gaussian_blur"), (3, "darken")):
        torch.testing.assert_close(severities[row, 1:6], batches.severity(kind, levels))
    darkest = model.pooled(torch.lerp(crops.clamp_min(1e-4) ** 3.5, crops, fit_tiny_head.RESTORED))
    np.testing.assert_allclose(statistics[2:, 6].numpy(), darkest.detach().numpy(), rtol=0.05, atol=0.02)


def test_ladders_begin_at_good_photographs_too(tmp_path, monkeypatch):
    """A row for each crop and kind; those of the good photographs come last, reduced by two or more."""
    rng = np.random.default_rng(0)
    for name in ("clean", "good"):
        Image.fromarray(rng.integers(0, 256, (130, 130, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    clean, good = ([Photograph(tmp_path / f"{name}.png")] for name in ("clean", "good"))
    monkeypatch.setattr(fit_tiny_head.batches, "LADDER_KINDS", ("gaussian_blur", "darken"))
    monkeypatch.setattr(fit_tiny_head, "pooled", lambda model, images: images.std((1, 2, 3))[:, None])
    options = "--data d --init i --out o --crop 48 --each 3 --each-good 2 --large 1 --large-crop 64".split()
    alone, both = (
        fit_tiny_head.gather_ladders(None, clean, extra, fit_tiny_head.parse(options))[0] for extra in ([], good)
    )
    assert len(alone) == 2 * (3 + 1)
    assert len(both) == len(alone) + 2 * 2
    assert torch.equal(both[: len(alone)], alone)
    without = fit_tiny_head.gather_ladders(None, clean, good, fit_tiny_head.parse([*options, "--each-good", "0"]))[0]
    assert torch.equal(without, alone)
    native = np.asarray(Image.open(tmp_path / "good.png")).std() / 255
    assert both[len(alone) :, 0].max() < 0.75 * native  # white noise loses its spread when it is reduced


def test_the_way_back_is_the_slope_in_units_of_the_severity():
    """A score that rises by its severity over the whole way meets the objective's edge, softplus(0); a flat one not."""
    severities = torch.tensor([[0.0, 1, 2, 3, 4, 5]])
    rising = torch.cat([-severities, torch.tensor([[-4 * (1 - fit_tiny_head.RESTORED)]])], 1)
    assert fit_tiny_head.way_back(rising, severities).item() == pytest.approx(math.log(2), rel=1e-4)
    assert fit_tiny_head.way_back(torch.zeros(1, 7), severities).item() == pytest.approx(
        math.log1p(math.exp(4)), rel=1e-4
    )


def test_neighbours_are_to_be_apart():
    """Equal rungs cost softplus(0.3 / 0.2); rungs far apart nothing."""
    assert fit_tiny_head.next_level(torch.zeros(2, 6)).item() == pytest.approx(math.log1p(math.exp(1.5)), rel=1e-4)
    assert fit_tiny_head.next_level(-10 * torch.arange(6.0)[None]).item() < 1e-6
