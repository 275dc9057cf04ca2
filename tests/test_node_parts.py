"""The parts of the ComfyUI nodes that need no ComfyUI: picking, labelling, plotting."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch

from iqguide.guidance import Evaluation
from iqguide.nodes.labels import labelled
from iqguide.nodes.naming import picture_names, table_name
from iqguide.nodes.parse_attributes import EXAMPLE, parse_attributes
from iqguide.nodes.parse_shares import parse_shares, seeds_from
from iqguide.nodes.plot import (
    BLUE,
    HEIGHT,
    ORANGE,
    WIDTH,
    above_each_other,
    draw_log,
    line_plot,
    notice,
    said_of,
)
from iqguide.nodes.select import best_and_rest, select_images, select_latents, select_masks
from iqguide.nodes.tables import number, to_json
from iqguide.nodes.upstream import nearest_upstream


def test_latents_keep_what_makes_their_noise_again():
    latents = {"samples": torch.arange(4.0).reshape(4, 1, 1, 1), "noise_mask": torch.arange(4.0).reshape(4, 1, 1)}
    picked = select_latents(latents, [2, 0], 4)
    assert picked["samples"].flatten().tolist() == [2, 0]
    assert picked["noise_mask"].flatten().tolist() == [2, 0]
    assert picked["batch_index"] == [2, 0]
    assert select_latents(picked, [1], 2)["batch_index"] == [0]  # also the second time
    assert "batch_index" not in latents


@pytest.mark.parametrize(("count", "expected"), [(1, [0, 0]), (2, [1, 0]), (4, [3, 0])])
def test_masks_repeat_as_in_comfyui(count, expected):
    masks = torch.arange(float(count)).reshape(count, 1, 1)
    found = select_masks(masks, [3, 0], 4)
    assert (found if count > 1 else found.expand(2, 1, 1)).flatten().tolist() == expected


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="got 3 latents for 4 pictures"):
        select_latents({"samples": torch.zeros(3, 4, 8, 8)}, [0], 4)
    with pytest.raises(ValueError, match="got 5 masks for 4 pictures"):
        select_masks(torch.zeros(5, 8, 8), [0], 4)
    with pytest.raises(ValueError, match="got no masks for 4 pictures"):
        select_masks(torch.zeros(0, 8, 8), [0], 4)
    with pytest.raises(ValueError, match="batch_index of these latents has 1 numbers for 4 latents"):
        select_latents({"samples": torch.zeros(4, 4, 8, 8), "batch_index": [0]}, [0, 3], 4)


def test_the_best_and_the_rest():
    scores, order = [0.2, 0.9, 0.5, 0.5], [1, 2, 3, 0]
    assert best_and_rest(scores, order, 2, -1000.0) == ([1, 2], [3, 0])
    assert best_and_rest(scores, order, 9, -1000.0) == ([1, 2, 3, 0], [])
    assert best_and_rest(scores, order, 4, 0.5) == ([1, 2, 3], [0])
    assert best_and_rest(scores, order, 1, 0.95) == ([], [1, 2, 3, 0])


def test_a_label_covers_a_corner_only():
    image = torch.full((64, 96, 3), 0.5)
    found = labelled(image, "#1 0.5")
    assert found.shape == image.shape
    assert found[:20, :40].std() > 0.1
    assert (found[32:] - 0.5).abs().max() < 0.003
    assert labelled(torch.rand(40, 40, 4) * 2 - 0.5, "x").shape == (40, 40, 3)  # alpha and overshoot


def test_stack_keeps_the_order():
    images = torch.arange(3.0).reshape(3, 1, 1, 1)
    (batch,) = select_images(images, [2, 0])
    assert batch.flatten().tolist() == [2, 0]


def test_a_rising_line_rises():
    plot = line_plot("t", [("line", ORANGE, [(1.0, 0.0), (0.0, 1.0)])], (1.0, 0.0))
    assert plot.size == (WIDTH, HEIGHT)
    spots = [(x, y) for x in range(60, WIDTH) for y in range(30, HEIGHT - 30) if plot.getpixel((x, y)) == ORANGE]
    (left, low), (right, high) = min(spots), max(spots)
    assert right - left > 500
    assert low - high > 100  # rows count downwards
    assert above_each_other([plot, plot]).size == (WIDTH, 2 * HEIGHT)


@pytest.mark.parametrize("points", [[], [(0.5, 2.0)], [(1.0, 3.0), (0.0, 3.0)]])
def test_plots_of_little_or_level_data(points):
    assert line_plot("t", [("line", ORANGE, points)], (0.5, 0.5)).size == (WIDTH, HEIGHT)


def spots_of(picture, colour):
    return [(x, y) for x in range(picture.width) for y in range(picture.height) if picture.getpixel((x, y)) == colour]


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_points_that_are_no_numbers_are_left_out(missing):
    points = [(1.0, 0.0), (0.5, 1.0), (0.0, 2.0)]
    with_gap = line_plot("t", [("line", ORANGE, [*points[:2], (0.2, missing), points[2]])], (1.0, 0.0))
    assert with_gap.tobytes() == line_plot("t", [("line", ORANGE, points)], (1.0, 0.0)).tobytes()
    assert line_plot("t", [("line", ORANGE, [(0.5, missing)])], (1.0, 0.0)).size == (WIDTH, HEIGHT)


def evaluations(*scores):
    """Of batches with these scores, at falling noise levels."""
    levels = torch.linspace(0.9, 0.1, len(scores)).tolist()
    return [
        Evaluation(i, level, level - 0.05, None, 0.1, score, score, (0.01,) * len(score), (0.02,) * len(score))
        for i, (level, score) in enumerate(zip(levels, scores, strict=True))
    ]


def test_a_log_with_scores_that_are_no_numbers_is_drawn_without_them():
    rows = HEIGHT - 30  # below the names of the lines, in the upper plot
    drawn = draw_log(evaluations((0.2, math.nan), (math.nan, math.nan), (0.8, math.nan)))
    alone = draw_log([entry for entry in evaluations((0.2,), (0.5,), (0.8,)) if entry.index != 1])
    upper = (0, 0, WIDTH, rows)
    assert drawn.crop(upper).tobytes() == alone.crop(upper).tobytes()
    assert len(spots_of(drawn.crop(upper), BLUE)) > 100


def test_a_log_has_null_for_what_is_no_number():
    entry = {"index": 3, "skipped": None, "weight": math.inf, "score_before": (0.5, math.nan), "change": ()}
    expected = {"index": 3, "skipped": None, "weight": None, "score_before": [0.5, None], "change": []}
    assert json.loads(to_json([entry])) == [expected]


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.8314, "0.831"),
        (-1.25, "-1.250"),
        (0.0, "0.000"),
        (0.00231, "0.0023"),
        (1.2e-7, "1.2e-07"),
        (math.nan, "no score"),
    ],
)
def test_weak_scores_keep_their_digits(score, text):
    assert number(score) == text


@pytest.mark.parametrize("side", [64, 512, 1024])
def test_labels_grow_with_the_picture(side):
    """At least 2 % of the side high, and inside the picture."""
    shown = labelled(torch.ones(side, side, 3), "#1 0.123")
    rows = (shown < 0.5).all(-1).any(1).nonzero().flatten()  # the black box
    assert rows.max() - rows.min() > max(side * 0.04, 8)
    assert rows.max() < side / 2


def test_the_nearest_sampler_is_found():
    def node(**inputs):
        return {"inputs": inputs}

    prompt = {
        "1": node(),
        "2": node(model=["1", 0], seed=3),
        "3": node(latent_image=["2", 0], model=["1", 0]),
        "4": node(samples=["3", 0], text="3"),
        "5": node(after=["4", 0], model=["1", 0]),
        "6": node(after=["2", 0]),
        "7": node(after=["1", 0]),
        "8": node(after=["9", 0]),
        "9": node(pair=["9", 0], other=["1", 2]),  # a circle, as a broken prompt may have
    }
    assert nearest_upstream(prompt, "5", "after", ["2", "3"]) == "3"
    assert nearest_upstream(prompt, "5", "after", ["3.0.1", "2"]) == "3.0.1"
    assert nearest_upstream(prompt, "6", "after", ["2", "3"]) == "2"
    assert nearest_upstream(prompt, "7", "after", ["2", "3"]) is None
    assert nearest_upstream(prompt, "8", "after", ["2"]) is None
    assert nearest_upstream(prompt, "1", "after", ["2"]) is None


def test_a_guidance_that_did_nothing_is_said():
    skipped = [replace(entry, skipped="outside the noise window") for entry in evaluations((0.2,), (0.5,))]
    assert said_of(skipped) == "guidance changed nothing: outside the noise window"
    assert said_of([*skipped, *evaluations((0.1,))]) == "changed 1 of 3 steps"


def test_a_notice_can_be_read():
    said, other = notice("no guidance on this MODEL"), notice("something else")
    assert said.size == other.size
    assert said.tobytes() != other.tobytes()
    assert sum(said.convert("L").histogram()[:128]) > 50


def test_the_place_in_the_batch_is_in_the_file_names_and_not_in_that_of_the_table(tmp_path):
    assert picture_names(tmp_path, "a", 7, 2) == ["a_00007_.png", "a_00008_.png"]
    names = picture_names(tmp_path, "a%batch_num%b", 1, 2)
    assert names == ["a0b_00001_.png", "a1b_00002_.png"]
    for name in names:
        (tmp_path / name).touch()
    assert not set(picture_names(tmp_path, "a%batch_num%b", 1, 3)) & set(names)
    assert table_name("a%batch_num%b") == "ab.csv"
    assert table_name("%batch_num%") == "scores.csv"


def test_the_longest_names_of_saved_files(tmp_path):
    for name in [*picture_names(tmp_path, "ä" * 127 + "x", 1, 2), table_name("x" * 255)]:
        (tmp_path / name).write_bytes(b"")
        assert len(os.fsencode(name)) <= 255
    assert picture_names(tmp_path, "ä" * 127 + "x", 1, 1)[0].endswith("_00003_.png")


def test_a_label_is_written_on_what_is_seen_of_a_transparent_picture():
    picture = torch.zeros(64, 64, 4)  # black, and all of it transparent
    assert labelled(picture, "")[40:].min() == 1


def test_attributes_are_read_line_by_line():
    pairs, weights = parse_attributes("# comment\n\nSharp photo. / Blurry photo.\n Bright / Dark = -0.5 \n")
    assert pairs == [("Sharp photo.", "Blurry photo."), ("Bright", "Dark")]
    assert weights == [1.0, -0.5]
    assert len(parse_attributes(EXAMPLE)[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sharp photo.", "got 'Sharp photo.'"),
        ("/ Blurry", "got '/ Blurry'"),
        ("a / b / c", "got 'a / b / c'"),
        ("a / b = much", "weight in 'a / b = much' is no number"),
        ("a / b = nan", "weight in 'a / b = nan' is not finite"),
        ("c / d\na / b = -inf", "weight in 'a / b = -inf' is not finite"),
        ("# nothing", "there are no attributes"),
        ("a / b = 0", "there are no attributes"),
    ],
)
def test_attributes_that_cannot_be_read_are_quoted(text, message):
    with pytest.raises(ValueError, match=message):
        parse_attributes(text)


def test_shares_are_read():
    assert parse_shares("0.4, 0.7") == (0.4, 0.7)
    assert parse_shares(" .5,") == (0.5,)
    assert parse_shares(" ") == ()


@pytest.mark.parametrize("text", ["half", "0.7, 0.4", "0.4, 0.4", "0", "1", "40, 70", "0.4; 0.7", "nan"])
def test_shares_that_cannot_be_read_are_quoted(text):
    with pytest.raises(ValueError, match=r"drop_at is .*; expected"):
        parse_shares(text)


def test_seeds_count_on_and_begin_again_after_the_largest():
    assert seeds_from(7, 3) == [7, 8, 9]
    assert seeds_from(2**64 - 1, 3) == [2**64 - 1, 0, 1]
