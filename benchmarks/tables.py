"""Small helpers of every benchmark: Markdown tables between markers, bootstrap intervals, the machine line."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

README = Path(__file__).parent / "README.md"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in a file; doing it twice changes nothing more.

    Raises:
        ValueError: if the file does not have the two markers once each, in this order.
    """
    page = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(
            f"{path.name} needs the markers {begin} and {end} once each; add them where the table belongs."
        )
    before, rest = page.split(begin)
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}")


def bootstrap(values: Sequence[float] | np.ndarray, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    values = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), (2.5, 97.5))
    return float(low), float(high)


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
