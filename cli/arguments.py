"""What the values on the command line may be: types for argparse."""

from __future__ import annotations

import argparse
import math

SEEDS = 2**63
"""Seeds are below this: what torch takes."""
MOST = 10**6
"""Seeds in one range."""


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = counting(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected at least 1")
    return value


def counting(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least 0")
    return int(text)


def seed_list(text: str) -> list[int]:
    """`7`, `0:64` (64 left out), `1,5,9` or a mixture -> the seeds, each once, in order."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, colon, end = part.partition(":")
        start = counting(first)
        numbers = range(start, counting(end) if colon else start + 1)
        if not numbers:
            raise argparse.ArgumentTypeError(f"{part!r} holds no seed; expected FIRST:END as in 0:64")
        if numbers.stop > SEEDS or numbers.stop - numbers.start > MOST:
            raise argparse.ArgumentTypeError(f"got {part}; expected seeds below 2^63, and at most {MOST} of them")
        seeds.update(dict.fromkeys(numbers))
    return list(seeds)


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a finite number")
    return value


def strength(text: str) -> float | str:
    """A guidance strength, or the word `default`."""
    if text == "default":
        return text
    try:
        return finite(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected a number: put PROMPT before --guide, or write --guide default"
        ) from None


def shares(text: str) -> list[float]:
    """`0.4,0.7` -> numbers; whether they rise between 0 and 1 is for `best_of_n` to say."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected SHARES as 0.4,0.7: put PROMPT first") from None


def dimensions(text: str) -> tuple[int, int]:
    """`512` or `768x512` -> (width, height) in pixels."""
    width, _, height = text.lower().partition("x")
    return positive(width), positive(height or width)
