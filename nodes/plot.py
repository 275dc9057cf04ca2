"""The log of a guidance as a plot drawn with Pillow, for matplotlib is not a part of ComfyUI. Needs no ComfyUI."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..guidance import Evaluation

Series = tuple[str, tuple[int, int, int], Sequence[tuple[float, float]]]
"""Name, colour, points (x, y)."""

WIDTH, HEIGHT, MARGIN = 640, 240, 44
BLUE, ORANGE, GREY = (37, 99, 235), (217, 119, 6), (200, 200, 200)


def said_of(log: Sequence[Evaluation]) -> str:
    """What guidance did in a sampling, in one line."""
    changed = sum(entry.skipped is None for entry in log)
    if changed:
        return f"changed {changed} of {len(log)} steps"
    return f"guidance changed nothing: {'; '.join(sorted({str(entry.skipped) for entry in log}))}"


def draw_log(log: Sequence[Evaluation]) -> Image.Image:
    """Score before and after, and size of the changes, over the noise level."""
    scored = [entry for entry in log if entry.score_before and entry.score_after]  # where a gradient was taken
    changed = [entry for entry in log if entry.change]
    levels = [entry.noise_level for entry in log]
    x_range = (max(levels), min(levels))
    before = [(entry.noise_level, _mean(entry.score_before)) for entry in scored]
    after = [(entry.noise_level, _mean(entry.score_after)) for entry in scored]
    size = [(entry.noise_level, _mean(entry.change)) for entry in changed]
    drift = [(entry.noise_level, _mean(entry.drift)) for entry in changed]
    plots = (
        line_plot(
            "score, unsaturated, over noise level", [("after", ORANGE, after), ("before", BLUE, before)], x_range
        ),
        line_plot("rms change over noise level", [("all so far", ORANGE, drift), ("this step", BLUE, size)], x_range),
    )
    return above_each_other(plots)


def _mean(values: Sequence[float]) -> float:
    """Of the samples that have a value: one of a batch may be NaN at every step."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def notice(text: str) -> Image.Image:
    """A line of text where there is nothing to plot."""
    picture = Image.new("RGB", (WIDTH, 2 * MARGIN), "white")
    ImageDraw.Draw(picture).text((MARGIN, MARGIN - 6), text, fill="black")
    return picture


def line_plot(title: str, series: Sequence[Series], x_range: tuple[float, float]) -> Image.Image:
    """Lines in one frame with a title, the ends of both axes and the names of the lines.

    Args:
        title: above the frame.
        series: the lines; x from left to right as in `x_range`. Points that are not finite are left out.
        x_range: value at the left and at the right edge; may fall.

    Returns:
        An RGB picture of WIDTH x HEIGHT.
    """
    series = [
        (name, colour, [point for point in points if all(map(math.isfinite, point))]) for name, colour, points in series
    ]
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    values = [y for _, _, points in series for _, y in points] or [0.0]
    low, high = min(values), max(values)
    pad = (high - low) * 0.05 or 1.0
    low, high = low - pad, high + pad
    left, top, right, bottom = MARGIN + 16, 28, WIDTH - 12, HEIGHT - MARGIN + 16
    draw.rectangle((left, top, right, bottom), outline=GREY)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1.0)
        return left + across * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    draw.text((left, 8), title, fill="black")
    for y in (low + pad, high - pad):
        draw.text((4, place(x_range[0], y)[1] - 6), f"{y:.3g}", fill="black")
    draw.text((left, bottom + 4), f"{x_range[0]:.3g}", fill="black")
    draw.text((right - 28, bottom + 4), f"{x_range[1]:.3g}", fill="black")
    name_at = right
    for name, colour, points in series:
        spots = [place(x, y) for x, y in points]
        if len(spots) > 1:
            draw.line(spots, fill=colour, width=2)
        for x, y in spots:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        name_at -= draw.textlength(name) + 16
        draw.text((name_at, 8), name, fill=colour)
    return picture


def above_each_other(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width in one column."""
    column = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        column.paste(picture, (0, top))
        top += picture.height
    return column
