"""What a run never loses and never chooses by: used folders, pictures seen before, losses without a value."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import training_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import iqguide
from iqguide.training import batch_dataset, calibrate, finetune, loop, parts
from iqguide.training.config import FinetuneConfig
from iqguide.training.run_settings import Started
from iqguide.training.seen import read_seen, short_digest, write_seen

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SMALL = {
    **{"crop": 48, "scored_crop": 48, "ladders": 1, "ladder_levels": 3, "scored": 3, "aligned": 0, "cut": 1},
    **{"steps": 2, "mixed_precision": "no"},
}
ASSETS = Path(iqguide.__file__).parent / "models" / "assets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"), scored=18)


@pytest.fixture
def config(folder, tmp_path):
    return FinetuneConfig(data=folder, out=tmp_path / "out", measure=False, **SMALL)


# --- the folder of a run ---


def test_what_lies_beside_the_checkpoints_stays(config):
    """Whatever it is called: a run deletes the checkpoint that it has written itself, and no other."""
    names = ("checkpoint-best", "checkpoint-0000001-copy", "checkpoint-notes", "checkpoint-12", "checkpoint-0000009")
    config.out.mkdir()
    for name in names[:-1]:
        (config.out / name).mkdir()
        (config.out / name / "mine.txt").write_text("kept")
    finetune.train(dataclasses.replace(config, checkpoint_every=1))
    (config.out / names[-1]).write_text("a file, not a folder")
    finetune.train(dataclasses.replace(config, checkpoint_every=1, steps=4), Started(resume=True))
    assert {path.name for path in config.out.glob("checkpoint*")} == {*names, "checkpoint-0000004"}
    assert all((config.out / name / "mine.txt").read_text() == "kept" for name in names[:-1])


def test_a_used_folder_is_refused_with_the_ways_out(config, capsys):
    finetune.train(config)
    before = (config.out / "tiny.safetensors").read_bytes()
    other = dataclasses.replace(config, seed=3)
    message = (
        r"out holds checkpoint-0000002, run\.json, tiny\.safetensors of a former run; go on with --resume, replace "
        r"them with --overwrite, or choose another --out"
    )
    with pytest.raises(ValueError, match=message):
        finetune.train(other)
    with pytest.raises(ValueError, match=r"seed is 3 and was 0 when"):
        finetune.train(other, Started(resume=True))
    assert (config.out / "tiny.safetensors").read_bytes() == before
    finetune.train(dataclasses.replace(other, steps=1), Started(overwrite=True))
    assert (config.out / "tiny.safetensors").read_bytes() != before
    assert [path.name for path in config.out.glob("checkpoint*")] == ["checkpoint-0000001"]
    with pytest.raises(SystemExit):
        finetune.main(["--resume", "--overwrite"])
    assert "not allowed with" in capsys.readouterr().err


def test_two_runs_in_one_folder_are_refused(config):
    """The other run is another process, which holds the lock until it ends."""
    config.out.mkdir()
    code = f"from iqguide.errors import claimed\nwith claimed({str(config.out)!r}):\n print('in', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OSError, match=r"another run is writing to .*out"):
            finetune.train(config)
    finally:
        other.kill()  # the lock goes with its process, however that ends
        other.communicate()
    finetune.train(config)


# --- a loss without a value ---


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_finite_result(config, monkeypatch, what, capsys):
    losses = finetune.losses

    def broken(model, batch, config, accelerator):
        found, number = losses(model, batch, config, accelerator), len(calls)
        calls.append(number)
        if number == 5:
            weight = next(p for p in model.parameters() if p.requires_grad)
            # infinite, or of infinite slope at 0
            found["mos"] = found["mos"] / 0 if what == "loss" else found["mos"] + (weight * 0).abs().sum().sqrt()
        return found

    calls = []
    monkeypatch.setattr(finetune, "losses", broken)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | {"steps": 9}).items()]
    flags += ["--data", str(config.data), "--out", str(config.out), "--checkpoint-every=2"]
    expected = (
        rf"^iqguide: error: the {what}.* is (inf|nan) at step 6; .*checkpoint-0000004 and .*tiny\.safetensors are kept"
    )
    with pytest.raises(SystemExit, match=expected) as error:
        finetune.main(flags)
    assert "\n" not in str(error.value)
    kept = load_file(config.out / "checkpoint-0000004" / "model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    iqguide.create_model("tiny", weights=config.out / "tiny.safetensors")


# --- the same pictures ---


def spoil_score(data):
    table = data / "live-challenge/mos.csv"
    table.write_text(table.read_text().replace("03.jpg,42", "03.jpg,43"))


def spoil_list(data):
    table = data / "live-challenge/mos.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")


def spoil_picture(data):
    path = data / "live-challenge/images/03.jpg"
    Image.open(path).save(path, quality=20)


@pytest.mark.parametrize("spoil", [spoil_score, spoil_list, spoil_picture], ids=lambda function: function.__name__)
def test_a_run_goes_on_with_the_same_pictures_and_scores_only(config, tmp_path, spoil):
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    config = dataclasses.replace(config, data=data)
    finetune.train(config)
    finetune.prepare(config, Started(resume=True))
    spoil(data)
    with pytest.raises(ValueError, match=r"not those of .*checkpoint-0000002"):
        finetune.prepare(config, Started(resume=True))


# --- how long ---


def test_a_longer_run_goes_on_from_a_shorter_one(config):
    finetune.train(config)
    state = finetune.train(dataclasses.replace(config, steps=5), Started(resume=True))
    assert state.step == 5
    record = json.loads((config.out / "run.json").read_text())
    assert (record["step"], record["config"]["steps"]) == (5, 5)


def test_epochs_are_passes_over_the_scored_pictures(config, monkeypatch):
    seen, draw = [], batch_dataset.ScoredPictures.draw

    def noted(self, index, rng):
        seen.append(index)
        return draw(self, index, rng)

    monkeypatch.setattr(batch_dataset.ScoredPictures, "draw", noted)
    config = dataclasses.replace(config, epochs=1.5, ranking_weight=0.0, severity_weight=0.0)
    state = finetune.train(config)
    count = len(parts.scored_parts(config)[0])
    assert state.step == math.ceil(1.5 * count / 3)
    assert sorted(seen[:count]) == list(range(count))  # each once, before any comes again
    assert loop.steps_of(dataclasses.replace(config, accumulate=2), count, 3, 2) == math.ceil(1.5 * count / 12)
    assert loop.steps_of(dataclasses.replace(config, epochs=0.0), count, 3, 2) == 2


# --- pictures that were seen before ---


def test_weights_say_which_pictures_they_have_learnt_from(config):
    config = dataclasses.replace(config, validation=0.5)
    finetune.train(config)
    everything = parts.checked_parts(config)
    seen = read_seen("tiny", config.out / "tiny.safetensors")
    assert seen == {short_digest(p.path) for p in (*everything.learnt, *everything.clean)}
    for kept_out in (everything.validation, everything.held_out, everything.clean_held_out):
        assert not seen & {short_digest(p.path) for p in kept_out}
    before = load_file(config.out / "tiny.safetensors")
    write_seen(config.out / "tiny.safetensors", [], {"abc"})
    assert read_seen("tiny", config.out / "tiny.safetensors") == {"abc"}
    for name, value in load_file(config.out / "tiny.safetensors").items():
        assert torch.equal(value, before[name])
    with safe_open(config.out / "tiny.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"])["model"] == "Tiny"


def test_validation_is_by_pictures_that_the_initial_weights_have_not_seen(config, caplog):
    """A second run on the same pictures chooses by the same ones; one that splits otherwise by what is left of them."""
    config = dataclasses.replace(config, validation=0.5)
    finetune.train(config)
    first = parts.checked_parts(config)
    again = dataclasses.replace(config, out=config.out / "b", init=config.out / "tiny.safetensors")
    assert parts.checked_parts(again).validation == first.validation
    seen = [p.path for p in first.validation[:2]]
    write_seen(config.out / "tiny.safetensors", seen, read_seen("tiny", config.out / "tiny.safetensors"))
    second = parts.checked_parts(again)
    if len(first.validation) - 2 >= parts.FEWEST:
        assert second.validation == first.validation[2:]
        assert {p.path for p in seen_again(second.learnt, first.validation[:2])} == set(seen)
    write_seen(config.out / "tiny.safetensors", [p.path for p in first.validation], set())
    assert parts.checked_parts(again).validation == []
    assert f"have learnt from {len(first.validation)} of the {len(first.validation)} validation pictures" in caplog.text


def seen_again(learnt, pictures):
    return [picture for picture in learnt if picture in pictures]


def test_weights_that_do_not_say_what_they_have_seen_are_not_chosen_by_a_figure(config, tmp_path, monkeypatch, caplog):
    """The first checkpoint would have been the best by pictures that the weights know by heart."""
    finetune.train(config)
    write_seen(config.out / "tiny.safetensors", [], None)
    assert read_seen("tiny", config.out / "tiny.safetensors") is None
    monkeypatch.setattr(calibrate, "agreement", lambda *given: pytest.fail("a figure was measured"))
    again = dataclasses.replace(
        config, out=tmp_path / "again", init=config.out / "tiny.safetensors", validation=0.5, checkpoint_every=1
    )
    state = finetune.train(again)
    assert "do not say which pictures they have learnt from" in caplog.text
    assert json.loads((again.out / "run.json").read_text())["validation"] is None
    trained = state.average.model.state_dict()["stages.0.0.weight"]
    assert torch.equal(load_file(again.out / "tiny.safetensors")["stages.0.0.weight"], trained.half())
    assert read_seen("tiny", again.out / "tiny.safetensors") is None  # nor do those say it that come of them


# --- ten splits ---


def test_ten_splits_in_one_command(config, capsys, monkeypatch):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | {"steps": 1}).items()]
    flags += ["--data", str(config.data), "--out", str(config.out), "--split=ten"]
    monkeypatch.setattr(calibrate, "ladder_steps", lambda *given: {})  # which takes most of the time
    step, count = finetune.train_step, []

    def interrupted(*given):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(flags)
    begun = (config.out / "split-0/run.json").stat().st_mtime_ns
    finetune.main([*flags, "--resume"])
    assert (config.out / "split-0/run.json").stat().st_mtime_ns == begun  # a finished one is kept
    record = json.loads((config.out / "run.json").read_text())
    figures = [json.loads((config.out / f"split-{n}/run.json").read_text())["held_out"] for n in range(10)]
    assert record["splits"] == figures
    for name in ("srcc", "plcc"):
        values = [figure[name] for figure in figures]
        assert record["mean"][name] == pytest.approx(np.mean(values))
        assert record["std"][name] == pytest.approx(np.std(values, ddof=1))
    held_out = {
        tuple(p.path.name for p in parts.scored_parts(dataclasses.replace(config, split=str(n)))[2]) for n in range(10)
    }
    assert len(held_out) > 5  # the splits differ
    assert "ten splits: srcc" in capsys.readouterr().err + capsys.readouterr().out or record["mean"]
    with pytest.raises(SystemExit, match=r"holds run\.json .*--resume"):
        finetune.main(flags)


# --- what is measured ---


def test_held_out_figures_are_those_of_the_model_in_float32(config):
    """As `model.margin` says it, to the bit; under bfloat16 it is another figure."""
    model = iqguide.create_model("tiny")
    photographs = parts.scored_parts(config)[2]
    margins = calibrate.margins_of_whole_pictures(model, photographs)
    with torch.no_grad():
        expected = [model.margin(iqguide.load_images(p.path)).item() for p in photographs]
    assert margins.tolist() == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert calibrate.margins_of_whole_pictures(model, photographs).tolist() == margins.tolist()


def test_the_closing_measurement_can_be_switched_off(config, monkeypatch):
    monkeypatch.setattr(calibrate, "measure", lambda *given, **more: pytest.fail("measured"))
    finetune.train(config)
    assert json.loads((config.out / "run.json").read_text())["held_out"] == {}


def test_near_identical_pictures_are_looked_for_once(config, monkeypatch):
    from iqguide.training import data

    calls, groups = [], data.alike_groups
    monkeypatch.setattr(data, "alike_groups", lambda paths: calls.append(len(paths)) or groups(paths))
    finetune.train(dataclasses.replace(config, measure=True))
    assert sorted(calls) == [10, 18]  # the clean ones once, the scored ones once
