"""The command line: what is printed where, exit statuses, and files that agree with the Python interface."""

import csv
import io
import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iqguide import cli, create_model, load_images
from iqguide.cli import arguments as cli_values
from iqguide.cli import demo as cli_demo
from iqguide.cli import draw as cli_draw
from iqguide.cli import pipelines
from iqguide.cli import score as cli_score
from iqguide.images import resize_short_side, save_image, to_tensor
from iqguide.rewards import working_size
from iqguide.search.halving import HALVING

COMMANDS = ("demo", "score", "rank", "sample", "evaluate", "models", "env")
RANDOM = ["--weights", "random", "--device", "cpu"]


@pytest.fixture
def run(capsys):
    """Run the command in this process -> (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def usage(capsys):
    """Run a command line that argparse refuses -> what it says."""

    def usage(*arguments):
        with pytest.raises(SystemExit) as info:
            cli.main([str(argument) for argument in arguments])
        assert info.value.code == 2
        return capsys.readouterr().err

    return usage


@pytest.fixture(scope="module")
def model():
    return create_model("tiny", weights="random")


@pytest.fixture(scope="module")
def judge():
    return create_model("lite", weights="random")


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two sizes, one of them in a folder inside, one of them hidden."""
    folder = tmp_path / "pictures"
    (folder / "inside").mkdir(parents=True)
    for index, (name, size) in enumerate(
        [
            ("b.png", (40, 48)),
            ("a.PNG", (40, 48)),
            ("c.png", (96, 64)),
            ("inside/a.PNG", (40, 48)),
            (".d.png", (40, 48)),
        ]
    ):
        generator = torch.Generator().manual_seed(index)
        save_image(torch.rand(3, *size, generator=generator), folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def score_of(model, path, size=None):
    with torch.no_grad():
        return model(load_images(path, size=size)).item()


def run_process(*command, **options):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, **options)


# --- the program ---


def test_help_answers_without_torch():
    code = f"""
import sys
from iqguide.cli import main
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in {COMMANDS!r})]:
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0, arguments
main(["models"])
print("loaded:", *sorted({{"torch", "numpy", "PIL", "diffusers", "transformers"}} & set(sys.modules)))
"""
    done = run_process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded:\n")
    for name in COMMANDS:
        assert f"usage: iqguide {name}" in done.stdout


def test_a_command_line_that_makes_no_sense_is_a_usage_error(usage):
    assert "required: COMMAND" in usage()
    assert "invalid choice: 'scoer'" in usage("scoer")
    assert "required: --out" in usage("sample", "a prompt")
    assert "not allowed with" in usage("score", "a.png", "--json", "--csv")
    assert "expected a number: put PROMPT before --guide" in usage("sample", "--out", "x", "--guide", "a prompt")
    assert "expected FIRST:END as in 0:64" in usage("sample", "--out", "x", "--seeds", "4:4")
    assert "expected at least 1" in usage("rank", "x", "--top", "0")
    assert "expected a finite number" in usage("sample", "--out", "x", "--guidance-scale", "nan")


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"default: {pipelines.DEMO_CALL['num_inference_steps']} for demo" in shown
    assert f"default: {pipelines.DEMO_CALL['guidance_scale']:g} for demo" in shown
    assert f"alone: {','.join(map(str, HALVING))}" in shown
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert f"default: {pipelines.DEMO_CALL['num_inference_steps']})" in " ".join(capsys.readouterr().out.split())


def test_seeds():
    assert cli_values.seed_list("7") == [7]
    assert cli_values.seed_list("0:4") == [0, 1, 2, 3]
    assert cli_values.seed_list("9,1,0:2") == [9, 1, 0]
    for wrong in ("", "-1", "1:", "a", "3:2", "1.5", "0:99999999999", str(2**63)):
        with pytest.raises(ArgumentTypeError):
            cli_values.seed_list(wrong)
    assert cli_values.dimensions("512") == (512, 512)
    assert cli_values.dimensions("768x512") == (768, 512)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_does_not_fit_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "iqguide.cli", "models"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert done.returncode == 2
    assert done.stderr == "iqguide: error: No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "iqguide.cli", "models"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_is_no_traceback(run, monkeypatch, folder):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_score, "load_named", interrupted)
    status, out, err = run("score", folder)
    assert (status, out) == (130, "")
    assert err.endswith("\niqguide: interrupted.\n")


def test_a_defect_keeps_its_traceback(run, monkeypatch, folder):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(cli_score, "load_named", broken)
    with pytest.raises(ZeroDivisionError):
        run("score", folder)


def test_debug_shows_where_an_error_comes_from(run, monkeypatch, folder):
    assert run("score", folder, "--model", "qualclip")[0] == 2
    monkeypatch.setenv("IQGUIDE_DEBUG", "1")
    with pytest.raises(ValueError, match="qualclip"):
        run("score", folder, "--model", "qualclip")


# --- score ---


def test_score_json_is_the_contract(run, folder, judge):
    status, out, err = run("score", folder, "--json", *RANDOM)
    rows = json.loads(out)
    assert status == 0
    assert [list(row) for row in rows] == [["path", "score", "error"]] * 3
    assert [row["path"] for row in rows] == [str(folder / name) for name in ("a.PNG", "b.png", "c.png")]
    for row in rows:
        assert row["error"] is None
        assert row["score"] == pytest.approx(score_of(judge, row["path"], working_size(judge)), abs=1e-5)
    assert "3 of 3 images scored by lite" in err


def test_score_csv_and_table_say_the_same(run, folder):
    scores = {row["path"]: row["score"] for row in json.loads(run("score", folder, "--json", *RANDOM)[1])}
    table = csv.DictReader(io.StringIO(run("score", folder, "--csv", *RANDOM)[1]))
    assert {row["path"]: float(row["score"]) for row in table if row["error"] == ""} == pytest.approx(scores)
    lines = run("score", folder, *RANDOM)[1].splitlines()
    assert lines == [f"{score:.4f}  {path}" for path, score in scores.items()]


def test_score_takes_files_and_folders_at_any_depth(run, folder):
    status, out, _ = run("score", folder / "c.png", folder, folder / "inside", "--recursive", "--json", *RANDOM)
    paths = [Path(row["path"]).relative_to(folder).as_posix() for row in json.loads(out)]
    assert status == 0
    assert paths == ["c.png", "a.PNG", "b.png", "inside/a.PNG"]


def test_one_bad_file_does_not_stop_the_rest(run, folder):
    (folder / "b2.png").write_text("no picture")
    status, out, err = run("score", folder, folder / "gone.png", "--json", *RANDOM)
    rows = {Path(row["path"]).name: row for row in json.loads(out)}
    assert status == 0
    assert list(rows) == ["a.PNG", "b.png", "b2.png", "c.png", "gone.png"]
    assert rows["b2.png"]["score"] is None
    assert "not a picture" in rows["b2.png"]["error"]
    assert "No such file" in rows["gone.png"]["error"]
    assert all(rows[name]["score"] is not None for name in ("a.PNG", "b.png", "c.png"))
    assert "b2.png is not a picture" in err
    assert "gone.png: No such file" in err
    assert "3 of 5 images scored" in err


def test_nothing_scored_is_status_2(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    status, out, err = run("score", tmp_path, "--json", *RANDOM)
    assert status == 2
    assert [row["score"] for row in json.loads(out)] == [None]
    assert "not a picture" in err

    status, out, err = run("score", tmp_path / "a.png", *RANDOM)
    assert (status, out) == (2, "")

    (tmp_path / "empty").mkdir()
    status, out, err = run("score", tmp_path / "empty", "--json", *RANDOM)
    assert (status, out) == (2, "")
    assert err.startswith("iqguide: error: there is no image in ")
    assert "--recursive" in err


def test_large_images_are_reduced_and_small_ones_are_not(run, folder, judge):
    path = folder / "c.png"  # 64 x 96
    reduced = json.loads(run("score", path, "--size", 40, "--json", *RANDOM)[1])[0]["score"]
    with torch.no_grad():
        by_hand = judge(resize_short_side(load_images(path), 40)).item()
    assert reduced == pytest.approx(by_hand, abs=1e-6)
    assert abs(reduced - score_of(judge, path)) > 5e-5
    for size in (0, 100):
        kept = json.loads(run("score", path, "--size", size, "--json", *RANDOM)[1])[0]["score"]
        assert kept == pytest.approx(score_of(judge, path), abs=1e-5)


def test_batches_are_bounded_and_change_nothing(run, folder, monkeypatch):
    whole = json.loads(run("score", folder, "--recursive", "--json", *RANDOM)[1])
    shapes = []
    score_batch = cli_score.score_batch
    monkeypatch.setattr(cli_score, "score_batch", lambda x, m: shapes.append(tuple(x.shape)) or score_batch(x, m))
    monkeypatch.setattr(cli_score, "BATCH_PIXELS", 2 * 96 * 115)
    bounded = json.loads(run("score", folder, "--recursive", "--json", *RANDOM)[1])
    assert shapes == [(2, 3, 96, 115), (1, 3, 144, 96), (1, 3, 96, 115)]
    for one, other in zip(whole, bounded, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.data
def test_photographs_get_the_scores_of_the_python_interface(run, data_dir, judge):
    photographs = sorted((data_dir / "live-challenge" / "images").iterdir())[:6]
    status, out, _ = run("score", *photographs, "--size", 64, "--json", *RANDOM)
    assert status == 0
    for row, path in zip(json.loads(out), photographs, strict=True):
        assert row["score"] == pytest.approx(score_of(judge, path, size=64), abs=1e-5)


# --- rank ---


def test_rank_lists_the_best_and_copies_them(run, folder, tmp_path):
    scores = {row["path"]: row["score"] for row in json.loads(run("score", folder, "--json", *RANDOM)[1])}
    best = sorted(scores, key=scores.get, reverse=True)[:2]
    status, out, _ = run("rank", folder, "--top", 2, "--copy-to", tmp_path / "best", "--json", *RANDOM)
    assert status == 0
    assert [row["path"] for row in json.loads(out)] == best
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == sorted(Path(p).name for p in best)
    for path in best:
        assert (tmp_path / "best" / Path(path).name).read_bytes() == Path(path).read_bytes()
    assert run("rank", folder, "--top", 2, *RANDOM)[1].splitlines() == [f"{scores[p]:.4f}  {p}" for p in best]


def test_rank_overwrites_nothing(run, folder, tmp_path):
    out = tmp_path / "best"
    out.mkdir()
    (out / "c.png").write_text("precious")
    status, _, err = run("rank", folder, "--copy-to", out, *RANDOM)
    assert status == 2
    assert f"{out / 'c.png'} exists already; nothing was copied" in err
    assert [p.name for p in out.iterdir()] == ["c.png"]
    assert (out / "c.png").read_text() == "precious"


def test_results_are_printed_before_files_are_written(run, folder, tmp_path):
    (tmp_path / "c.png").write_text("precious")
    status, out, err = run("rank", folder, "--copy-to", tmp_path, *RANDOM)
    assert (status, len(out.splitlines())) == (2, 3)
    assert "nothing was copied" in err
    (tmp_path / "file").write_text("")
    for command in (("rank", folder, "--copy-to"), ("score", folder, "--model", "bpclip-mini", "--explain-to")):
        status, out, err = run(*command, tmp_path / "file", "--device", "cpu")
        assert (status, out) == (2, "")
        assert "cannot make the folder" in err
        assert "scored by" not in err  # it is found out before


def test_rank_keeps_apart_what_has_one_name(run, folder, tmp_path):
    status, out, _ = run("rank", folder, "--recursive", "--copy-to", tmp_path / "all", "--json", *RANDOM)
    places = [Path(row["path"]).name for row in json.loads(out)]
    expected = {f"{i}_{name}" if name == "a.PNG" else name for i, name in enumerate(places, start=1)}
    assert status == 0
    assert {p.name for p in (tmp_path / "all").iterdir()} == expected
    assert len(expected) == 4


# --- models, env ---


def test_models_show_licence_and_whether_the_weights_are_here(run, tmp_path, monkeypatch):
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(run("models", "--json")[1])}
    assert "non-commercial" in rows["qualiclip"]["licence"]
    assert rows["qualiclip"]["weights"] == "not downloaded"
    assert rows["bpclip"]["weights"] == "not trained"
    (tmp_path / "qualiclip.pth").touch()
    assert json.loads(run("models", "--json")[1])[list(rows).index("qualiclip")]["weights"] == "cached"
    table = run("models")[1]
    assert all(name in table for name in rows)


def test_env_names_versions_and_folders(run, tmp_path, monkeypatch):
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path))
    status, out, _ = run("env")
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["torch"] == torch.__version__.split("+")[0]
    assert lines["weights"].startswith(str(tmp_path))
    assert "threads" in lines["cpu"]


# --- sample, demo ---

STEPS = 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A real Stable Diffusion at tiny size with a text encoder, saved as a folder."""
    from tiny_pipelines import prompted_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    prompted_pipeline(folder).save_pretrained(folder / "saved")
    return folder / "saved"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def sample(run, pipeline, tmp_path):
    """Run `iqguide sample` -> (records, {seed: pixels}); the pipeline is the tiny one."""
    calls = iter(range(100))

    def sample(*arguments, prompt="a cat"):
        out = tmp_path / f"out{next(calls)}"
        options = ["--pipeline", pipeline, "--steps", STEPS, "--size", 32, "--out", out, *RANDOM, *arguments]
        status, stdout, _ = run("sample", prompt, *options)
        assert (status, stdout) == (0, "")
        records = json.loads((out / "samples.json").read_text())
        assert {p.name for p in out.iterdir()} == {"samples.json", *(f"{r['seed']}.png" for r in records)}
        return records, {r["seed"]: pixels(out / f"{r['seed']}.png") for r in records}

    return sample


def test_samples_are_what_the_pipeline_makes(sample, pipeline, model):
    records, pictures = sample("--seeds", "0,5")
    assert [list(r) for r in records] == [["seed", "candidate_seed", "score", "time_s", "nfe"]] * 2
    assert [(r["seed"], r["candidate_seed"]) for r in records] == [(0, 0), (5, 5)]
    assert all(r["time_s"] > 0 for r in records)
    assert all(r["nfe"] == 2 * STEPS for r in records)  # classifier-free guidance: two rows a step
    pipe = pipelines.load_pipeline(str(pipeline), torch.device("cpu"))
    for r in records:
        generator = torch.Generator().manual_seed(r["seed"])
        direct = pipe("a cat", num_inference_steps=STEPS, height=32, width=32, generator=generator).images[0]
        np.testing.assert_array_equal(pictures[r["seed"]], np.asarray(direct))
        with torch.no_grad():
            assert r["score"] == pytest.approx(model(to_tensor(direct, size=128)).item(), abs=1e-5)


def test_best_of_n_keeps_the_best_of_its_candidates(sample):
    candidates, pictures = sample("--seeds", "6:12")
    records, winners = sample("--seeds", "2:4", "--best-of", 3)
    for r in records:
        mine = [c for c in candidates if c["seed"] // 3 == r["seed"]]
        best = max(mine, key=lambda c: c["score"])
        assert r["candidate_seed"] == best["seed"]
        assert r["score"] == pytest.approx(best["score"], abs=1e-6)
        assert r["nfe"] == 3 * 2 * STEPS
        np.testing.assert_array_equal(winners[r["seed"]], pictures[best["seed"]])


def test_halving_takes_fewer_evaluations(sample, run, pipeline, tmp_path):
    candidates, pictures = sample("--seeds", "0:4", "--steps", 10)
    (record,), winners = sample("--seeds", "0", "--steps", 10, "--best-of", 4, "--halving")
    assert record["nfe"] == 2 * (4 * 4 + 2 * 3 + 1 * 3)
    np.testing.assert_array_equal(winners[0], pictures[record["candidate_seed"]])
    assert record["score"] == pytest.approx(candidates[record["candidate_seed"]]["score"], abs=1e-6)
    status, _, err = run("sample", "--pipeline", pipeline, "--halving", "--out", tmp_path / "no", *RANDOM)
    assert status == 2
    assert "--halving without --best-of" in err
    assert not (tmp_path / "no").exists()


def test_guided_twins(sample):
    plain, off = sample("--seeds", "0:2"), sample("--seeds", "0:2", "--guide", 0)
    guided, named = sample("--seeds", "0:2", "--guide"), sample("--seeds", "0:2", "--guide", "default")
    strong = sample("--seeds", "0:2", "--guide", 1.5)
    for seed in (0, 1):
        np.testing.assert_array_equal(off[1][seed], plain[1][seed])
        np.testing.assert_array_equal(named[1][seed], guided[1][seed])
        change = np.abs(guided[1][seed].astype(int) - plain[1][seed]).mean()
        assert 0 < change < np.abs(strong[1][seed].astype(int) - plain[1][seed]).mean()
    assert [r["nfe"] for r in guided[0]] == [r["nfe"] for r in plain[0]]


def test_batches_make_the_same_samples(sample):
    one, many = sample("--seeds", "0:3"), sample("--seeds", "0:3", "--batch-size", 2)
    for seed in range(3):
        assert np.abs(one[1][seed].astype(int) - many[1][seed]).max() <= 1
    assert [r["nfe"] for r in many[0]] == [2 * STEPS, 2 * STEPS, 4 * STEPS]  # the last batch is filled up


def test_options_reach_the_pipeline(sample):
    plain = sample()
    assert sample("--guidance-scale", 1)[0][0]["nfe"] == STEPS
    assert sample("--size", "48x32")[1][0].shape == (32, 48, 3)
    for other in (sample("--negative-prompt", "dog"), sample(prompt="dog"), sample("--dtype", "bfloat16")):
        assert (other[1][0] != plain[1][0]).any()


def test_samples_say_how_they_were_made_and_are_replaced_when_asked(run, pipeline, tmp_path):
    common = ["--pipeline", pipeline, "--size", 32, "--out", tmp_path, *RANDOM]
    assert run("sample", "a cat", "--steps", 2, *common)[0] == 0
    assert run("sample", "a cat", "--steps", 3, *common)[0] == 2
    assert run("sample", "a cat", "--steps", 3, "--overwrite", *common)[0] == 0
    with Image.open(tmp_path / "0.png") as image:
        said = json.loads(image.text["iqguide"])
    assert said["num_inference_steps"] == 3
    assert (said["prompt"], said["seed"], said["guide"], said["model"]) == ("a cat", 0, None, "tiny")
    assert len(json.loads((tmp_path / "samples.json").read_text())) == 1


def test_nothing_is_lost_when_a_run_is_interrupted(run, pipeline, tmp_path, monkeypatch):
    best_of_n = cli_draw.best_of_n
    left = [None, None]

    def interrupted(*arguments, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return best_of_n(*arguments, **options)

    monkeypatch.setattr(cli_draw, "best_of_n", interrupted)
    options = ["--pipeline", pipeline, "--size", 32, "--steps", 1, "--seeds", "0:9", "--out", tmp_path, *RANDOM]
    assert run("sample", "a cat", *options)[0] == 130
    assert [r["seed"] for r in json.loads((tmp_path / "samples.json").read_text())] == [0, 1]


def test_a_pipeline_that_is_not_there_is_one_sentence(run, tmp_path):
    for name in (tmp_path / "gone", tmp_path, "nobody/no-such-model"):
        status, out, err = run("sample", "--pipeline", name, "--out", tmp_path / "out", *RANDOM)
        last = err.splitlines()[-1]
        assert (status, out) == (2, "")
        assert last.startswith(f"iqguide: error: cannot load the pipeline '{name}'")
        assert last.endswith("that can be downloaded.")


def test_an_option_that_the_pipeline_lacks_is_named(pipeline):
    pipe = pipelines.load_pipeline(str(pipeline), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline has no true_cfg"):
        pipelines.check_call(pipe, {"true_cfg": 3.0})


def test_the_pipeline_is_left_without_hooks(pipeline, model):
    pipe = pipelines.load_pipeline(str(pipeline), torch.device("cpu"))
    settings = {"prompt": "a", "num_inference_steps": 1, "height": 32, "width": 32}
    (sample,) = cli_draw.draw(pipe, model, [3], **settings)
    assert sample.nfe == 2
    assert not pipe.unet._forward_pre_hooks


def test_demo_prints_a_table_and_writes_a_picture(run, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "DEMO", pipeline)
    status, out, _ = run("demo", "--out", tmp_path, "--seeds", 2, "--best-of", 2, "--steps", 2, *RANDOM)
    lines = out.splitlines()
    assert status == 0
    assert lines[-1] == str(tmp_path / "demo.png")
    table = {line[:20].strip(): [float(x) for x in line[20:].split()] for line in lines[1:-1]}
    assert list(table) == ["unguided", "guided", "best of 2", "guided, best of 2"]
    assert table["best of 2"][1] > table["unguided"][1]
    with Image.open(tmp_path / "demo.png") as image:
        assert image.width > 2 * 256
        assert image.height > 4 * 256


def test_what_is_bundled_works_without_options(run, tmp_path):
    assert run("sample", "--out", tmp_path, "--steps", 2, "--seeds", 3, "--guide", "--best-of", 2)[:2] == (0, "")
    (record,) = json.loads((tmp_path / "samples.json").read_text())
    assert record["candidate_seed"] in (6, 7)
    assert record["nfe"] == 2 * 2 * 2
    (row,) = json.loads(run("score", tmp_path, "--json", "--model", "tiny")[1])
    assert Path(row["path"]) == tmp_path / "3.png"
    assert row["score"] == pytest.approx(record["score"], abs=1e-4)
    with Image.open(row["path"]) as image:
        assert image.size == (128, 128)


def test_the_table_shows_every_picture_in_its_place():
    rng = np.random.default_rng(0)

    def samples(n):
        pixels = [Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)) for _ in range(n)]
        return [cli_draw.Sample(p, i, i, 0.5, 1.0, 2) for i, p in enumerate(pixels)]

    results = {"unguided": samples(3), "guided": samples(3)}
    table = np.asarray(cli_demo.picture_table(results, side=64))
    places = []
    for method in results.values():
        for sample in method:
            found = np.argwhere((table[:-63, :-63] == np.asarray(sample.image)[0, 0]).all(-1))
            pixels = np.asarray(sample.image)
            hits = [(y, x) for y, x in found if (table[y : y + 64, x : x + 64] == pixels).all()]
            assert len(hits) == 1
            places += hits
    rows, columns = {y for y, _ in places}, {x for _, x in places}
    assert (len(rows), len(columns)) == (2, 3)
    assert places == sorted(places)


def test_of_two_joined_models_the_lower_score_is_printed(run, folder):
    both, tiny, mini = (
        {row["path"]: row["score"] for row in json.loads(run("score", folder, "--model", name, "--json")[1])}
        for name in ("tiny+bpclip-mini", "tiny", "bpclip-mini")
    )
    assert both == {path: pytest.approx(min(tiny[path], mini[path]), abs=1e-5) for path in tiny}


def test_models_are_joined_by_a_plus():
    from iqguide.cli.named_models import names_in
    from iqguide.models import MODELS

    assert names_in("tiny+bpclip-mini") == ["tiny", "bpclip-mini"]
    assert names_in("qualiclip++tiny") == ["qualiclip+", "tiny"]
    assert names_in("tiny+clipiqa+") == ["tiny", "clipiqa+"]
    assert names_in("clipiqa+_rn50_512+tiny+qualiclip+-spaq") == ["clipiqa+_rn50_512", "tiny", "qualiclip+-spaq"]
    assert all(names_in(name) == [name] for name in MODELS)
    with pytest.raises(ValueError, match="unknown model 'tinny'"):
        names_in("tiny+tinny")
    with pytest.raises(ValueError, match="unknown model ''"):
        names_in("tiny+")
