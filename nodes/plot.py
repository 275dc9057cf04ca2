"""A line plot drawn with Pillow: matplotlib is not a part of ComfyUI. Knows no host."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

Series = tuple[str, tuple[int, int, int], Sequence[tuple[float, float]]]
"""Name, colour, points (x, y)."""

WIDTH, HEIGHT, MARGIN = 640, 240, 44
BLUE, ORANGE, GREY = (37, 99, 235), (217, 119, 6), (200, 200, 200)


def line_plot(title: str, series: Sequence[Series], x_range: tuple[float, float]) -> Image.Image:
    """Lines in one frame with a title, the ends of both axes and the names of the lines.

    Args:
        title: above the frame.
        series: the lines; x from left to right as in `x_range`.
        x_range: value at the left and at the right edge; may fall.

    Returns:
        An RGB picture of WIDTH x HEIGHT.
    """
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
