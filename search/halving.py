"""When a search looks at its candidates, and how many of them go on. Plain numbers, without diffusers or ComfyUI."""

import math
from collections.abc import Sequence

HALVING = (0.4, 0.7)
"""Shares of the steps after which half of the candidates are dropped by default."""


def check_shares(name: str, shares: Sequence[float]) -> tuple[float, ...]:
    """Shares of the steps of a run, as a tuple.

    Raises:
        ValueError: they are not between 0 and 1, or do not rise; the message begins with `name`.
    """
    shares = tuple(shares)
    if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"{name} is {shares}; expected shares of the steps that rise, each between 0 and 1.")
    return shares


def position_of(share: float, total: int) -> int:
    """The evaluation, from 0, with which `share` (0 to 1) of `total` evaluations, but at least one, have been made."""
    return max(round(share * total), 1) - 1


def survivors(count: int, keep: int, times: int) -> list[int]:
    """How many candidates there are at first and after each halving: half, rounded up, but no fewer than `keep`."""
    numbers = [count]
    for _ in range(times):
        numbers.append(min(numbers[-1], max(math.ceil(numbers[-1] / 2), keep)))
    return numbers
