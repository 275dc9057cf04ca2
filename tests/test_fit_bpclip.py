"""Training of `bpclip-mini`: its backbone by imitation, what is above on pooled maps."""

import json
from types import SimpleNamespace

import pytest
import torch
from made_photographs import training_folder
from safetensors.torch import load_file, safe_open
from torch.nn import functional as F

import iqguide
from iqguide.models import save_bpclip
from iqguide.models.adjectives import ENCODER
from iqguide.training import batches, distortions, fit_bpclip

SMALL = "--steps 8 --ladders 4 --scored 4 --crop 48 --large-crop 64 --large 2 --scored-crop 64".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, on_the_cpu):
    """The file that a fit started from, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("fit")
    save_bpclip(iqguide.create_model("bpclip-mini", weights="random"), out / "eyes.safetensors")
    pairs = torch.randint(0, 256, (2, 6, 3, 48, 48), dtype=torch.uint8)
    torch.save({"clean": pairs[0], "degraded": pairs[1], "severity": torch.ones(6)}, out / "denoised.pt")
    flags = {"data": folder, "init": out / "eyes.safetensors", "out": out, "denoised": out / "denoised.pt"}
    fit_bpclip.main([f"--{key}={value}" for key, value in flags.items()] + SMALL)
    return out / "eyes.safetensors", out


@pytest.fixture
def model():
    return iqguide.create_model("bpclip-mini", weights="random")


def test_pooled_maps_say_what_the_pictures_say(model):
    """Masks before the pooling, W_f after it: equation 2 in another order."""
    images = torch.rand(3, 3, 96, 64)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        pooled = fit_bpclip.gated(model, images)
        said = model.judge(fit_bpclip.vectors(model, pooled.float()))
        expected = model.raw(images)
    assert pooled.shape == (3, sum(model.backbone.feature_info.channels()), 3, 2)
    spread = expected.std()
    assert (said - expected).abs().max() < 0.3 * spread + 1e-3  # the maps were made in bfloat16
    exact = []
    for pool, maps in zip(model.pools, model.maps(images), strict=True):
        exact.append(F.adaptive_avg_pool2d(pool.mask(maps).sigmoid() * maps, (3, 2)))
    torch.testing.assert_close(model.judge(fit_bpclip.vectors(model, torch.cat(exact, 1))), model.raw(images))


def test_standardised_layers_start_at_mean_0_and_spread_1(model):
    maps = torch.randn(200, 774, 4, 4) * torch.logspace(-2, 1, 774).view(1, -1, 1, 1) + 3
    fit_bpclip.standardise(model, maps)
    channels = model.backbone.feature_info.channels()
    for pool, part in zip(model.pools, maps.split(channels, 1), strict=True):
        projected = pool.project(pool.features(part))
        assert projected.mean((0, 2, 3)).abs().max() < 0.01
        assert 0.1 < projected.std() < 1  # 1/3 for torch's start of two layers on standard inputs
    seen = model.cosines(fit_bpclip.vectors(model, maps)).flatten(1)
    hidden = F.linear(seen, model.head[0].weight, model.head[0].bias)
    assert hidden.std(0).median() > 0.1  # about 1 / sqrt(3) for torch's start on standard inputs
    assert hidden.mean(0).abs().max() < 0.01


def test_ladders_are_those_of_the_distortions(model):
    crops = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    known = fit_bpclip.ladder_maps(model, crops, torch.Generator().manual_seed(1))
    kinds = len(batches.LADDER_KINDS)
    assert known.maps.shape == (2 * kinds, 7, 774, 2, 2)
    row = 2 * batches.LADDER_KINDS.index("darken")
    darkest = distortions.distort(crops, "darken", torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(known.maps[row : row + 2, 5], fit_bpclip.gated(model, darkest))
    assert (known.severities[:, 1:6].diff(dim=1) > 0).all()
    assert not known.severities[:, 0].any()
    maps, severities = known.batch(5, 4, torch.Generator().manual_seed(2))
    assert maps.shape == (5, 4, 774, 2, 2)
    for single, severity in zip(maps.flatten(0, 1), severities.flatten(), strict=True):
        places = (known.maps.float() == single).flatten(2).all(2)
        assert known.severities[places][0] == severity


def test_a_fit_changes_what_is_above_the_masks_and_nothing_else(run):
    before, after = load_file(run[0]), load_file(run[1] / "bpclip-mini.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    fixed = {name for name in before if name.startswith(("backbone.", "text_features")) or ".mask." in name}
    assert not changed & fixed
    assert {"head.0.weight", "levels.0.ask.query.weight", "positions.grid", "margin_mean", "margin_std"} <= changed
    record = json.loads((run[1] / "run.json").read_text())
    assert record["settings"]["steps"] == 8
    assert record["held_out"].keys() == {"srcc", "plcc", "ladders", "worst_ladder"}
    with safe_open(run[1] / "bpclip-mini.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["text_source"] == ENCODER


def test_a_fit_learns_what_it_sees_again_and_again(model, on_the_cpu):
    """Maps of two causes: one is the severity, the other what people say."""
    torch.manual_seed(0)
    causes = torch.randn(2, 774, 1, 1)
    severities = torch.arange(4.0).expand(40, 4)
    maps = torch.randn(40, 4, 774, 2, 2) * 0.3 + severities.view(40, 4, 1, 1, 1) * causes[0]
    labels = torch.rand(40)
    scored = torch.randn(40, 774, 2, 2) * 0.3 + 3 * labels.view(40, 1, 1, 1) * causes[1]
    known = fit_bpclip.Known([fit_bpclip.Ladders(maps.half(), severities)], scored.half(), labels)
    args = SimpleNamespace(seed=0, steps=40, lr=2e-3, weight_decay=0.0, ladders=8, scored=16, slope=1.0)
    fit_bpclip.fit(model, known, args)
    with torch.no_grad():
        scores = model.judge(fit_bpclip.vectors(model, maps.flatten(0, 1))).view(40, 4)
        agreement = torch.corrcoef(torch.stack([model.judge(fit_bpclip.vectors(model, scored)), labels]))[0, 1]
    assert (scores.diff(dim=1) < 0).float().mean() > 0.95
    assert agreement > 0.8
