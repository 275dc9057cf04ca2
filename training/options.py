"""Command-line options of the training modules: one sentence for what is wrong, numbers held to their ranges."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong and nothing else: the flags are many, and `--help` lists them."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"iqguide: error: {' '.join(message.split())}\n")

    def parse_within(self, ranges: dict[str, tuple[float, float]], arguments: list[str] | None) -> argparse.Namespace:
        """The settings on the command line; exit where a number is outside its range, see `check_ranges`."""
        found = self.parse_args(arguments)
        try:
            check_ranges(found, ranges)
        except ValueError as error:
            self.error(str(error))
        return found


SEEDS = (0, 2**32 - 1)
"""The range of a seed: numpy takes no larger one."""


def check_ranges(settings: object, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError where an attribute is no number from the lowest to the highest one of its name."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high or math.isinf(value):
            expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
            expected += ", a finite number" if math.isinf(value) else ""
            raise ValueError(f"{name} is {value}; expected {expected}.")
