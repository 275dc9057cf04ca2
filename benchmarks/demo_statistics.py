"""From the judges' numbers to the tables: what a method changed, in the judge's own unguided spread."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tables import bootstrap, table

HEAD = ("", "wins, lower half", "mean change", "95 % interval", "lower half", "upper half")


def compare(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """What a method changed in one judge's scores of the same seeds.

    Args:
        before: (N,) unguided.
        after: (N,) the same seeds by the method.

    Returns:
        `wins_lower`: share of the half that is lower in `before` whose score rises. Means of the change, over all,
        the lower and the upper half, in standard deviations of `before`, with a bootstrap 95 % interval of the first.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    order = np.argsort(before, kind="stable")
    lower, upper = order[: len(order) // 2], order[len(order) // 2 :]
    change = (after - before) / before.std(ddof=1)
    low, high = bootstrap(change)
    return {
        "wins_lower": float((change[lower] > 0).mean()),
        "mean": float(change.mean()),
        "low": low,
        "high": high,
        "lower": float(change[lower].mean()),
        "upper": float(change[upper].mean()),
    }


def comparison_row(name: str, result: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{result['wins_lower']:.0%}",
        f"{result['mean']:+.2f}",
        f"{result['low']:+.2f} to {result['high']:+.2f}",
        f"{result['lower']:+.2f}",
        f"{result['upper']:+.2f}",
    ]


def comparison_table(judge: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """One judge's table; `results` by method."""
    return table([judge, *HEAD[1:]], [comparison_row(method, result) for method, result in results.items()])


def within(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Whether each value is inside the limits."""
    values = np.asarray(values, float)
    return (values >= limits[0]) & (values <= limits[1])


def inside(values: np.ndarray, limits: tuple[float, float]) -> float:
    """Share of values inside the limits."""
    return float(within(values, limits).mean())


def artefact_table(measured: Mapping[str, Mapping[str, np.ndarray]], limits: Mapping[str, tuple[float, float]]) -> str:
    """Methods by artefact measure: share of pictures inside the clean range, the median, and how many have left it.

    A picture has left the range if its twin of the first method is inside and it is not.
    """
    rows = [["clean photographs", *(f"95 % ({low:.2f} to {high:.2f})" for low, high in limits.values())]]
    first = next(iter(measured.values()))
    for method, values in measured.items():
        cells = []
        for name, limit in limits.items():
            left = int((within(first[name], limit) & ~within(values[name], limit)).sum())
            note = "" if values is first else f", {left} left"
            cells.append(f"{inside(values[name], limit):.0%} ({np.median(values[name]):.2f}){note}")
        rows.append([method, *cells])
    return table(["inside the range (median), left it", *limits], rows)
