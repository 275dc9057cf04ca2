"""The training loop with a full-reference model: what it is shown, that it learns, resumes, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from made_photographs import referenced_table, training_folder
from PIL import Image

import iqguide
from iqguide.training import batch_dataset, batches, data, finetune, parts, training_model
from iqguide.training.config import FinetuneConfig
from iqguide.training.options import jsonable
from iqguide.training.run_settings import Started

pytestmark = pytest.mark.usefixtures("on_the_cpu")

NETWORK = {
    **{"backbone": "resnet18", "channels": [16, 16, 16, 16], "batch_norm": "trained", "positions": 4},
    **{"width": 16, "heads": 2, "mask_width": 8, "text_dim": 16, "head_width": 32},
}
SMALL = {
    "crop": 48,
    "scored_crop": 48,
    "ladders": 2,
    "ladder_levels": 3,
    "scored": 3,
    "aligned": 2,
    "cut": 2,
    "steps": 4,
}
PLAIN = {"alignment_weight": 0.0, "penalty_weight": 0.0, "attack_weight": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"), scored=15)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return referenced_table(tmp_path_factory.mktemp("scored") / "table")


@pytest.fixture
def config(folder, table, tmp_path):
    return FinetuneConfig(
        model="bpclip-fr",
        options={"config": NETWORK},
        data=folder,
        dataset="csv",
        root=table,
        out=tmp_path,
        mixed_precision="no",
        **SMALL,
    )


# --- what the model is shown ---


def test_a_scored_crop_has_the_same_square_of_its_reference(tmp_path):
    """Every pixel of the reference is 100 darker, so every pixel of its crops has to be."""
    pixels = np.random.default_rng(0).integers(150, 200, (70, 90, 3), dtype=np.uint8)
    for name, values in (("a.png", pixels), ("b.png", pixels - 100)):
        Image.fromarray(values).resize((180, 140), Image.Resampling.NEAREST).save(tmp_path / name)
    photographs = [data.Photograph(tmp_path / "a.png", 50.0, tmp_path / "b.png")]
    crops, references = batches.scored_crops(photographs, 64, np.random.default_rng(0))
    assert crops.shape == references.shape == (batches.EACH, 3, 64, 64)
    assert (crops.float() - references.float() - 100).abs().max() <= 1  # rounding
    for vertical in (False, True):
        scored = batches.ScoredPictures(photographs, 64, 120, vertical)
        for number in range(6):
            crop, _, reference = scored.draw(0, np.random.default_rng(number))
            assert ((crop - reference) * 255 - 100).abs().max() < 1.5


def test_every_picture_meets_its_own_reference(config, tmp_path, monkeypatch):
    """The model sees (picture, reference) pairs: those of ladders, scores, predictions and the way back."""
    rng = np.random.default_rng(0)
    clean, degraded = (torch.from_numpy(rng.integers(0, 255, (4, 3, 48, 48), dtype=np.uint8)) for _ in range(2))
    torch.save({"clean": clean, "degraded": degraded, "severity": torch.ones(4)}, tmp_path / "cache.pt")
    config = dataclasses.replace(config, denoised=tmp_path / "cache.pt")
    config, accelerator, known, state = finetune.prepare(config)
    batch = batch_dataset.BatchDataset(known, config)[0]
    seen, forward = [], training_model.TrainingModel.forward

    def noted(self, images, reference, what="raw"):
        seen.append((images.detach(), reference))
        return forward(self, images, reference, what)

    monkeypatch.setattr(training_model.TrainingModel, "forward", noted)
    finetune.losses(state.model, batch, config, accelerator)
    ladders, scored, predictions, way_back, attack = seen
    assert torch.equal(ladders[0][::3], ladders[1][::3])  # the first of three rungs is the clean crop
    assert torch.equal(scored[1], batch["references"])
    assert torch.equal(predictions[0][:4], predictions[1][:4])
    assert torch.equal(predictions[1][4:], batch["better"])
    assert torch.equal(way_back[1], batch["clean"])
    assert torch.equal(attack[1], batch["clean"].repeat(2, 1, 1, 1))


def test_the_raw_score_is_that_of_both_pictures():
    config = training_model._sizes("bpclip-fr", NETWORK)
    model = iqguide.create_model("bpclip-fr", weights="random", config=config)
    images, reference = torch.rand(2, 3, 48, 48), torch.rand(2, 3, 48, 48)
    expected = (100 * model.raw(images, reference) - 75) / 14
    torch.testing.assert_close(training_model.TrainingModel(model, full_reference=True)(images, reference), expected)


# --- training ---


def test_every_objective_reaches_the_weights(config):
    config, accelerator, known, state = finetune.prepare(config)
    found = finetune.losses(state.model, batch_dataset.BatchDataset(known, config)[0], config, accelerator)
    for key in ("ranking", "severity", "mos", "alignment", "penalty"):
        learning = [p for p in state.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(found[key], learning, retain_graph=True, allow_unused=True)
        assert sum(g.abs().sum().item() for g in gradients if g is not None) > 0, key


def test_it_learns_what_is_worse_than_its_reference(config):
    """On pictures that it never trained on: steps down the ladders, and agreement with the scores."""
    config = dataclasses.replace(config, steps=40, lr=4e-3, warmup=5, ladders=3, ema=0.0, **PLAIN)
    before = finetune.measure(training_model.make(config).model, config, parts.checked_parts(config))
    finetune.train(config)
    after = json.loads((config.out / "run.json").read_text())["held_out"]
    assert after.keys() == {"srcc", "plcc", "ladders", "worst_ladder"}
    assert after["ladders"] > max(0.8, before["ladders"] + 0.2)
    assert after["plcc"] > max(0.8, before["plcc"] + 0.3)
    model = iqguide.create_model("bpclip-fr", weights=config.out / "bpclip-fr.safetensors")
    worst, best = (iqguide.load_images(config.root / name) for name in ("r0-3.png", "r0.png"))
    assert model(worst, best) < model(best, best)


def test_ladders_alone_need_no_scores(config, folder):
    """live-challenge/ lies there, but nothing in it has a reference."""
    config = dataclasses.replace(config, dataset="", root=None, mos_weight=0.0, **PLAIN)
    finetune.train(config)
    assert json.loads((config.out / "run.json").read_text())["held_out"].keys() == {"ladders", "worst_ladder"}


def test_a_resumed_run_is_the_straight_run_bit_for_bit(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, checkpoint_every=2, validation=0.5, out=tmp_path / "straight")
    monkeypatch.setattr(finetune.calibrate, "agreement", lambda *given: {"srcc": 0.5, "plcc": 0.5})
    finetune.train(config)
    resumed = dataclasses.replace(config, out=tmp_path / "resumed")
    step = finetune.train_step

    def interrupted(state, *given):
        if state.step == 3:
            raise KeyboardInterrupt
        return step(state, *given)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.train(resumed)
    torch.manual_seed(99)  # nothing may hang on torch's own generator
    finetune.train(resumed, Started(resume=True))
    for name in (
        "bpclip-fr.safetensors",
        "checkpoint-0000004/model.safetensors",
        "checkpoint-0000004/optimizer.safetensors",
    ):
        assert (config.out / name).read_bytes() == (resumed.out / name).read_bytes(), name


def test_gradient_checkpointing_changes_nothing_but_memory(config):
    found = []
    for again in (False, True):
        _, accelerator, known, state = finetune.prepare(dataclasses.replace(config, gradient_checkpointing=again))
        finetune.train_step(state, [batch_dataset.BatchDataset(known, config)[0]], config, accelerator)
        found.append(state.model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


# --- what is refused before the first step ---


def bare(table):
    text = (table / "mos.csv").read_text()
    (table / "mos.csv").write_text(text.replace("r2-1.png,70,r2.png", "r2-1.png,70,"))


def smaller(table):
    for path in table.glob("r?.png"):
        Image.open(path).resize((95, 96)).save(path)


def refused(config, monkeypatch):
    """What the command says about these settings."""
    monkeypatch.setattr(finetune, "train_step", lambda *given: pytest.fail("training has begun"))
    path = config.out / "c.json"
    path.write_text(json.dumps(jsonable(config)))
    with pytest.raises(SystemExit) as error:
        finetune.main(["--config", str(path)])
    return str(error.value)


NO_REFERENCE = "has no reference, which a full-reference model needs: give dataset and root of pictures that have one"
SPOILT = {
    bare: rf"iqguide: error: .*r2-1\.png {NO_REFERENCE}, or .*\.",
    smaller: r"iqguide: error: .*r\d-\d\.png is 96x96 px and its reference 95x96; expected equal sizes\.",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda function: function.__name__)
def test_bad_references_are_refused_before_the_first_step(config, tmp_path, monkeypatch, spoil):
    table = referenced_table(tmp_path / "table")
    spoil(table)
    assert re.fullmatch(SPOILT[spoil], refused(dataclasses.replace(config, root=table), monkeypatch))


def test_scores_without_references_are_refused_before_the_first_step(config, monkeypatch):
    """The data folder's own, and those of a data set, which is measured on in the end whatever the weights say."""
    own = dataclasses.replace(config, dataset="", root=None)
    assert re.fullmatch(rf"iqguide: error: .*00\.jpg {NO_REFERENCE}, or .*\.", refused(own, monkeypatch))
    other = dataclasses.replace(config, root=config.data / "live-challenge", mos_weight=0.0)
    assert re.fullmatch(rf"iqguide: error: .*\d\d\.jpg {NO_REFERENCE}, or .*\.", refused(other, monkeypatch))
