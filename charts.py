"""Two plain charts, drawn with Pillow: bars with names, and a scatter plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

INK, GRID, BAR, DOT, CURVE = (30, 30, 30), (215, 215, 215), (70, 115, 175), (40, 90, 160), (200, 60, 40)
FONT_SIZE, LINE = 14, 20


def bars(groups: Mapping[str, Mapping[str, float]], title: str, width: int = 640) -> Image.Image:
    """Horizontal bars, one for each named value, under the name of its group; each group has a scale of its own.

    Bars start at zero: to the right for positive values, to the left for negative ones.

    Args:
        groups: name of a group -> name of a value -> value.
        title: first line.
        width: of the picture in px.

    Returns:
        An RGB picture, as high as it needs to be.
    """
    canvas = Image.new("RGB", (width, LINE * (2 + sum(len(values) + 2 for values in groups.values()))), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    draw.text((10, 8), title, INK, font)
    left = 20 + max((draw.textlength(name, font) for values in groups.values() for name in values), default=0)
    right, y = width - 80, 2 * LINE
    for group, values in groups.items():
        draw.text((10, y), group, INK, font)
        top = y = y + LINE
        low, high = min(0.0, *values.values()), max(0.0, *values.values())
        scale = (right - left) / (high - low or 1)
        zero = left - low * scale
        for name, value in values.items():
            draw.text((10, y), name, INK, font)
            start, end = sorted((zero, zero + value * scale))
            draw.rectangle((start, y + 3, end, y + LINE - 4), BAR)
            draw.text((right + 10, y), f"{value:.3f}", INK, font)
            y += LINE
        draw.line((zero, top, zero, y), INK)
        y += LINE
    return canvas


def scatter(
    x: Sequence[float],
    y: Sequence[float],
    labels: tuple[str, str],
    title: str,
    curve: tuple[Sequence[float], Sequence[float]] | None = None,
    size: int = 600,
) -> Image.Image:
    """Points in a square, with an optional curve.

    Args:
        x: of the points; finite.
        y: of the points; finite.
        labels: names of the two axes.
        title: first line.
        curve: x and y of a line that is drawn over the points.
        size: side of the picture in px.

    Returns:
        An RGB picture.
    """
    canvas = Image.new("RGB", (size, size), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = 70, 40, size - 20, size - 60
    spans = [(min(values), max(values)) for values in (x, y)]

    def place(a: float, b: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = spans
        return left + (a - x0) / (x1 - x0 or 1) * (right - left), bottom - (b - y0) / (y1 - y0 or 1) * (bottom - top)

    draw.text((left, 12), title, INK, font)
    draw.rectangle((left - 6, top - 6, right + 6, bottom + 6), outline=GRID)
    for end in (0, 1):
        across, up = spans[0][end], spans[1][end]
        draw.text((place(across, 0)[0], bottom + 10), f"{across:.3g}", INK, font, anchor="mt")
        draw.text((left - 12, place(0, up)[1]), f"{up:.3g}", INK, font, anchor="rm")
    draw.text(((left + right) / 2, size - 22), labels[0], INK, font, anchor="mt")
    draw.text((8, top - 28), labels[1], INK, font)
    for point in zip(x, y, strict=True):
        a, b = place(*point)
        draw.ellipse((a - 2, b - 2, a + 2, b + 2), DOT)
    if curve is not None:
        draw.line([place(*point) for point in zip(*curve, strict=True)], CURVE, 2)
    return canvas
