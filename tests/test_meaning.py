"""What a score means: grades, percentiles, digits, and where the command shows them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from iqguide.models import meaning
from iqguide.models.meaning import WORDS, Meaning, digits, percentile, word


@pytest.mark.parametrize(
    ("score", "grade"),
    [
        (0.0, "bad"),
        (0.19, "bad"),
        (0.2, "poor"),
        (0.41, "fair"),
        (0.6, "good"),
        (0.81, "excellent"),
        (1.0, "excellent"),
    ],
)
def test_a_grade_is_a_fifth_of_the_range(score, grade):
    assert word(score) == grade


def test_a_percentile_is_the_place_among_the_quantiles():
    rising = [n / 200 for n in range(101)]
    assert percentile(rising, 0.125) == pytest.approx(25)
    assert percentile(rising, 0.1275) == pytest.approx(25.5)
    assert percentile(rising, -0.1) == 0
    assert percentile(rising, 0.0) == 0
    assert percentile(rising, 0.5) == 100
    assert percentile(rising, 0.9) == 100


def test_equal_quantiles_do_no_harm():
    assert percentile([0.1] * 50 + [0.2] * 51, 0.15) == pytest.approx(49.5)


def test_weak_pictures_differ():
    assert digits(0.71234) == "0.7123"
    assert digits(0.0) == "0.0000"
    assert digits(0.00012345) == "1.23e-04"
    assert digits(1.2e-5) != digits(1.3e-5)


@pytest.mark.parametrize("name", ["lite", "tiny"])
def test_the_table_rises_within_the_scores(name):
    known = meaning._quantiles()[name]
    assert len(known) == 101
    assert known == sorted(known)
    assert 0 <= known[0] < known[-1] <= 1
    middle = meaning.meaning(name, "default", known[50])
    assert middle == Meaning(word(known[50]), pytest.approx(50))


def test_weights_of_ones_own_mean_nothing():
    assert meaning.meaning("lite", "random", 0.5) is None
    assert meaning.meaning("qualiclip", "default", 0.5) is None
    assert set(WORDS) == {"bad", "poor", "fair", "good", "excellent"}


@pytest.fixture(scope="module")
def printed():
    """What `iqguide score` prints of two pictures, as --json, --csv and the table."""
    from iqguide.cli.main import main

    paths = sorted(str(path) for path in (Path(__file__).parent / "photographs").glob("*.jpg"))[:2]

    def run(capsys, *flags: str) -> str:
        assert main(["score", *paths, *flags]) == 0
        return capsys.readouterr().out

    return run


def test_the_command_says_place_and_grade_in_all_its_forms(printed, capsys):
    rows = json.loads(printed(capsys, "--json"))
    table = list(csv.DictReader(io.StringIO(printed(capsys, "--csv"))))
    lines = printed(capsys).splitlines()
    for row, cells, line in zip(rows, table, lines, strict=True):
        found = meaning.meaning("lite", "default", row["score"])
        assert row["word"] == cells["word"] == found.word
        assert row["percentile"] == float(cells["percentile"]) == pytest.approx(found.percentile, abs=0.06)
        assert line.split() == [digits(row["score"]), f"{row['percentile']:.0f}", "%", row["word"], row["path"]]
