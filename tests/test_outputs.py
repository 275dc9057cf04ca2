"""Nothing of the user's is written over, and scores that exist are printed whatever comes next."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iqguide import cli
from iqguide.cli import score as cli_score
from iqguide.cli.outputs import check_targets, unique_names
from iqguide.images import save_image
from iqguide.spreadsheets import safe_row

RANDOM = ["--weights", "random", "--device", "cpu"]
EXPLAINED = ["--model", "bpclip-mini", "--device", "cpu"]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three photographs in the working folder."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (96, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- files ---


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("link", [False, True])
def test_a_photograph_is_never_replaced_by_its_chart(run, folder, tmp_path, overwrite, link):
    before, target = contents(folder), "."
    if link:
        target = tmp_path / "link"
        target.symlink_to(folder)
    status, out, err = run("score", ".", "--explain-to", target, *EXPLAINED, *overwrite)
    assert (status, out) == (2, "")
    assert "0.png is read by this command and would be written over; choose another place.\n" in err
    assert contents(folder) == before


def test_charts_replace_charts_and_nothing_else(run, folder, tmp_path):
    charts = tmp_path / "charts"
    for _ in range(2):  # the second time its own are there
        assert run("score", ".", "--explain-to", charts, *EXPLAINED)[0] == 0
    assert sorted(contents(charts)) == ["0.png", "1.png", "2.png"]
    save_image(torch.rand(3, 40, 40), charts / "1.png", {"iqguide": "{}"})  # of `iqguide sample`
    before = contents(charts)
    status, out, err = run("score", ".", "--explain-to", charts, *EXPLAINED)
    assert (status, out) == (2, "")
    assert f"{charts / '1.png'} exists already, and this command has not written it; choose another place, or" in err
    assert contents(charts) == before
    assert run("score", ".", "--explain-to", charts, "--overwrite", *EXPLAINED)[0] == 0
    assert contents(charts)["1.png"] != before["1.png"]


def test_a_data_set_is_never_written_over(run, folder):
    for index in range(3, 7):
        os.link(folder / f"{index % 3}.png", folder / f"{index}.png")
    rows = "\n".join(f"{index}.png,{index}" for index in range(7))
    (folder / "mos.csv").write_text(f"image,mos\n{rows}\n")
    before = contents(folder)
    options = ("--dataset", "csv", "--bootstrap", "0", *RANDOM)
    for root in (".", "mos.csv"):
        for target in (["--csv", "mos.csv"], ["--plot", "0.png"]):
            status, out, err = run("evaluate", "--root", root, *target, "--overwrite", *options)
            assert (status, out) == (2, "")
            assert f"{target[1]} is read by this command" in err
    assert contents(folder) == before
    for _ in range(2):
        status, _, err = run("evaluate", "--root", ".", "--csv", "scores.csv", "--plot", "plot.png", *options)
        assert status == 0, err
    (folder.parent / "mine.csv").write_text("mine")
    status, _, err = run("evaluate", "--root", ".", "--csv", "../mine.csv", *options)
    assert status == 2
    assert "add --overwrite" in err
    assert (folder.parent / "mine.csv").read_text() == "mine"


def test_what_is_no_file_may_be_written_to():
    check_targets(["/dev/stdout", "/dev/null"])


def test_names_stay_apart_and_fit():
    assert unique_names(["a", "b"], ".png") == ["a.png", "b.png"]
    assert unique_names(["a", "A", "b"], ".png") == ["1_a.png", "2_A.png", "b.png"]
    assert len(set(unique_names(["a", "a", "1_a"], ".png"))) == 3
    long = unique_names(["ä" * 200, "ä" * 200 + "b", "x" * 255], ".png")
    assert len(set(long)) == 3
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".png") for name in long)


def test_charts_of_the_longest_names(run, folder, tmp_path):
    for name in ("ä" * 125 + "x.png", "ä" * 125 + "y.png"):
        os.link(folder / "0.png", folder / name)
    assert run("score", ".", "--explain-to", tmp_path / "charts", *EXPLAINED)[0] == 0
    assert len(contents(tmp_path / "charts")) == 5


# --- tables ---


def test_no_cell_begins_a_formula(run, folder):
    names = ["=1+1.png", "+1.png", "-1.png", "@sum.png"]
    for name in names:
        os.link(folder / "0.png", folder / name)
    (folder / "=bad.png").write_text("no picture")
    status, out, _ = run("score", *(f"./{name}" for name in names), "./=bad.png", "--csv", *RANDOM)
    rows = list(csv.reader(io.StringIO(out)))
    assert status == 0
    assert [row[0] for row in rows[1:]] == [f"./{name}" for name in (*names, "=bad.png")]
    assert all(Path(row[0]).is_file() for row in rows[1:])
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert safe_row(("=a", None, -1.5, "b")) == ["./=a", None, -1.5, "b"]


# --- output ---


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "iqguide.cli", *map(str, arguments)], capture_output=True, timeout=300, **options
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stderr", ["full", "closed"])
def test_scores_do_not_depend_on_stderr(folder, stderr):
    (folder / "bad.png").write_text("no picture")
    redirection = "2>/dev/full" if stderr == "full" else "2>&-"
    line = f'"{sys.executable}" -m iqguide.cli score . --json --weights random --device cpu {redirection}'
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == 0
    assert sum(row["score"] is not None for row in json.loads(done.stdout)) == 3


def test_a_closed_output_is_said_before_the_work(folder):
    line = f'"{sys.executable}" -m iqguide.cli score . --weights random --device cpu >&-'
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == (
        "iqguide: error: the standard output is closed, so nothing could be printed; send it to a file.\n"
    )


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
def test_a_name_that_the_encoding_lacks_costs_no_score(folder, form):
    os.link(folder / "0.png", folder / "größe 猫.png")
    done = command("score", ".", *form, *RANDOM, env={**os.environ, "PYTHONIOENCODING": "latin-1:strict"})
    assert done.returncode == 0, done.stderr
    if form != ["--json"]:
        assert "größe \\u732b.png".encode("latin-1") in done.stdout
    assert done.stdout.count(b".png") == 4


def test_memory_that_runs_out_at_one_picture_costs_that_one_alone(run, folder, monkeypatch):
    big = np.zeros((100, 200, 3), np.uint8)
    Image.fromarray(big).save(folder / "big.png")
    score, load = cli_score.score_batch, cli_score.load_images

    def score_small(images, reward):
        if images.shape[-1] > 150 or len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return score(images, reward)

    def load_small(path, **options):
        if path.endswith("1.png"):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return load(path, **options)

    monkeypatch.setattr(cli_score, "score_batch", score_small)
    monkeypatch.setattr(cli_score, "load_images", load_small)
    status, out, err = run("score", ".", "--json", *RANDOM)
    found = {Path(row["path"]).name: row for row in json.loads(out)}
    assert status == 0
    assert {name for name, row in found.items() if row["score"] is not None} == {"0.png", "2.png"}
    for name in ("1.png", "big.png"):
        assert found[name]["error"] == cli_score.OUT_OF_MEMORY
    assert "damaged" not in err
    assert "2 of 4 images scored" in err


@pytest.mark.parametrize("what", ["score", "rank"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError])
def test_whatever_ends_the_work_costs_no_score(capsys, folder, monkeypatch, what, error):
    score, calls = cli_score.score_batch, []

    def ends(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error("x")
        return score(*arguments)

    monkeypatch.setattr(cli_score, "score_batch", ends)
    monkeypatch.setattr(cli_score, "BATCH_SIZE", 1)
    if error is ZeroDivisionError:  # a defect: its traceback is wanted, after the scores
        with pytest.raises(ZeroDivisionError):
            cli.main([what, ".", "--json", *RANDOM])
    else:
        assert cli.main([what, ".", "--json", *RANDOM]) == (130 if error is KeyboardInterrupt else 2)
    captured = capsys.readouterr()
    assert sorted(row["path"] for row in json.loads(captured.out)) == ["0.png", "1.png"]
    assert "after 2 of 3 images." in captured.err
