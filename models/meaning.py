"""What a score means to people: a word, and its place among photographs that people have scored.

The words are the five grades of ITU-R BT.500 (ITU-T P.910 has the same). A score is fitted to MOS / 100, so each grade
is a fifth of the range. The place is counted among the scores that the same weights give 138 photographs of LIVE In the
Wild, taken with all kinds of cameras, which were held out of the training; benchmarks/percentiles.py writes the table.
"""

from __future__ import annotations

import bisect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "assets" / "percentiles.json"
WORDS = ("bad", "poor", "fair", "good", "excellent")


@dataclass(frozen=True)
class Meaning:
    """A score in words."""

    word: str
    """One of `WORDS`."""
    percentile: float
    """How many of 100 human-scored photographs get a lower score, 0 to 100."""


@cache
def _quantiles() -> dict[str, list[float]]:
    """Model -> scores (101,) of human-scored photographs: the least, those at each percent, the greatest."""
    return json.loads(TABLE.read_text("utf-8"))


def meaning(name: str, weights: str, score: float) -> Meaning | None:
    """The meaning of a score, or None where nobody has compared the model with people.

    Args:
        name: the model, as `create_model` names it.
        weights: as `create_model` takes it; only "default" has a meaning.
        score: in [0, 1].
    """
    known = _quantiles().get(name) if weights == "default" else None
    if known is None:
        return None
    return Meaning(word(score), percentile(known, score))


def word(score: float) -> str:
    """The grade of a score in [0, 1]: up to 0.2 bad, 0.4 poor, 0.6 fair, 0.8 good, above excellent."""
    return WORDS[min(int(score * len(WORDS)), len(WORDS) - 1)]


def percentile(quantiles: list[float], score: float) -> float:
    """Place of a score among rising quantiles (101,), interpolated, 0 to 100."""
    place = bisect.bisect_right(quantiles, score)
    if place in (0, len(quantiles)):
        return 100.0 * (place > 0)
    low, high = quantiles[place - 1], quantiles[place]
    return place - 1 + (score - low) / (high - low)


def digits(score: float) -> str:
    """A score in four decimals, or where these would be zeros in three digits: weak pictures differ too."""
    return f"{score:.4f}" if score >= 0.001 or score == 0 else f"{score:.2e}"
