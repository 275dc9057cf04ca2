"""A grid of small line charts with intervals, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT, LINE = ImageFont.load_default(12), 18
INK, GRID = (30, 30, 30), (205, 205, 205)
COLOURS = ((40, 90, 160), (200, 60, 40), (60, 140, 70), (150, 80, 160), (215, 150, 30), (90, 90, 90))
LEFT, RIGHT, TOP, BOTTOM = 48, 30, 26, 36


@dataclass(frozen=True)
class Line:
    """Points joined by a line, each with an interval."""

    x: np.ndarray
    """(n,) where the points are."""
    y: np.ndarray
    """(n, 3): value, lower and upper end of its interval."""
    colour: int = 0
    """Number of its colour in `COLOURS`."""
    marks: Sequence[str] = ()
    """(n,) written beside the points, which are then not joined."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]] = ()
    """Places and names on the x axis; none: the numbers at its two ends."""


def grid(
    rows: Sequence[Sequence[Panel]],
    legend: Sequence[str] = (),
    notes: Sequence[str] = (),
    width: int = 300,
    height: int = 200,
) -> Image.Image:
    """Panels in rows; those of a column share their y axis, so that rows can be compared.

    Args:
        rows: equally many panels in each.
        legend: names of the first colours, written below.
        notes: lines of text, written below these.
        width: of a panel, in px.
        height: of a panel, in px.
    """
    canvas = Image.new("RGB", (width * len(rows[0]), height * len(rows) + LINE * len([*legend, *notes]) + 6), "white")
    pen = ImageDraw.Draw(canvas)
    for column in range(len(rows[0])):
        values = np.concatenate([line.y.ravel() for row in rows for line in row[column].lines])
        span = (min(float(values.min()), 0.0), max(float(values.max()), 1e-9))
        for number, row in enumerate(rows):
            draw(pen, row[column], (column * width, number * height, width, height), span)
    for index, name in enumerate(legend):
        y = height * len(rows) + LINE * index
        pen.rectangle((LEFT, y + 5, LEFT + 20, y + 8), COLOURS[index])
        pen.text((LEFT + 30, y), name, INK, FONT)
    for index, note in enumerate(notes, len(legend)):
        pen.text((LEFT, height * len(rows) + LINE * index), note, INK, FONT)
    return canvas


def draw(pen: ImageDraw.ImageDraw, panel: Panel, box: tuple[int, int, int, int], span: tuple[float, float]) -> None:
    """One panel in the box (left, top, width, height), its y axis over `span`."""
    left, top, right, bottom = box[0] + LEFT, box[1] + TOP, box[0] + box[2] - RIGHT, box[1] + box[3] - BOTTOM
    every = np.concatenate([line.x for line in panel.lines])
    start, width = float(every.min()), float(np.ptp(every)) or 1.0
    low, high = span

    def across(x: float) -> float:
        return left + (x - start) / width * (right - left)

    def up(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    pen.text((left, box[1] + 6), panel.title, INK, FONT)
    pen.rectangle((left - 4, top - 2, right + 4, bottom + 2), outline=GRID)
    pen.line((left - 4, up(0), right + 4, up(0)), GRID)
    for value in {low, 0.0, high}:
        pen.text((left - 8, up(value)), f"{value:+.3g}", INK, FONT, anchor="rm")
    for value, name in panel.ticks or [(x, f"{x:.3g}") for x in (start, start + width)]:
        pen.text((across(value), bottom + 6), name, INK, FONT, anchor="ma", align="center")
    for line in panel.lines:
        colour = COLOURS[line.colour]
        if not line.marks:
            pen.line([(across(x), up(y)) for x, y in zip(line.x, line.y[:, 0], strict=True)], colour, 2)
        for x, (value, below, above) in zip(line.x, line.y, strict=True):
            pen.line((across(x), up(below), across(x), up(above)), colour)
            pen.ellipse((across(x) - 3, up(value) - 3, across(x) + 3, up(value) + 3), colour)
        for x, value, mark in zip(line.x, line.y[:, 0], line.marks, strict=bool(line.marks)):
            pen.text((across(x) + 6, up(value) - 15), mark, INK, FONT)
