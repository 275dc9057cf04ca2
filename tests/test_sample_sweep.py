"""`iqguide sample` as a sweep: a judge, resuming after a kill, several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_pipelines import prompted_pipeline, tiny_tae

from iqguide import cli, cli_sample, create_model
from iqguide.cli_sweep import verdict
from iqguide.images import to_tensor
from iqguide.models import save_model

RANDOM = ["--weights", "random", "--device", "cpu"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    prompted_pipeline(folder).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture
def sample(capsys, pipeline, tmp_path):
    """Run `iqguide sample` into a folder -> (status, records by seed, stderr)."""

    def sample(*arguments, out="out", steps=2):
        options = ["--pipeline", pipeline, "--steps", steps, "--size", 32, "--out", tmp_path / out, *RANDOM]
        status = cli.main([str(word) for word in ("sample", "a cat", *options, *arguments)])
        listed = tmp_path / out / "samples.json"
        records = json.loads(listed.read_text()) if listed.exists() else []
        return status, {record["seed"]: record for record in records}, capsys.readouterr().err

    return sample


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


JUDGE = ["--judge", "bpclip-mini", "--judge-weights", "random"]


def test_a_judge_scores_the_files_and_their_unguided_twins(sample, tmp_path):
    status, records, err = sample("--seeds", "0:2", "--guide", 1.5, *JUDGE)
    _, plain, said = sample("--seeds", "0:2", *JUDGE, out="plain")
    assert status == 0
    judge = create_model("bpclip-mini", weights="random")
    for seed, record in records.items():
        with torch.no_grad():
            expected = judge(to_tensor(Image.open(tmp_path / "out" / f"{seed}.png"))).item()
        assert record["judge"] == pytest.approx(expected, abs=1e-4)
        assert record["plain_score"] == pytest.approx(plain[seed]["score"], abs=1e-6)
        assert record["plain_judge"] == pytest.approx(plain[seed]["judge"], abs=1e-6)
        assert record["score"] != record["plain_score"]
        assert record["nfe"] == plain[seed]["nfe"]  # the twin is not counted
    assert "plain_judge" not in plain[0]
    assert "by tiny" in err
    assert "by bpclip-mini (unguided, first candidate:" in err
    assert "unguided" not in said


def test_best_of_n_is_compared_with_its_first_candidate(sample):
    _, records, _ = sample("--seeds", "3", "--best-of", 3, *JUDGE)
    _, plain, _ = sample("--seeds", "9", *JUDGE, out="plain")
    assert records[3]["plain_judge"] == pytest.approx(plain[9]["judge"], abs=1e-6)
    assert records[3]["score"] >= records[3]["plain_score"]


def record(score, judge, plain_score, plain_judge):
    return {"score": score, "judge": judge, "plain_score": plain_score, "plain_judge": plain_judge}


def test_the_warning_comes_when_the_reward_rises_and_the_judge_falls():
    hacked = [record(0.9, 0.3, 0.5, 0.5), record(0.8, 0.4, 0.5, 0.4)]
    result, warning = verdict(hacked, "tiny", "qualiclip")
    assert result == ("mean score 0.8500 by tiny, 0.3500 by qualiclip (unguided, first candidate: 0.5000 and 0.4500)")
    assert "rose by 0.3500 while qualiclip, which did not, changed by -0.1000 +- 0.1000" in warning
    for fine in (record(0.9, 0.6, 0.5, 0.5), record(0.4, 0.4, 0.5, 0.5), record(0.5, 0.4, 0.5, 0.5)):
        assert len(verdict([fine], "tiny", "qualiclip")) == 1
    assert len(verdict([hacked[0]], "tiny", "qualiclip")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "tiny"], "the model that steers"),
        (["--judge", "bpclip-fr"], "have none; choose another"),
        (["--decoder", "vae"], "only --guide and --halving"),
        (["--decoder", "/nowhere", "--guide"], "cannot load the decoder '/nowhere'"),
        (["--best-of", "2", "--halving", "0.7,0.2"], "shares of the steps that rise"),
    ],
)
def test_what_is_refused(sample, arguments, message):
    status, _, err = sample(*arguments)
    assert status == 2
    assert message in err


def test_halving_takes_shares_and_a_decoder(sample, tmp_path):
    tiny_tae().save_pretrained(tmp_path / "tae")
    how = ["--best-of", 4, "--seeds", "0"]
    _, records, _ = sample(*how, "--halving", "0.5", steps=4)
    assert records[0]["nfe"] == 2 * (4 * 2 + 2 * 2)
    _, own, _ = sample(*how, "--halving", "0.5", "--decoder", "vae", steps=4, out="own")
    assert own[0]["candidate_seed"] == records[0]["candidate_seed"]
    _, tiny, _ = sample(*how, "--halving", "0.5", "--decoder", tmp_path / "tae", steps=4, out="tiny")
    assert tiny[0]["nfe"] == records[0]["nfe"]
    _, guided, _ = sample("--guide", 1.5, "--decoder", tmp_path / "tae", steps=4, out="guided")
    _, other, _ = sample("--guide", 1.5, "--decoder", "vae", steps=4, out="other")
    assert guided[0]["score"] != other[0]["score"]


def test_a_killed_run_is_resumed(sample, tmp_path, monkeypatch):
    drawn = []
    best_of_n = cli_sample.best_of_n

    def noted(*arguments, seeds, **options):
        drawn.extend(seeds)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return best_of_n(*arguments, seeds=seeds, **options)

    monkeypatch.setattr(cli_sample, "best_of_n", noted)
    assert sample("--seeds", "0:4")[0] == 130
    (tmp_path / "out" / "samples.json").unlink()  # what was drawn is told by the pictures themselves
    before = (tmp_path / "out" / "1.png").stat().st_mtime_ns
    status, records, _ = sample("--seeds", "0:4", "--resume")
    assert status == 0
    assert drawn == [0, 1, 2, 2, 3]
    assert (tmp_path / "out" / "1.png").stat().st_mtime_ns == before
    _, whole, _ = sample("--seeds", "0:4", out="whole")
    assert list(records) == list(whole) == [0, 1, 2, 3]
    for seed in range(4):
        assert {**records[seed], "time_s": 0} == {**whole[seed], "time_s": 0}
        np.testing.assert_array_equal(
            pixels(tmp_path / "out" / f"{seed}.png"), pixels(tmp_path / "whole" / f"{seed}.png")
        )
    for number, content in enumerate(((tmp_path / "out" / "0.png").read_bytes()[:-200], b"no picture")):
        (tmp_path / "out" / f"{number}.png").write_bytes(content)
    foreign = PngInfo()
    foreign.add_text("iqguide", "no json")
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "2.png", pnginfo=foreign)
    drawn[:] = [None] * 3
    assert sample("--seeds", "0:4", "--resume")[0] == 0
    assert drawn[3:] == [0, 1, 2]  # what cannot be read, or is not ours, is made again
    status, _, err = sample("--seeds", "0:4", "--resume", steps=3)
    assert status == 2
    assert "0.png was made with num_inference_steps 2, and now it is 3" in err
    for changed in (JUDGE, ["--dtype", "bfloat16"]):
        status, _, err = sample("--seeds", "0:4", "--resume", *changed)
        assert status == 2
        assert "0.png was made with" in err


def test_what_was_made_with_other_settings_is_not_mixed_in(sample, monkeypatch):
    sample("--seeds", "0", "--negative-prompt", "dark", "--guide", 0.2)
    status, _, err = sample("--seeds", "0:2", "--resume", "--guide", 0.2)
    assert status == 2
    assert "0.png was made with negative_prompt 'dark', and now it is None" in err
    today = cli_sample._guidance
    monkeypatch.setattr(cli_sample, "_guidance", lambda *given: replace(today(*given), noise_window=(0.7, 0.2)))
    status, _, err = sample("--seeds", "0:2", "--resume", "--negative-prompt", "dark", "--guide", 0.2)
    assert status == 2
    assert "0.png was made with guidance" in err


def test_scores_of_two_judges_are_not_mixed(sample, tmp_path):
    sample("--seeds", "0", *JUDGE)
    other = tmp_path / "judge.safetensors"
    save_model(create_model("bpclip-mini", weights="random", seed=1), other)
    status, _, err = sample("--seeds", "0:2", "--resume", "--judge", "bpclip-mini", "--judge-weights", other)
    assert status == 2
    assert "0.png was made with judge_weights 'random'" in err


@pytest.mark.slow
def test_two_processes_share_the_seeds(sample, pipeline, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "iqguide.cli", "sample", "a cat", "--pipeline", str(pipeline), "--steps", "2", "--size", "32"]
    command += ["--seeds", "0:3", "--out", str(tmp_path / "two"), *RANDOM]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mean score") == 1
    _, alone, _ = sample("--seeds", "0:3")
    found = json.loads((tmp_path / "two" / "samples.json").read_text())
    assert [{**record, "time_s": 0} for record in found] == [{**record, "time_s": 0} for record in alone.values()]
    for seed in range(3):
        np.testing.assert_array_equal(
            pixels(tmp_path / "two" / f"{seed}.png"), pixels(tmp_path / "out" / f"{seed}.png")
        )
