"""Agreement with people: the figures against closed forms and scipy, the command, one process and two."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_bpclip import make_fr
from torch.nn import functional as F
from two_processes import in_two

from iqguide import cli, create_model, load_images
from iqguide.images import resize_short_side, save_image
from iqguide.models import save_bpclip
from iqguide.training.correlation import (
    correlations,
    fit_logistic,
    fit_logistic5,
    intervals,
    logistic,
    logistic5,
    pairwise_accuracy,
)
from iqguide.training.datasets import load_dataset
from iqguide.training.splits import seeded_splits

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
def table(tmp_path):
    """Thirty pictures of different sharpness and size in six groups with references, and made-up scores."""
    rng = np.random.default_rng(0)
    rows = [["image", "mos", "reference", "split"]]
    for group in range(6):
        height = 40 + 4 * group
        sharp = torch.rand(1, 3, height, 56)
        save_image(sharp, tmp_path / f"r{group}.png")
        for level in range(5):
            blurred = F.avg_pool2d(sharp, 2 * level + 1, 1, level, count_include_pad=False)
            save_image(blurred, tmp_path / f"d{group}_{level}.png")
            mos = 90 - 15 * level + rng.normal() * 10
            rows.append([f"d{group}_{level}.png", mos, f"r{group}.png", "test" if group == 5 else "train"])
    path = tmp_path / "mos.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# --- figures ---


def test_logistic_is_recovered():
    x = np.linspace(-3, 5, 60)
    truth = (0.9, 0.1, 1.2, 0.7)
    y = 0.1 + 0.8 / (1 + np.exp(-(x - 1.2) / 0.7))
    np.testing.assert_allclose(fit_logistic(x, y), truth, rtol=1e-4)
    np.testing.assert_allclose(logistic(x, *truth), y, rtol=1e-12)
    found = correlations(x, y)
    assert found["plcc_fitted"] == pytest.approx(1, abs=1e-9)
    assert found["srcc"] == found["krcc"] == pytest.approx(1)
    assert found["plcc"] < 0.99


def test_five_parameters_are_recovered():
    x = np.linspace(-3, 5, 80)
    truth = (0.8, 1.3, 0.9, 0.05, 0.4)  # height, slope, centre, rise, level
    y = 0.8 * (0.5 - 1 / (1 + np.exp(1.3 * (x - 0.9)))) + 0.05 * x + 0.4
    np.testing.assert_allclose(logistic5(x, *truth), y, rtol=1e-12)
    np.testing.assert_allclose(logistic5(x, *fit_logistic5(x, y)), y, atol=1e-6)
    np.testing.assert_allclose(logistic5(-70 * x, *fit_logistic5(-70 * x, y)), y, atol=1e-6)
    assert correlations(x, y, 5)["plcc_fitted"] == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="got 5 pictures; a fit of five parameters needs six or more"):
        fit_logistic5(x[:5], y[:5])


def test_pairwise_accuracy_by_hand():
    scores, mos = np.array([1.0, 2.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0, 3.0])
    # (0,1) right, (0,2) right, (0,3) wrong, (1,2) equal scores, (1,3) wrong; (2,3) has equal MOS
    assert pairwise_accuracy(scores, mos) == pytest.approx((1 + 1 + 0 + 0.5 + 0) / 5)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 60))  # without ties it is the share of concordant pairs, which Kendall's tau counts too
    assert pairwise_accuracy(x, y) == pytest.approx((stats.kendalltau(x, y)[0] + 1) / 2)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_the_scores_does_not_matter(scale):
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    y = np.tanh(x) + 0.3 * rng.normal(size=80)
    plain, scaled = correlations(x, y), correlations(scale * x + 7, y)
    assert scaled == pytest.approx(plain, abs=1e-5)
    assert plain["plcc_fitted"] >= plain["plcc"] - 1e-3


def test_figures_are_their_definitions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=40), rng.integers(0, 6, 40).astype(float)  # scores with ties
    found = correlations(x, y)
    pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i in range(40) for j in range(i)]
    untied = [sum(1 for pair in pairs if pair[k] != 0) for k in (0, 1)]
    assert found["krcc"] == pytest.approx(sum(a * b for a, b in pairs) / math.sqrt(untied[0] * untied[1]))
    ranks = stats.rankdata(x), stats.rankdata(y)
    assert found["srcc"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["plcc"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["n"] == 40


def test_scores_that_run_the_wrong_way_keep_their_sign():
    x = np.linspace(0, 1, 30)
    found = correlations(x, 1 - x**2)
    assert found["srcc"] == found["krcc"] == pytest.approx(-1)
    assert found["plcc"] < -0.9
    assert found["plcc_fitted"] > 0.99  # the curve turns them round; that is why SRCC is looked at first


def test_interval_is_that_of_fisher():
    """Of a bivariate normal sample, where atanh(r) has the standard deviation 1 / sqrt(n - 3)."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=400)
    y = 0.6 * x + 0.8 * rng.normal(size=400)
    r = stats.pearsonr(x, y)[0]
    expected = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / math.sqrt(397))
    found = intervals(x, y, [str(i) for i in range(400)], draws=400)
    np.testing.assert_allclose(found["plcc"], expected, atol=0.02)
    for name in ("srcc", "krcc", "plcc_fitted"):
        low, high = found[name]
        assert low < correlations(x, y)[name] < high


def test_pictures_of_one_group_are_drawn_together():
    """Forty copies of ten pictures know no more than ten pictures: the interval of the copies is as wide."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 10))
    copies = np.repeat(x, 40), np.repeat(y, 40)
    grouped = intervals(*copies, np.repeat([str(i) for i in range(10)], 40), draws=200)["srcc"]
    alone = intervals(*copies, [str(i) for i in range(400)], draws=200)["srcc"]
    assert np.ptp(grouped) > 3 * np.ptp(alone)


def test_what_has_no_correlation():
    x = np.arange(6.0)
    for scores, mos, message in (
        (np.ones(6), x, "all 6 scores are 1; a correlation needs different ones"),
        (x, np.ones(6), "all 6 mean opinion scores are 1"),
        (np.array([1, 2, np.nan, 4, 5, 6]), x, "the scores hold NaN"),
        (x[:4], x[:4], "got 4 pictures; a fit of four parameters needs five or more"),
    ):
        with pytest.raises(ValueError, match=message):
            correlations(scores, mos)


# --- the command ---


def test_json_is_the_contract_and_agrees_with_scipy(run, table, tmp_path):
    options = ("--dataset", "csv", "--root", table, "--bootstrap", 50, "--json", *RANDOM)
    status, out, _ = run("evaluate", *options, "--csv", tmp_path / "scores.csv")
    found = json.loads(out)
    assert status == 0
    assert list(found)[:5] == ["srcc", "plcc", "plcc_fitted", "krcc", "n"]
    assert (found["n"], found["model"], found["dataset"], found["split"]) == (30, "tiny", "csv", "all")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    scores, mos = ([float(row[name]) for row in rows] for name in ("score", "mos"))
    model = create_model("tiny", weights="random")
    assert scores == pytest.approx([model(load_images(row["image"], size=128)).item() for row in rows], abs=1e-6)
    assert found["srcc"] == pytest.approx(stats.spearmanr(scores, mos)[0])
    assert found["plcc"] == pytest.approx(stats.pearsonr(scores, mos)[0])
    assert found["krcc"] == pytest.approx(stats.kendalltau(scores, mos)[0])
    assert {name: low <= found[name] <= high for name, (low, high) in found["intervals"].items()} == {
        "srcc": True,
        "plcc": True,
        "plcc_fitted": True,
        "krcc": True,
    }


def test_large_images_are_reduced_first(run, table, tmp_path):
    run("evaluate", "--dataset", "csv", "--root", table, "--size", 36, "--csv", tmp_path / "scores.csv", *RANDOM)
    row = next(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    model = create_model("tiny", weights="random")
    image = resize_short_side(load_images(row["image"]), 36)
    assert float(row["score"]) == pytest.approx(model(image).item(), abs=1e-6)


def test_table_for_people_and_plot(run, table, tmp_path):
    status, out, _ = run("evaluate", "--dataset", "csv", "--root", table, "--plot", tmp_path / "plot.png", *RANDOM)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "tiny on csv: 30 images, short side at least 128 and at most 512 px"
    assert [line.split("  ")[-1] for line in lines[1:6]] == [
        *("SRCC", "PLCC", "PLCC after the four-parameter logistic", "KRCC"),
        "pairs of pictures in the right order",
    ]
    assert "95 % bootstrap intervals" in lines[6]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (600, 600)


def test_files_that_cannot_be_written_are_found_out_first(run, table, tmp_path):
    options = ("evaluate", "--dataset", "csv", "--root", table, *RANDOM)
    (tmp_path / "file").write_text("")
    for wrong in (("--plot", tmp_path / "plot.foo"), ("--csv", tmp_path / "file" / "scores.csv")):
        status, out, err = run(*options, *wrong)
        assert (status, out) == (2, "")
        assert "such as .png" in err or "cannot make the folder" in err
    assert run(*options, "--csv", tmp_path / "new" / "scores.csv")[0] == 0
    assert (tmp_path / "new" / "scores.csv").is_file()


def test_ten_splits_and_test_part(run, table, tmp_path):
    options = ("--dataset", "csv", "--root", table, "--json", *RANDOM)
    found = json.loads(run("evaluate", *options, "--split", "ten", "--csv", tmp_path / "scores.csv")[1])
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    scores, mos = (np.array([float(row[name]) for row in rows]) for name in ("score", "mos"))
    parts = [test for _, test in seeded_splits(load_dataset("csv", table))]
    expected = [stats.spearmanr(scores[part], mos[part])[0] for part in parts]
    assert [split["srcc"] for split in found["splits"]] == pytest.approx(expected)
    assert found["srcc"] == pytest.approx(np.mean(expected))
    assert found["std"]["srcc"] == pytest.approx(np.std(expected, ddof=1))
    assert {split["n"] for split in found["splits"]} == {5}  # one reference of six
    one = json.loads(run("evaluate", *options, "--split", "3", "--bootstrap", 0)[1])
    assert one["srcc"] == pytest.approx(expected[3])
    (tmp_path / "split.json").write_text(json.dumps([{"image": f"x/d{g}_{n}.png"} for g in (1, 2) for n in range(5)]))
    listed = json.loads(run("evaluate", *options, "--split", tmp_path / "split.json", "--logistic", 5)[1])
    assert (listed["n"], listed["logistic"]) == (10, 5)
    reverse = json.loads(run("evaluate", *options, "--split", "test", "--bootstrap", 0, "--lower-is-better")[1])
    found = json.loads(run("evaluate", *options, "--split", "test", "--bootstrap", 0)[1])
    assert reverse["srcc"] == pytest.approx(-found["srcc"])
    assert found["n"] == 5
    assert "intervals" not in found


def test_near_identical_images_stay_together(run, tmp_path):
    """Ten copies of one picture and thirty others: 31 groups of which a split holds out 6, so 6 or 15 pictures."""
    rows, copied = [["image", "mos"]], torch.rand(3, 36, 36)
    for i in range(40):
        save_image(copied if 15 <= i < 25 else torch.rand(3, 36, 36), tmp_path / f"{i}.png")
        rows.append([f"{i}.png", i])
    with (tmp_path / "mos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = ("--dataset", "csv", "--root", tmp_path, "--split", "ten", "--json", *RANDOM)
    assert {split["n"] for split in json.loads(run("evaluate", *options)[1])["splits"]} == {8}
    assert {split["n"] for split in json.loads(run("evaluate", *options, "--group-alike")[1])["splits"]} == {6, 15}


def test_full_reference(run, table, tmp_path):
    weights = tmp_path / "fr.safetensors"
    save_bpclip(make_fr(), weights)
    options = ("--model", "bpclip-fr", "--weights", weights, "--device", "cpu", "--bootstrap", 0, "--json")
    status, _, err = run("evaluate", "--dataset", "csv", "--root", table, *options, "--csv", tmp_path / "scores.csv")
    assert status == 0, err
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    model = create_model("bpclip-fr", weights=weights)
    for row in rows[:3]:
        expected = model(load_images(row["image"]), load_images(row["reference"])).item()
        assert float(row["score"]) == pytest.approx(expected, abs=1e-6)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.replace("r0.png", "") for line in lines))
    status, _, err = run("evaluate", "--dataset", "csv", "--root", table, *options)
    assert (status, "d0_0.png has no reference, which this model needs" in err) == (2, True)


def test_errors_come_before_the_work(run, table, tmp_path):
    for options, message in (
        (("--dataset", "koniq", "--root", tmp_path), "unknown data set 'koniq'"),
        (("--dataset", "spaq", "--root", tmp_path), "has no TestImage; expected the data set as it was released"),
        (("--dataset", "csv", "--root", table, "--model", "tinny"), "Did you mean 'tiny'?"),
        (("--dataset", "csv", "--root", table, "--scale", 0, 10), "outside the scale"),
        (("--dataset", "csv", "--root", table, "--split", "half"), "split is 'half'; expected a number, pyiqa"),
        (("--dataset", "csv", "--root", table, "--model", "bpclip"), "no trained weights of bpclip"),
    ):
        weights = () if "bpclip" in options else RANDOM
        status, out, err = run("evaluate", *options, *weights)
        assert (status, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run, table, tmp_path):
    command = ("evaluate", "--dataset", "csv", "--root", table, "--json", *RANDOM)
    done, notes = in_two(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert [(note["processes"], len(note["scored"])) for note in notes] == [(2, 15), (2, 15)]
    assert len({*notes[0]["scored"], *notes[1]["scored"]}) == 30
    _, alone, _ = run(*command)
    found, alone = json.loads(done.stdout), json.loads(alone)
    assert found["n"] == alone["n"] == 30
    for name in ("srcc", "plcc", "plcc_fitted", "krcc"):
        assert found[name] == pytest.approx(alone[name], abs=1e-9)
