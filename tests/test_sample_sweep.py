"""`iqguide sample` as a sweep: a judge, resuming after a kill, several processes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_pipelines import poison, prompted_pipeline, tiny_tae
from two_processes import in_two

from iqguide import cli, create_model, rank
from iqguide.cli import draw as cli_draw
from iqguide.cli import sample as cli_sample
from iqguide.cli.sweep import share_of, verdict
from iqguide.errors import claimed
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
        expected = rank([tmp_path / "out" / f"{seed}.png"], judge).scores.item()
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
    best_of_n = cli_draw.best_of_n

    def noted(*arguments, seeds, **options):
        drawn.extend(seeds)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return best_of_n(*arguments, seeds=seeds, **options)

    monkeypatch.setattr(cli_draw, "best_of_n", noted)
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
    (tmp_path / "out" / "0.png").write_bytes((tmp_path / "out" / "0.png").read_bytes()[:-200])
    drawn[:] = [None] * 3
    assert sample("--seeds", "0:4", "--resume")[0] == 0
    assert drawn[3:] == [0]  # what is damaged is made again
    status, _, err = sample("--seeds", "0:4", "--resume", steps=3)
    assert status == 2
    assert "0.png was made with num_inference_steps 2, and now it is 3" in err
    for changed in (JUDGE, ["--dtype", "bfloat16"]):
        status, _, err = sample("--seeds", "0:4", "--resume", *changed)
        assert status == 2
        assert "0.png was made with" in err


def test_records_of_earlier_seeds_stay(sample):
    assert list(sample("--seeds", "5,3")[1]) == [3, 5]
    status, records, _ = sample("--seeds", "0:2")
    assert status == 0
    assert list(records) == [0, 1, 3, 5]


def test_what_others_have_put_there_is_refused_or_replaced_aloud(sample, tmp_path):
    (tmp_path / "out").mkdir()
    foreign = PngInfo()
    foreign.add_text("iqguide", "no json")
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "1.png", pnginfo=foreign)
    (tmp_path / "out" / "2.png").write_bytes(b"no picture")
    before = [(tmp_path / "out" / name).read_bytes() for name in ("1.png", "2.png")]
    for arguments in (["--seeds", "1"], ["--seeds", "2", "--resume"], ["--seeds", "0:3"]):
        status, _, err = sample(*arguments)
        assert status == 2
        assert "is no picture of this command" in err
    assert [(tmp_path / "out" / name).read_bytes() for name in ("1.png", "2.png")] == before
    assert sample("--seeds", "0")[0] == 0  # beside them there is room
    status, records, _ = sample("--seeds", "1", "--overwrite", steps=3)
    assert status == 0
    assert list(records) == [1]  # picture 0 has other settings
    status, _, err = sample("--seeds", "1")
    assert status == 2
    assert "made with num_inference_steps" in err


def test_two_runs_do_not_share_a_folder(sample, tmp_path):
    (tmp_path / "out").mkdir()
    with claimed(tmp_path / "out"):
        status, _, err = sample("--seeds", "0")
        assert status == 2
        assert "another run is writing to" in err
    assert sample("--seeds", "0")[0] == 0


def test_what_was_made_with_other_settings_is_not_mixed_in(sample, monkeypatch):
    sample("--seeds", "0", "--negative-prompt", "dark", "--guide", 0.2)
    status, _, err = sample("--seeds", "0:2", "--resume", "--guide", 0.2)
    assert status == 2
    assert "0.png was made with negative_prompt 'dark', and now it is None" in err
    today = cli_sample._guidance
    monkeypatch.setattr(cli_sample, "_guidance", lambda *given: replace(today(*given), noise_window=(0.7, 0.2)))
    status, _, err = sample("--seeds", "0:2", "--resume", "--negative-prompt", "dark", "--guide", 0.2)
    assert status == 2
    assert "0.png was made with guide_noise_window [0.6, 0.05], and now it is [0.7, 0.2]" in err


def test_scores_of_two_judges_are_not_mixed(sample, tmp_path):
    sample("--seeds", "0", *JUDGE)
    other = tmp_path / "judge.safetensors"
    save_model(create_model("bpclip-mini", weights="random", seed=1), other)
    status, _, err = sample("--seeds", "0:2", "--resume", "--judge", "bpclip-mini", "--judge-weights", other)
    assert status == 2
    assert "0.png was made with judge_weights 'random'" in err


def test_a_run_that_is_finished_already_guides_nothing(sample, recwarn):
    sample("--guide", 1.5)
    status, records, err = sample("--guide", 1.5, "--resume")
    assert status == 0
    assert len(records) == 1
    assert "changed nothing" not in err + "".join(str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "sizes"),
    [
        (8, 2, 2, [4, 4]),
        (8, 1, 3, [3, 3, 2]),
        (7, 2, 2, [4, 3]),
        (9, 4, 2, [5, 4]),
        (3, 4, 2, [3, 0]),
        (9, 2, 4, [3, 2, 2, 2]),
    ],
)
def test_each_process_has_whole_batches(monkeypatch, count, batch_size, processes, sizes):
    seeds, shares = list(range(10, 10 + count)), []
    for index in range(processes):
        state = SimpleNamespace(process_index=index, num_processes=processes)
        monkeypatch.setattr("accelerate.PartialState", lambda state=state: state)
        shares.append(share_of(seeds, batch_size))
    assert sorted(seed for share in shares for seed in share) == seeds
    assert [len(share) for share in shares] == sizes
    batches = [share[i : i + batch_size] for share in shares for i in range(0, len(share), batch_size)]
    assert sorted(batches) == [seeds[i : i + batch_size] for i in range(0, count, batch_size)]  # as one process has


def without_time(records):
    return [{**record, "time_s": 0} for record in records]


@pytest.mark.slow
def test_two_processes_share_the_seeds(sample, pipeline, tmp_path):
    command = ["sample", "a cat", "--pipeline", pipeline, "--steps", 2, "--size", 32, *RANDOM]
    batches = ["--seeds", "0:5", "--batch-size", 2]
    done, notes = in_two(tmp_path, *command, *batches, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert [(note["processes"], note["drawn"]) for note in notes] == [(2, [0, 1, 4]), (2, [2, 3])]
    assert done.stderr.count("mean score") == 1
    _, alone, _ = sample(*batches)
    found = json.loads((tmp_path / "two" / "samples.json").read_text())
    assert without_time(found) == without_time(alone.values())
    for seed in range(5):
        np.testing.assert_array_equal(
            pixels(tmp_path / "two" / f"{seed}.png"), pixels(tmp_path / "out" / f"{seed}.png")
        )
    (tmp_path / "two" / "2.png").unlink()
    (tmp_path / "two" / "3.png").unlink()
    done, notes = in_two(tmp_path, *command, *batches, "--out", "two", "--resume")
    assert done.returncode == 0, done.stderr
    assert [note["drawn"] for note in notes] == [[], [2, 3]]
    assert without_time(json.loads((tmp_path / "two" / "samples.json").read_text())) == without_time(found)


@pytest.mark.slow
def test_two_processes_share_pictures_of_several_candidates_one_by_one(pipeline, tmp_path):
    command = ["sample", "a cat", "--pipeline", pipeline, "--steps", 2, "--size", 32, *RANDOM, "--out", "two"]
    done, notes = in_two(tmp_path, *command, "--seeds", "0:2", "--best-of", 2, "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    assert [(note["processes"], note["drawn"]) for note in notes] == [(2, [0]), (2, [1])]


@pytest.mark.slow
def test_processes_without_accelerators_say_what_they_need(pipeline, tmp_path):
    """Accelerate takes each of them for the only one, and each would draw all of the seeds."""
    command = ["sample", "--pipeline", pipeline, *RANDOM, "--out", "two"]
    done, notes = in_two(tmp_path, *command, ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert (
        "this is one of 2 processes, and there is no accelerator for them; set ACCELERATE_USE_CPU=true" in done.stderr
    )
    assert not list((tmp_path / "two").iterdir())
    assert not notes


def test_a_seed_that_gives_nan_does_not_stop_a_sweep(sample, monkeypatch, tmp_path):
    load = cli_sample.load_pipeline

    def with_poison(*arguments):
        pipe = load(*arguments)
        poison(pipe, 1)
        return pipe

    monkeypatch.setattr(cli_sample, "load_pipeline", with_poison)
    status, records, err = sample("--seeds", "0:4", "--batch-size", 2)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png", "2.png", "3.png"]
    assert "NaN" in records[1]["failure"]
    assert all("score" in records[seed] for seed in (0, 2, 3))
    assert "seed 1 gives no picture" in err
    assert "1 of 4 seeds give no picture" in err
    status, again, _ = sample("--seeds", "0:5", "--batch-size", 2, "--resume")
    assert status == 0
    assert {seed: again[seed] for seed in range(4)} == records
    assert "score" in again[4]
    status, alone, err = sample("--seeds", "1", out="alone")
    assert status != 0
    assert "none of 1 seeds gives a picture" in err
    assert "NaN" in alone[1]["failure"]


def test_best_of_n_with_one_nan_candidate_and_with_none(sample, monkeypatch):
    load = cli_sample.load_pipeline

    def with_poison(*arguments):
        pipe = load(*arguments)
        poison(pipe, 0, 2, 3)
        return pipe

    monkeypatch.setattr(cli_sample, "load_pipeline", with_poison)
    status, records, _ = sample("--seeds", "0:2", "--best-of", 2, *JUDGE)
    assert status == 0
    assert records[0]["candidate_seed"] == 1
    assert "plain_score" not in records[0]  # the first candidate cannot be used
    assert "no candidate can be used" in records[1]["failure"]
