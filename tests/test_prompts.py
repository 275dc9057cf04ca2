"""Learning prompts from people's scores: the loss, the crops, and a run at tiny size on real CLIP towers."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

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
from iqguide.training.prompt_data import PromptConfig, RandomCrops, split_samples
from iqguide.training.prompts import loss_of
from iqguide.training.run_settings import Started


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
    return PromptConfig(
        dataset="csv", root=tmp_path, out=tmp_path / "run" / "plus.pth", base=str(tmp_path / "base.pth"), epochs=3,
        batch=6, crop=40, lr=2e-2,
    )  # fmt: skip


def test_loss_is_squared_error_and_correlation():
    x, y = torch.rand(2, 20)
    expected = ((x - y) ** 2).mean() + (1 - np.corrcoef(x, y)[0, 1]) / 2
    assert loss_of(x, y).item() == pytest.approx(float(expected), abs=1e-5)


def test_crops_are_windows_of_the_pictures_or_their_mirror_images(config):
    samples, config = load_dataset(config.dataset, config.root), dataclasses.replace(config, batch=1)
    crops = RandomCrops(samples[3:4], config)
    whole = load_images(samples[3].image)[0]
    windows = whole.unfold(1, 40, 1).unfold(2, 40, 1).flatten(1, 2).transpose(0, 1)
    mirrored = set()
    for number in range(20):
        (crop,), (mos,) = crops[number].values()
        assert mos.item() == pytest.approx(samples[3].normalised_mos)
        found = [bool((windows == view).all(-1).all(-1).all(-1).any()) for view in (crop, crop.flip(2))]
        assert any(found)
        mirrored.add(found[1])
    assert mirrored == {True, False}
    for crop, short_side in ((100, 0), (32, 36)):  # smaller pictures are enlarged, larger ones reduced
        changed = dataclasses.replace(config, crop=crop, short_side=short_side)
        assert RandomCrops(samples, changed)[0]["images"].shape == (1, 3, crop, crop)


def test_batches_go_through_all_pictures_whatever_the_number_of_processes(config):
    samples = load_dataset(config.dataset, config.root)
    alone = [RandomCrops(samples, config)[number] for number in range(5)]
    assert sorted(torch.cat([b["mos"] for b in alone]).tolist()) == sorted(
        torch.tensor([s.normalised_mos for s in samples]).tolist()
    )
    half = dataclasses.replace(config, batch=3)
    both = [RandomCrops(samples, half, process, 2)[1] for process in range(2)]
    for name, value in alone[1].items():
        assert torch.equal(value, torch.cat([part[name] for part in both])), name


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
    assert record["config"]["epochs"] == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"plus\.json, plus\.pth .*--resume"):
        prompts.train(config)
    again = prompts.train(config, Started(overwrite=True))
    assert torch.equal(again.prompts.ctx, tuning.prompts.ctx)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["plus-run", "plus.json", "plus.pth"]


def test_a_resumed_run_is_the_straight_run(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, checkpoint_every=4, validation=0.25)
    straight = prompts.train(config)
    record = json.loads(config.record.read_text())
    assert record["validation"]["step"] in (4, 8, 9)
    config = dataclasses.replace(config, out=tmp_path / "again" / "plus.pth")
    loss, calls = prompts.loss_of, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(prompts, "loss_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prompts.train(config)
    assert [path.name for path in config.folder.glob("checkpoint*")] == ["checkpoint-0000004"]
    resumed = prompts.train(config, Started(resume=True))
    assert torch.equal(resumed.prompts.ctx, straight.prompts.ctx)
    again = json.loads(config.record.read_text())
    assert again["validation"] == record["validation"]
    assert again["held_out"] == record["held_out"]


def test_learning_brings_the_scores_nearer(config):
    samples = split_samples(config).learnt
    images = torch.cat([load_images(sample.image) for sample in samples])
    mos = torch.tensor([sample.normalised_mos for sample in samples])
    before = prompts.start_tuning(config.model, base=config.base, seed=config.seed).eval()
    tuning = prompts.train(config)
    with torch.no_grad():
        assert loss_of(tuning(images), mos) < loss_of(before(images), mos)


def test_command_line(config, monkeypatch):
    found = []
    monkeypatch.setattr(prompts, "train", lambda *given: found.append(given))
    prompts.main(["--dataset", "csv", "--root", "a", "--out", "b.pth", "--short-side", "512", "--lr", "0.1"])
    expected = PromptConfig(dataset="csv", root=Path("a"), out=Path("b.pth"), short_side=512, lr=0.1)
    assert found == [(expected, Started())]
    with pytest.raises(SystemExit):
        prompts.main(["--dataset", "csv"])


BAD = {
    "model": ({"model": "tiny"}, "model is 'tiny'; expected one of 'qualiclip+', 'clipiqa+'"),
    "data set": ({"dataset": "koniq"}, "unknown data set 'koniq'"),
    "root": ({"root": "nowhere"}, "nowhere"),
    "base": ({"base": "gone.pth"}, "there is no weights file gone.pth"),
    "epochs": ({"epochs": -1}, "epochs is -1.0; expected 0 or more"),
    "crop": ({"crop": 8}, "crop is 8; expected 32 or more"),
    "settings": ({"out": "plus.json"}, "plus.json is where the settings go; expected another ending"),
    "folder": ({"out": "."}, ". is a folder; expected the name of a file"),
    "not a folder": ({"out": "/dev/null/plus.pth"}, "cannot make the folder /dev/null"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_sentence_before_the_first_step(config, name, monkeypatch, capsys):
    monkeypatch.setattr(prompts, "loss_of", lambda *given: pytest.fail("training has begun"))
    change, message = BAD[name]
    names = ("dataset", "root", "out", "base", "epochs", "batch", "crop")
    given = {name: getattr(config, name) for name in names} | change
    with pytest.raises(SystemExit) as error:
        prompts.main([f"--{key.replace('_', '-')}={value}" for key, value in given.items()])
    said = str(error.value) if error.value.code != 2 else capsys.readouterr().err.strip()
    assert said.startswith("iqguide: error: ")
    assert message in said
    assert "\n" not in said


def test_an_unreadable_held_out_picture_is_found_before_the_first_step(config, tmp_path, monkeypatch):
    held_out = split_samples(config).held_out
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
