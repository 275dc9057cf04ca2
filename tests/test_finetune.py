"""The one training loop: every model, what survives a kill, several processes, and what is refused before it starts."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from made_photographs import held_out_crops, training_folder
from PIL import Image
from safetensors.torch import load_file

import iqguide
from iqguide.training import (
    batch_dataset,
    batches,
    calibrate,
    checkpoints,
    data,
    finetune,
    loop,
    objectives,
    parts,
    training_model,
)
from iqguide.training.config import FinetuneConfig, parse_config, read_config
from iqguide.training.run_settings import Started

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SMALL = {
    "crop": 48,
    "scored_crop": 48,
    "ladders": 2,
    "ladder_levels": 3,
    "scored": 3,
    "aligned": 2,
    "cut": 2,
    "steps": 2,
}
CLIP = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "embed_dim": 16, "image_size": 64}
MINI = {
    "backbone": "resnet18",
    "channels": [16, 16, 16, 16],
    "text_source": "random",
    "width": 16,
    "heads": 2,
    "mask_width": 8,
    "text_dim": 16,
    "head_width": 8,
}
PLAIN = {"alignment_weight": 0.0, "penalty_weight": 0.0, "attack_weight": 0.0}
CONFIGS = sorted((Path(__file__).parents[1] / "recipes" / "configs").glob("*.toml"))
MODELS = {
    "tiny": {},
    "bpclip-mini": {"options": {"config": MINI}},
    "qualiclip": {
        "options": {"config": CLIP},
        "prompt_weight": 1.0,
        **dict.fromkeys(("ranking_weight", "severity_weight", "mos_weight"), 0.0),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"), scored=17)


@pytest.fixture
def config(folder, tmp_path):
    return FinetuneConfig(data=folder, out=tmp_path, mixed_precision="no", **SMALL)


def with_model(config, name, **more):
    return dataclasses.replace(config, model=name, **(MODELS[name] | more))


def one_step(config):
    """The state after one step, and the losses."""
    config, accelerator, known, state = finetune.prepare(config)
    found = finetune.train_step(state, [batch_dataset.BatchDataset(known, config)[0]], config, accelerator)
    return state, found


def weights(state):
    return {name: value.clone() for name, value in state.model.state_dict().items()}


# --- every model ---


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_trained_by_the_same_loop(config, name):
    config = with_model(config, name)
    finetune.train(config)
    options = {"config": training_model._sizes(name, config.options["config"])} if name == "qualiclip" else {}
    model = iqguide.create_model(name, weights=config.out / f"{name}.safetensors", **options)
    score = model(torch.rand(2, 3, 64, 48))
    assert score.isfinite().all()
    figures = json.loads((config.out / "run.json").read_text())["held_out"]
    assert figures.keys() == {"srcc", "plcc", "ladders", "worst_ladder"}
    crops = held_out_crops(config)
    assert model.margin(crops).mean().item() == pytest.approx(0, abs=0.1)
    assert model.margin(crops).std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_objective_reaches_the_weights(config, name):
    """Guidance-grade fine-tuning is one option for every model: each loss alone moves the model."""
    config = with_model(config, name)
    config, accelerator, known, state = finetune.prepare(config)
    batch = batch_dataset.BatchDataset(known, config)[0]
    found = finetune.losses(state.model, batch, config, accelerator)
    expected = {"alignment", "penalty", "attack"}
    expected |= {"consistency", "positive", "negative"} if name == "qualiclip" else {"ranking", "severity", "mos"}
    assert expected <= found.keys()
    for key in ("alignment", "penalty", *(expected - {"alignment", "penalty", "attack", "consistency"})):
        gradients = torch.autograd.grad(
            found[key], [p for p in state.model.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
        )
        assert sum(g.abs().sum().item() for g in gradients if g is not None) > 0, key


def test_only_the_vision_tower_of_qualiclip_learns(config):
    config = with_model(config, "qualiclip", lr=1e-2)
    before = training_model.make(config).state_dict()
    after = weights(one_step(config)[0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.visual.") for name in changed)
    assert "model.visual.attnpool.positional_embedding" not in changed


def test_raw_scores_have_one_unit_for_every_model(folder):
    images = torch.rand(3, 3, 64, 64)
    bpclip = iqguide.create_model("bpclip-mini", weights="random")
    torch.testing.assert_close(training_model.TrainingModel(bpclip)(images), (100 * bpclip.raw(images) - 75) / 14)
    clip = iqguide.create_model("qualiclip", weights="random", config=training_model._sizes("qualiclip", CLIP))
    logits = clip.logits(images).mean(1)
    torch.testing.assert_close(training_model.TrainingModel(clip)(images), (25 * logits - 25) / 14)
    similarities = training_model.TrainingModel(clip)(images, what="prompts")
    features = torch.nn.functional.normalize(clip.prompts_features, dim=1)
    expected = clip.features(images) @ features.T
    torch.testing.assert_close(similarities[:, 0], expected[:, 0::2].mean(1))
    torch.testing.assert_close(similarities[:, 1], expected[:, 1::2].mean(1))


# --- objectives and batches ---


def test_prompt_ranking_by_hand():
    positive = torch.tensor([[[0.5, 0.2], [0.4, 0.3]]])  # one photograph, two crops, two levels
    negative = torch.tensor([[[0.1, 0.3], [0.1, 0.1]]])
    consistency, falling, rising = objectives.prompt_ranking(positive, negative, 0.05, 0.15)
    # |.5 - .4|, |.2 - .3|, |.1 - .1|, |.3 - .1| above .05
    assert consistency.item() == pytest.approx(0.05 + 0.05 + 0 + 0.15)
    # s(2, k') - s(1, k) + .15 above 0: .2 - .5, .3 - .5, .2 - .4, .3 - .4
    assert falling.item() == pytest.approx(0 + 0 + 0 + 0.05)
    # s(1, k) - s(2, k') + .15: .1 - .3, .1 - .1, .1 - .3, .1 - .1
    assert rising.item() == pytest.approx(0 + 0.15 + 0 + 0.15)
    both = objectives.prompt_ranking(positive.repeat(3, 1, 1), negative.repeat(3, 1, 1), 0.05, 0.15)
    assert [x.item() for x in both] == pytest.approx([0.25, 0.05, 0.3])  # the mean over photographs
    tied = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])  # no order where neither level is worse
    some = objectives.prompt_ranking(positive.repeat(3, 1, 1), negative.repeat(3, 1, 1), 0.05, 0.15, tied)
    assert [x.item() for x in some] == pytest.approx([0.25, 0.05 / 3, 0.3 / 3])


@pytest.mark.parametrize("published", [False, True])
def test_twin_ladders_are_two_crops_at_the_same_levels(folder, published):
    crops = batches.Crops(data.clean_photographs(folder), 64, 1, np.random.default_rng(0))
    for step in range(6):
        twins, order = batches.twin_ladders(
            crops, 48, 5, *batch_dataset.draws(FinetuneConfig(), step), published=published
        )
        assert twins.shape == (2, 5, 3, 48, 48)
        assert not torch.equal(twins[0, 0], twins[0, 4])
        assert order.shape == (5,)
        assert (order.diff() >= 0).all()
        again, _ = batches.twin_ladders(crops, 48, 5, *batch_dataset.draws(FinetuneConfig(), step), published=published)
        assert torch.equal(twins, again)


def test_crops_can_be_cut_at_every_draw(folder):
    photographs = data.clean_photographs(folder)
    crops = batches.Crops(photographs, 64, 0, np.random.default_rng(0))
    assert crops.images is None
    first, again = (crops.batch(3, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, crops.batch(3, np.random.default_rng(6)))


def test_samples_depend_on_their_place_in_the_whole_batch(config):
    """Two processes with two samples each see what one with four sees."""
    known = batch_dataset.gather(config)
    whole = batch_dataset.BatchDataset(known, dataclasses.replace(config, ladders=4, scored=6, aligned=4))[3]
    halves = [batch_dataset.BatchDataset(known, config, process, 2)[3] for process in range(2)]
    assert whole.keys() == halves[0].keys()
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([half[name] for half in halves])), name
    assert not torch.equal(whole["ladders"], batch_dataset.BatchDataset(known, config)[4]["ladders"])


def test_worker_processes_make_the_same_batches(config):
    known = batch_dataset.BatchDataset(batch_dataset.gather(config), config)
    loader = torch.utils.data.DataLoader(known, None, sampler=[0, 1], num_workers=1)
    for number, batch in enumerate(loader):
        for name, value in batch.items():
            assert torch.equal(value, known[number][name])


# --- the step ---


def test_accumulated_gradients_are_the_mean(config):
    config = dataclasses.replace(config, ema=0.0)
    config, accelerator, known, state = finetune.prepare(config)
    batch = batch_dataset.BatchDataset(known, config)[0]
    finetune.train_step(state, [batch], config, accelerator)
    once = weights(state)
    twice = dataclasses.replace(config, accumulate=2)
    _, accelerator, _, state = finetune.prepare(twice)
    finetune.train_step(state, [batch, batch], twice, accelerator)
    for name, value in weights(state).items():
        torch.testing.assert_close(value, once[name], rtol=1e-4, atol=1e-6)
    other = batch_dataset.BatchDataset(known, config)[1]
    _, accelerator, _, state = finetune.prepare(twice)
    finetune.train_step(state, [batch, other], twice, accelerator)
    assert any(not torch.allclose(value, once[name], atol=1e-5) for name, value in weights(state).items())


@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_changes_nothing_but_memory(config, name):
    config = with_model(config, name)
    kept, again = (
        weights(one_step(dataclasses.replace(config, gradient_checkpointing=flag))[0]) for flag in (False, True)
    )
    for key, value in kept.items():
        torch.testing.assert_close(again[key], value, rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_and_groups_have_their_own_rate(config):
    config = dataclasses.replace(
        config, freeze=("stages.0", "head.2"), lr_factors={"stages": 0.1, "stages.3": 0.0}, weight_decay=0.0, **PLAIN
    )
    before, after = training_model.make(config).state_dict(), weights(one_step(config)[0])
    change = {name: (after[name] - before[name]).abs().max().item() for name in before if name.endswith("weight")}
    still = [name for name, size in change.items() if size == 0]
    assert all(name.startswith(("model.stages.0", "model.head.2", "model.stages.3")) for name in still)
    assert change["model.stages.0.0.weight"] == change["model.head.2.weight"] == change["model.stages.3.0.weight"] == 0
    # AdamW's first step is as long as the rate, whatever the gradient: lr / 100 in the warm-up
    assert change["model.head.0.weight"] == pytest.approx(config.lr / 100, rel=0.05)
    assert change["model.stages.1.0.weight"] == pytest.approx(config.lr / 1000, rel=0.05)


@pytest.mark.parametrize("setting", [{"freeze": ("heads",)}, {"lr_factors": {"heads": 2.0}}])
def test_a_name_that_no_parameter_has_is_refused(config, setting):
    with pytest.raises(ValueError, match=r"tiny begins with 'heads'; the first is 'stages"):
        finetune.prepare(dataclasses.replace(config, **setting))


def test_without_an_average_the_result_is_the_model(config):
    state = finetune.train(dataclasses.replace(config, ema=0.0))
    trained = state.model.state_dict()
    for name, value in load_file(config.out / "tiny.safetensors").items():
        if name.startswith("stages"):
            expected = trained[f"model.{name}"]
            assert torch.equal(value, expected.half() if expected.ndim > 1 else expected), name


def test_the_best_checkpoint_by_validation_is_the_result(config, monkeypatch):
    scores, kept = iter((0.2, 0.9, float("nan"), 0.7)), []

    def agreement(model, photographs, size):
        assert len(photographs) == 5
        kept.append(model.stages[0][0].weight.detach().clone())
        return {"srcc": next(scores), "plcc": 0.0}

    config = dataclasses.replace(config, steps=4, checkpoint_every=1, validation=0.4, **PLAIN)
    monkeypatch.setattr(calibrate, "agreement", agreement)
    monkeypatch.setattr(calibrate, "measure", lambda *given, **more: {})
    finetune.train(config)
    assert json.loads((config.out / "run.json").read_text())["validation"] == {"step": 2, "srcc": 0.9}
    assert torch.equal(load_file(config.out / "tiny.safetensors")["stages.0.0.weight"], kept[1].half())
    assert not torch.equal(kept[1].half(), kept[3].half())


# --- trackers ---


@pytest.fixture
def tracked(config, monkeypatch):
    """Settings of a short run with a tracker, and the losses of its steps as they come up."""
    found, step = [], finetune.train_step

    def noted(*given):
        found.append(step(*given))
        return found[-1]

    monkeypatch.setattr(finetune, "train_step", noted)
    monkeypatch.setattr(calibrate, "measure", lambda *given, **more: {})
    return dataclasses.replace(config, steps=40, checkpoint_every=40, ladders=1, scored=2, **PLAIN), found


def test_a_run_is_tracked(tracked, monkeypatch):
    config, found = tracked
    logged = []
    monkeypatch.setattr(loop.Accelerator, "log", lambda self, values, step: logged.append((step, values)))
    finetune.train(config)
    assert [step for step, _ in logged[:2]] == [20, 40]
    assert logged[0][1] == found[19] | {"lr": loop.learning_rate(config, 19)}


def test_tensorboard_gets_the_losses(tracked):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, found = tracked
    finetune.train(dataclasses.replace(config, tracker="tensorboard", validation=0.4))
    read = EventAccumulator(str(config.out / "iqguide")).Reload()
    assert set(read.Tags()["scalars"]) == {*found[0], "lr", "validation_srcc", "validation_plcc"}
    for name in found[0]:
        values = {event.step: event.value for event in read.Scalars(name)}
        assert values == pytest.approx({20: found[19][name], 40: found[39][name]})
    assert [event.step for event in read.Scalars("validation_srcc")] == [40]


def test_wandb_writes_into_the_folder_of_the_run(tracked, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    finetune.train(dataclasses.replace(tracked[0], out=out, tracker="wandb"))
    assert list(out.glob("wandb/offline-run-*/*.wandb"))
    assert not (tmp_path / "wandb").exists()


@pytest.mark.filterwarnings("ignore:`log_with=wandb` was passed:UserWarning")  # it need not be installed here
def test_wandb_is_told_the_folder_of_the_run(config, monkeypatch):
    told = []
    monkeypatch.setattr(loop, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(loop.Accelerator, "init_trackers", lambda self, *given: told.append(given))
    finetune.prepare(dataclasses.replace(config, tracker="wandb", **PLAIN))
    ((project, settings, options),) = told
    assert project == "iqguide"
    assert settings["steps"] == config.steps
    assert options == {"wandb": {"dir": config.out}}


def test_a_tracker_that_is_not_installed_is_named(config, monkeypatch):
    monkeypatch.setattr(loop, "get_available_trackers", list)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        finetune.prepare(dataclasses.replace(config, tracker="tensorboard"))


@pytest.mark.filterwarnings("ignore:.*no supported trackers are currently installed")
def test_a_tracker_that_cannot_start_is_said_in_one_sentence(config, monkeypatch):
    def refused(*given):
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(loop, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(loop.Accelerator, "init_trackers", refused)
    with pytest.raises(ValueError, match="the tracker wandb cannot start: No API key configured"):
        finetune.prepare(dataclasses.replace(config, tracker="wandb"))


def test_deepspeed_whose_states_are_pickles_is_refused(config, monkeypatch):
    monkeypatch.setattr(loop.Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(
        ValueError, match="DeepSpeed keeps its states in files that only it reads, as pickles; use FSDP"
    ):
        finetune.prepare(config)


# --- runs from the command line ---


def launch(*flags, processes=1):
    """The running command; accelerate's own launcher starts one process only on CPUs, so torch's does."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, "iqguide.training.finetune", *(str(flag) for flag in flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return output


def small_file(folder, path, **more):
    path.write_text(json.dumps({"data": str(folder), **SMALL, **more}))
    return path


def test_a_killed_run_resumes_as_if_nothing_had_happened(folder, tmp_path):
    settings = small_file(folder, tmp_path / "c.json", steps=60, checkpoint_every=2, model="tiny", **PLAIN)
    process = launch("--config", settings, "--out", tmp_path / "killed")
    deadline = time.monotonic() + 400
    while not (tmp_path / "killed" / "checkpoint-0000002").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = max(int(path.name[-7:]) for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert 2 <= reached < 60
    # go on for two more steps; the learning rate must not see that the end has moved, so it is the same 60
    steps = {"data": folder, "steps": 60, "checkpoint_every": 2, "mixed_precision": "bf16"}
    config = FinetuneConfig(**(SMALL | PLAIN | steps), out=tmp_path / "killed")
    accelerator_free()
    config, accelerator, known, state = finetune.prepare(config, Started(resume=True))
    assert state.step == reached
    wanted = reached + 2
    resumed = after_steps(config, wanted, accelerator, known, state)
    accelerator_free()
    fresh = dataclasses.replace(config, out=tmp_path / "straight")
    config, accelerator, known, state = finetune.prepare(fresh)
    finetune.centre(state, known, fresh, accelerator)
    straight = after_steps(fresh, wanted, accelerator, known, state)
    accelerator_free()
    assert resumed.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def accelerator_free():
    AcceleratorState._reset_state(reset_partial_state=True)


def after_steps(config, step, accelerator, known, state):
    made = batch_dataset.BatchDataset(known, config)
    while state.step < step:
        finetune.train_step(state, [made[state.step]], config, accelerator)
    moments = {f"{i}.{k}": v for i, m in enumerate(state.optimiser.state.values()) for k, v in m.items()}
    average = {f"average.{name}": value for name, value in state.average.state_dict().items()}
    return weights(state) | average | moments


def test_two_processes_do_what_one_does_with_the_same_batch(folder, tmp_path):
    """Two gloo processes with half of the batch each, against one with all of it, in full precision."""
    # from trained weights: random ones score all pictures alike, where correlations turn rounding into steps
    shared = {"mixed_precision": "no", "steps": 2, "checkpoint_every": 2, "init": "default"}
    half = small_file(folder, tmp_path / "half.json", **shared)
    whole = small_file(folder, tmp_path / "whole.json", **shared, ladders=4, scored=6, aligned=4)
    finished(launch("--config", half, "--out", tmp_path / "two", processes=2))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    accelerator_free()
    finetune.main(["--config", str(whole), "--out", str(tmp_path / "one")])
    accelerator_free()
    one, two = (load_file(tmp_path / name / "checkpoint-0000002" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    names = [name for name in one if name.startswith(("model.stages", "model.head")) and "running" not in name]

    def distance(a, b):
        return sum((a[name].double() - b[name].double()).square().sum() for name in names) ** 0.5

    # by what it matters to see the whole batch: half of it alone goes elsewhere
    alone = after_steps_of(half, tmp_path / "alone")
    assert distance(one, alone) > 1e-3
    assert distance(one, two) < 0.02 * distance(one, alone)


def after_steps_of(settings, out):
    """The weights of a run on one process."""
    finetune.main(["--config", str(settings), "--out", str(out)])
    accelerator_free()
    return load_file(out / "checkpoint-0000002" / "model.safetensors")


def test_run_json_runs_again(config):
    finetune.main([f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | PLAIN).items()]
                  + ["--data", str(config.data), "--out", str(config.out), "--mixed-precision", "no"])  # fmt: skip
    again = config.out / "again"
    finetune.main(["--config", str(config.out / "run.json"), "--out", str(again)])
    assert (again / "tiny.safetensors").read_bytes() == (config.out / "tiny.safetensors").read_bytes()


# --- checkpoints ---


@pytest.fixture(scope="module")
def finished_run(folder, tmp_path_factory):
    """Settings of a run that has ended, its checkpoint kept."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    config = FinetuneConfig(data=folder, out=out, mixed_precision="no", **(SMALL | PLAIN))
    finetune.train(config)
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-5, "seed": 7}, r"seed is 7 and was 0 when .*checkpoint-0000002 was written; resume with the same"),
        ({"steps": 1}, "steps is 1 and was 2 when .*; resume with the same settings or more steps"),
        ({"model": "bpclip-mini"}, "model is 'bpclip-mini' and was 'tiny' when"),
        ({"freeze": ("stages",)}, r"freeze is \['stages'\] and was \[\] when"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(finished_run, change, message):
    with pytest.raises(ValueError, match=message):
        finetune.prepare(dataclasses.replace(finished_run, **change), Started(resume=True))


def test_a_run_is_resumed_with_another_number_of_workers(finished_run):
    config = dataclasses.replace(finished_run, workers=1, gradient_checkpointing=True)
    assert finetune.prepare(config, Started(resume=True))[-1].step == 2


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "average.safetensors",
        "optimizer.safetensors",
        "random-0.safetensors",
        "state.json",
        "settings.json",
    ],
)
def test_a_damaged_checkpoint_is_refused(finished_run, tmp_path, name):
    shutil.copytree(finished_run.out, tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoint-0000002" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"checkpoint-0000002 cannot be read \(.*\); if it is damaged") as error:
        finetune.prepare(dataclasses.replace(finished_run, out=tmp_path / "copy"), Started(resume=True))
    assert "\n" not in str(error.value)


def test_a_sound_checkpoint_is_not_called_damaged(finished_run, tmp_path, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_file", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            finetune.prepare(finished_run, Started(resume=True))
    shutil.copytree(finished_run.out, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint-0000002" / "settings.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no settings\.json"):
        finetune.prepare(dataclasses.replace(finished_run, out=tmp_path / "copy"), Started(resume=True))


def test_a_run_is_not_resumed_with_another_number_of_processes(finished_run, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="processes is 2 and was 1 when"):
        finetune.prepare(finished_run, Started(resume=True))


def test_the_data_may_be_named_in_another_way(finished_run, monkeypatch):
    monkeypatch.chdir(finished_run.data.parent)
    config = dataclasses.replace(finished_run, data=Path(finished_run.data.name))
    assert finetune.prepare(config, Started(resume=True))[-1].step == 2


def test_only_a_full_disk_is_called_one(config, monkeypatch):
    def broken(*_):
        raise RuntimeError("NCCL error")

    monkeypatch.setattr(checkpoints, "save_file", broken)
    with pytest.raises(RuntimeError, match=r"^NCCL error$"):
        finetune.train(dataclasses.replace(config, **PLAIN))


@pytest.mark.parametrize(
    ("size", "what"),
    [(100_000, r"tiny\.safetensors"), (5_000_000, "checkpoint-0000002"), (10_000_000, "checkpoint-0000002")],
    ids=["result", "model", "optimiser"],
)
def test_a_full_disk_leaves_the_checkpoint_before(config, monkeypatch, size, what):
    """A limit on the size of files stands for the disk; at the second checkpoint something does not fit."""
    resource = pytest.importorskip("resource")
    step, limits = finetune.train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(state, *given):
        if state.step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        return step(state, *given)

    monkeypatch.setattr(finetune, "train_step", filled)
    flags = small_flags(SMALL | PLAIN | {"checkpoint_every": 1, "data": config.data, "out": config.out})
    try:
        with pytest.raises(SystemExit, match=rf"^iqguide: error: cannot write .*{what}(: | \().*; free") as error:
            finetune.main([*flags, "--mixed-precision=no"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    names = {path.name for path in config.out.iterdir() if not path.name.startswith(".")}
    assert names == {"tiny.safetensors", "checkpoint-0000001"}
    iqguide.create_model("tiny", weights=config.out / "tiny.safetensors")
    monkeypatch.setattr(finetune, "train_step", step)
    config = dataclasses.replace(config, checkpoint_every=1, **PLAIN)
    assert finetune.prepare(config, Started(resume=True))[-1].step == 1


# --- configs ---


def test_a_file_gives_settings_and_flags_go_before_it(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"model": "qualiclip", "lr": 1, "steps": 9, "freeze": ["visual.conv"], "init": None}))
    config, _ = parse_config(["--config", str(path), "--steps", "11"])
    assert config == FinetuneConfig(model="qualiclip", lr=1.0, steps=11, freeze=("visual.conv",))
    assert isinstance(config.lr, float)


def test_former_names_of_settings_are_read(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"opinion_weight": 0.5, "opinions": 3, "rungs": 5}))
    config, _ = parse_config(["--config", str(path), "--opinion-crop", "64", "--rungs", "6"])
    assert config == FinetuneConfig(mos_weight=0.5, scored=3, scored_crop=64, ladder_levels=6)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML came with Python 3.11")
def test_toml_is_read(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('model = "bpclip"  # the large one\nlr = 3e-5\nfreeze = ["backbone"]\n[lr_factors]\nhead = 2.0\n')
    values = read_config(path)
    assert values == {"model": "bpclip", "lr": 3e-5, "freeze": ("backbone",), "lr_factors": {"head": 2.0}}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML came with Python 3.11")
@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "recipes/configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_configs_that_come_along_are_valid(path):
    config, _ = parse_config(["--config", str(path)])
    assert config.model == path.stem


BROKEN = {
    '{"stepz": 3}': "has an unknown key 'stepz'; did you mean 'steps'?",
    '{"steps": "many"}': "steps in .* is 'many'; expected int",
    '{"steps": true}': "steps in .* is True; expected int",
    '{"steps": 3': r"cannot be read \(.*\); expected JSON or TOML",
    '{"model": "niqe"}': "model is 'niqe'; expected one of 'tiny', 'qualiclip'",
    '{"steps": 0}': "steps is 0; expected 1 or more",
    '{"dataset": "spaq"}': "dataset and root belong together",
    '{"prompt_weight": 1}': "prompt_weight is 1.0 and tiny has no prompts",
    '{"twins": "published", "levels": 6}': "levels is 6; expected at most 5, which is how many are published",
    "[1]": r"c\.json holds \[1\]; expected settings by their names",
    '{"config": 3}': r"c\.json holds 3; expected settings by their names",
    '{"freeze": [1]}': r"freeze in .*c\.json is \[1\]; expected texts",
    '{"lr": NaN}': "lr is nan; expected 0 or more",
    '{"rank_margin": NaN}': "rank_margin is nan; expected 0 or more",
}
FLAGS = {
    "--warmup=0": "warmup is 0; expected 1 or more",
    "--ladder-levels=1": "ladder_levels is 1; expected 2 or more",
    "--ladders=0": "ladders is 0; expected 1 or more",
    "--scored=0": "scored is 0; expected 1 or more",
    "--crop=0": "crop is 0; expected 32 or more",
    "--crop=16": "crop is 16; expected 32 or more",
    "--workers=-1": "workers is -1; expected 0 or more",
    "--validation=1.5": "validation is 1.5; expected 0 to 0.9",
    "--validation-size=16": "short_side is 16; expected 0 or 32 or more",
    "--ema=2": "ema is 2.0; expected 0 to 1",
    "--lr=inf": "lr is inf; expected 0 or more, a finite number",
    "--seed=5000000000": "seed is 5000000000; expected 0 to 4294967295",
    "--steps=many": "argument --steps: invalid int value: 'many'",
    "--options=[1]": r"argument --options: got '\[1\]'; expected JSON such as",
    "--options={": "argument --options: got '{'; expected JSON such as",
    "--lr-factors=[1]": r"argument --lr-factors: got '\[1\]'; expected JSON such as",
    '--lr-factors={"head": "x"}': "lr_factors has 'x' for 'head'; expected a number of 0 or more",
    "--ranking-weight=0 --severity-weight=0 --mos-weight=0 --aligned=0": "no objective has a weight above 0",
    "--ranking-weight=0 --severity-weight=0 --mos-weight=0 --alignment-weight=0 --penalty-weight=0"
    " --attack-weight=0": "no objective has a weight above 0",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items())
def test_a_bad_config_is_refused_in_one_sentence(tmp_path, capsys, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as error:
        finetune.main(["--config", str(path)])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, said), said


@pytest.mark.parametrize(("flags", "message"), FLAGS.items())
def test_a_bad_flag_is_refused_in_one_sentence(capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        finetune.main(re.split(" (?=--)", flags))
    assert error.value.code == 2
    assert re.fullmatch(rf"iqguide: error: .*{message}.*\n", capsys.readouterr().err)


def test_denoised_predictions_are_not_asked_for_where_nothing_is_aligned(config, tmp_path):
    pictures = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    torch.save({"clean": pictures, "degraded": pictures, "severity": torch.ones(4)}, tmp_path / "cache.pt")
    config = dataclasses.replace(config, denoised=tmp_path / "cache.pt", aligned=0)
    assert "worse" not in batch_dataset.BatchDataset(batch_dataset.gather(config), config)[0]


# --- bad data, before any training time is lost ---


def refused(flags, monkeypatch):
    """What the command says about its flags."""
    monkeypatch.setattr(finetune, "train_step", lambda *given: pytest.fail("training has begun"))
    with pytest.raises(SystemExit, match=r"^iqguide: error: ") as error:
        finetune.main([str(flag) for flag in [*flags, "--mixed-precision=no"]])
    assert "\n" not in str(error.value)
    return str(error.value)


def small_flags(settings=SMALL):
    return [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]


UNUSABLE = {
    '--options={"foo":1}': r"the options \{'foo': 1\} cannot be used: tiny has no option 'foo'",
    '--options={"seed":"x"}': "seed in options is 'x'; expected a whole number",
    '--options={"seed":true} --init=default': "seed in options is True; expected a whole number",
    '--options={"config":3}': "config in options is 3; expected sizes by their names",
    '--options={"config":{"width":3}}': "tiny has no size 'width'",
    '--model=bpclip-mini --options={"config":{"width":"a"}}': "width is 'a'; expected whole numbers from 1",
    "--denoised=GARBAGE": r"garbage\.pt cannot be read as weights \(no plain state dict\)",
    "--denoised=OTHER": r"other\.pt has clean, degraded and severity of the shapes None, None, None; expected two of",
    "--denoised=GONE": r"there is no weights file .*gone\.pt",
    "--teacher=GARBAGE": r"garbage\.pt cannot be read as weights \(no plain state dict\)",
    "--teacher=OTHER": r"other\.pt has no conv1\.weight; expected SqueezeNet 1\.0",
    "--out=GARBAGE": r"cannot make the folder .*garbage\.pt/out",
}


@pytest.mark.parametrize(("flag", "message"), UNUSABLE.items())
def test_what_cannot_be_used_is_refused_before_the_first_step(folder, tmp_path, monkeypatch, flag, message):
    (tmp_path / "garbage.pt").write_bytes(b"\x80\x02cnothing\nat all\n")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("garbage", "other", "gone"):
        flag = flag.replace(name.upper(), str(tmp_path / f"{name}.pt"))
    out = f"{flag}/out" if flag.startswith("--out") else f"--out={tmp_path / 'out'}"
    said = refused([f"--data={folder}", *flag.split(), out, *small_flags()], monkeypatch)
    assert re.search(message, said), said
    assert "weights_only" not in said


def own_table(root, count=20, sizes=None, last="test"):
    """A CSV data set in which every fifth picture is held out."""
    rng, rows = np.random.default_rng(0), ["image,mos,split"]
    root.mkdir()
    for number in range(count):
        side = (sizes or {}).get(number, 64)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(root / f"{number:02}.png")
        rows.append(f"{number:02}.png,{number},{last if number % 5 == 4 else 'train'}")
    (root / "mos.csv").write_text("\n".join(rows) + "\n")
    return root


def truncated_held_out(folder, root):
    path = own_table(root / "t") / "09.png"
    path.write_bytes(path.read_bytes()[:300])
    return ["--dataset=csv", f"--root={path.parent}"], r"09\.png cannot be decoded .*get the file again"


def small_held_out(folder, root):
    table = own_table(root / "t", sizes={14: 20})
    return ["--dataset=csv", f"--root={table}"], r"14\.png is 20x20 px; expected 32 or more on the short side"


def small_own(folder, root):
    shutil.copytree(folder, root / "data")
    Image.open(folder / "live-challenge/images/03.jpg").resize((20, 20)).save(
        root / "data/live-challenge/images/03.jpg"
    )
    return [f"--data={root / 'data'}"], r"03\.jpg is 20x20 px; expected 32 or more"


def three_clean(folder, root):
    (root / "clean").mkdir()
    for number in range(3):
        shutil.copy(folder / f"pristine/images/{number:02}.jpg", root / "clean")
    return [f"--clean={root / 'clean'}"], "0 clean photographs are held out; expected 2 or more: give ten or more"


def mini_with_three_clean(folder, root):
    flags, message = three_clean(folder, root)
    return [*flags, "--model=bpclip-mini"], message


def no_clean(folder, root):
    table = own_table(root / "t")
    weights = ["--ranking-weight=0", "--severity-weight=0", "--alignment-weight=0", "--penalty-weight=0"]
    flags = [f"--data={root}", "--dataset=csv", f"--root={table}", "--attack-weight=0", *weights]
    return flags, r"no pictures in .*pristine.images; expected clean photographs"


def two_scored(folder, root):
    table = own_table(root / "t", 2)
    return ["--dataset=csv", f"--root={table}"], "1 scored pictures are left to learn from; expected 2 or more"


def five_scored(folder, root):
    table = own_table(root / "t", 5)
    return ["--dataset=csv", f"--root={table}"], "1 scored pictures are held out; expected 2 or more"


def none_learnt(folder, root):
    table = own_table(root / "t", 20)
    (table / "mos.csv").write_text((table / "mos.csv").read_text().replace("train", "test"))
    return ["--dataset=csv", f"--root={table}"], "0 scored pictures are left to learn from"


LATE = (
    *(truncated_held_out, small_held_out, small_own, three_clean, mini_with_three_clean, no_clean, two_scored),
    *(five_scored, none_learnt),
)


@pytest.mark.parametrize("spoil", LATE, ids=lambda function: function.__name__)
def test_what_would_fail_after_the_last_step_is_refused_before_the_first(folder, tmp_path, monkeypatch, spoil):
    flags, message = spoil(folder, tmp_path)
    said = refused([f"--data={folder}", f"--out={tmp_path / 'out'}", *small_flags(), *flags], monkeypatch)
    assert re.search(message, said), said


def spoil_missing(folder):
    (folder / "live-challenge/images/03.jpg").unlink()


def spoil_twice(folder):
    with (folder / "live-challenge/mos.csv").open("a") as file:
        file.write("03.jpg,50,18\n")


def spoil_constant(folder):
    path = folder / "live-challenge/mos.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *(f"{row.split(',')[0]},50,18" for row in rows[1:])]) + "\n")


def spoil_nan(folder):
    path = folder / "live-challenge/mos.csv"
    path.write_text(path.read_text().replace("03.jpg,42", "03.jpg,nan"))


def spoil_picture(folder):
    path = folder / "pristine/images/03.jpg"
    path.write_bytes(path.read_bytes()[:2000])  # an interrupted download


SPOILT = {
    spoil_missing: r"1 of 17 pictures are missing \(first: .*03\.jpg\)",
    spoil_twice: r"03\.jpg comes more than once",
    spoil_constant: r"all 17 scores in .* are 50; nothing can be learnt",
    spoil_nan: r"the score of 03\.jpg is nan; expected a finite number",
    spoil_picture: r"03\.jpg cannot be decoded \(.*truncated.*\).*get the file again",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda function: function.__name__)
def test_bad_data_is_refused_before_the_first_step(tmp_path, spoil, monkeypatch):
    folder = training_folder(tmp_path / "data", scored=17, side=96)
    spoil(folder)
    monkeypatch.setattr(finetune, "train_step", lambda *given: pytest.fail("training has begun"))
    with pytest.raises(SystemExit, match=rf"^iqguide: error: .*{SPOILT[spoil]}") as error:
        finetune.main(["--data", str(folder), "--out", str(tmp_path / "out"), "--mixed-precision", "no"])
    assert "\n" not in str(error.value)


def test_half_a_file_to_start_from_is_refused(folder, tmp_path):
    whole = (Path(iqguide.__file__).parent / "models/assets/tiny.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    flags += ["--data", str(folder), "--out", str(tmp_path), "--init", str(tmp_path / "half.safetensors")]
    with pytest.raises(SystemExit, match=r"half\.safetensors cannot be read as weights .* damaged"):
        finetune.main([*flags, "--mixed-precision", "no"])


def test_too_few_pictures_to_choose_by_are_refused(config):
    with pytest.raises(ValueError, match=r"share of 0\.1 is 1 pictures; expected five or more"):
        finetune.prepare(dataclasses.replace(config, validation=0.1))


# --- one's own data ---


def test_a_data_set_is_split_by_its_publisher(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["image,mos,split"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number},{'test' if number < 4 else 'validation' if number < 10 else 'train'}")
    (tmp_path / "mos.csv").write_text("\n".join(rows) + "\n")

    def names(part):
        return [int(p.path.stem) for p in part]

    config = FinetuneConfig(dataset="csv", root=tmp_path, validation=0.1)
    learnt, chosen_by, held_out = parts.scored_parts(config)
    assert names(held_out) == [0, 1, 2, 3]
    assert names(chosen_by) == list(range(4, 10))
    assert names(learnt) == list(range(10, 20))
    assert learnt[0].mos == pytest.approx(100 * 10 / 19)
    learnt, chosen_by, _ = parts.scored_parts(dataclasses.replace(config, validation=0.0))
    assert not chosen_by


def test_clean_photographs_alone_train_qualiclip(folder, config, tmp_path):
    """Opinion-unaware, as published: nobody has scored anything."""
    config = with_model(config, "qualiclip", data=tmp_path / "nothing", clean=folder / "pristine/images", **PLAIN)
    finetune.train(config)
    assert json.loads((config.out / "run.json").read_text())["held_out"].keys() == {"ladders", "worst_ladder"}
