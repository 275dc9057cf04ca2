"""Learning prompts from people's scores: the loss, the crops, and a run at tiny size on real CLIP towers."""

import csv
import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_qualiclip import SMALL, open_clip_model, published
from torch.nn import functional as F

from iqguide import create_model, load_images
from iqguide.images import save_image
from iqguide.models.learned_prompts import start_tuning
from iqguide.training import prompts
from iqguide.training.datasets import load_dataset
from iqguide.training.prompts import PromptConfig, RandomCrops, loss_of


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Accelerate keeps its choice of device for the whole process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Thirty pictures whose score is how sharp they are, and a small CLIP."""
    torch.save(published(open_clip_model(SMALL), torch.randn(14, SMALL.embed_dim)), tmp_path / "base.pth")
    monkeypatch.setattr(prompts, "start_tuning", partial(start_tuning, config=SMALL))
    rows = [["image", "mos"]]
    for i in range(30):
        level = i % 5
        image = F.avg_pool2d(torch.rand(1, 3, 44, 52), 2 * level + 1, 1, level, count_include_pad=False)
        save_image(image, tmp_path / f"{i}.png")
        rows.append([f"{i}.png", 100 - 20 * level + i / 10])
    with (tmp_path / "mos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    out = str(tmp_path / "run" / "plus.pth")
    return PromptConfig("csv", str(tmp_path), out, base=str(tmp_path / "base.pth"), epochs=3, batch=6, crop=40, lr=2e-2)


def test_loss_is_squared_error_and_correlation():
    x, y = torch.rand(2, 20)
    expected = ((x - y) ** 2).mean() + (1 - np.corrcoef(x, y)[0, 1]) / 2
    assert loss_of(x, y).item() == pytest.approx(float(expected), abs=1e-5)


def test_crops_are_windows_of_the_pictures_or_their_mirror_images(config):
    samples = load_dataset(config.dataset, config.root)
    whole = load_images(samples[3].image)[0]
    windows = whole.unfold(1, 40, 1).unfold(2, 40, 1).flatten(1, 2).transpose(0, 1)
    mirrored = set()
    for _ in range(20):
        crop, mos = RandomCrops(samples, 40, 0)[3]
        assert mos == samples[3].normalised_mos
        found = [bool((windows == view).all(-1).all(-1).all(-1).any()) for view in (crop, crop.flip(2))]
        assert any(found)
        mirrored.add(found[1])
    assert mirrored == {True, False}
    assert RandomCrops(samples, 100, 0)[0][0].shape == (3, 100, 100)  # smaller pictures are enlarged
    assert RandomCrops(samples, 32, 36)[0][0].shape == (3, 32, 32)


def test_a_run_writes_prompts_that_load_and_can_be_repeated(config, tmp_path):
    before = prompts.start_tuning(config.model, base=config.base, seed=config.seed)
    tuning = prompts.train(config)
    assert not torch.equal(tuning.prompts.ctx, before.prompts.ctx)
    assert torch.equal(tuning.prompts.token_suffix, before.prompts.token_suffix)
    model = create_model("qualiclip+", weights=config.out, base=config.base, config=SMALL)
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), tuning(images), atol=1e-5, rtol=0)
    record = json.loads((tmp_path / "run" / "plus.json").read_text())
    assert record["held_out"]["n"] == 6  # a fifth
    assert record["epochs"] == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    again = prompts.train(config)
    assert torch.equal(again.prompts.ctx, tuning.prompts.ctx)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["plus.json", "plus.pth"]


def test_learning_brings_the_scores_nearer(config):
    samples = prompts.parts(load_dataset(config.dataset, config.root))[0]
    images = torch.cat([load_images(sample.image) for sample in samples])
    mos = torch.tensor([sample.normalised_mos for sample in samples])
    before = prompts.start_tuning(config.model, base=config.base, seed=config.seed).eval()
    tuning = prompts.train(config)
    with torch.no_grad():
        assert loss_of(tuning(images), mos) < loss_of(before(images), mos)


def test_command_line(config, monkeypatch):
    found = []
    monkeypatch.setattr(prompts, "train", found.append)
    prompts.main(["--dataset", "csv", "--root", "a", "--out", "b.pth", "--short-side", "512", "--lr", "0.1"])
    assert found == [PromptConfig("csv", "a", "b.pth", short_side=512, lr=0.1)]
    with pytest.raises(SystemExit):
        prompts.main(["--dataset", "csv"])


BAD = {
    "model": ({"model": "tiny"}, "model is 'tiny'; expected one of qualiclip+, clipiqa+"),
    "data set": ({"dataset": "koniq"}, "unknown data set 'koniq'"),
    "root": ({"root": "nowhere"}, "nowhere"),
    "base": ({"base": "gone.pth"}, "there is no weights file gone.pth"),
    "epochs": ({"epochs": 0}, "epochs is 0; expected 1 or more"),
    "crop": ({"crop": 8}, "crop is 8; expected 32 or more"),
    "settings": ({"out": "plus.json"}, "plus.json is where the settings go; expected another ending"),
    "folder": ({"out": "."}, ". is a folder; expected the name of a file"),
    "not a folder": ({"out": "/dev/null/plus.pth"}, "cannot make the folder /dev/null"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_sentence_before_the_first_step(config, name, monkeypatch):
    monkeypatch.setattr(prompts, "loss_of", lambda *given: pytest.fail("training has begun"))
    change, message = BAD[name]
    given = dataclasses.asdict(config) | change
    with pytest.raises(SystemExit) as error:
        prompts.main([f"--{key.replace('_', '-')}={value}" for key, value in given.items()])
    said = str(error.value)
    assert said.startswith("iqguide: error: ")
    assert message in said
    assert "\n" not in said


def test_an_unreadable_held_out_picture_is_found_before_the_first_step(config, tmp_path, monkeypatch):
    held_out = prompts.parts(load_dataset(config.dataset, config.root))[1]
    held_out[-1].image.write_bytes(held_out[-1].image.read_bytes()[:200])
    monkeypatch.setattr(prompts, "loss_of", lambda *given: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=held_out[-1].image.name):
        prompts.train(config)


def test_the_prompts_are_written_before_they_are_measured(config, tmp_path, monkeypatch):
    def broken(*given):
        raise ValueError("the score NaN")

    monkeypatch.setattr(prompts, "measure", broken)
    with pytest.raises(ValueError, match="the score NaN"):
        prompts.train(dataclasses.replace(config, epochs=1))
    create_model("qualiclip+", weights=config.out, base=config.base, config=SMALL)


def test_too_few_pictures(config):
    with pytest.raises(ValueError, match="24 pictures to learn from are less than a batch of 25"):
        prompts.train(dataclasses.replace(config, batch=25))
