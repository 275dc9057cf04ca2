"""What the user of a command can mend is said in one sentence, without a traceback or a page of usage."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..models.weights import WeightsError

FOR_PEOPLE = (ValueError, OSError, ImportError, WeightsError)
"""Errors whose message alone says what to do; the traceback of any other is wanted."""


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


@contextmanager
def one_sentence(expected: tuple[type[Exception], ...] = FOR_PEOPLE) -> Iterator[None]:
    """Turn the expected errors inside into an exit with one sentence; IQGUIDE_DEBUG=1 leaves them as they are."""
    try:
        yield
    except expected as error:
        if os.environ.get("IQGUIDE_DEBUG"):
            raise
        raise SystemExit(f"iqguide: error: {one_line(error)}") from error


def make_folder(path: str | Path) -> Path:
    """Make a folder for results where it is missing, and find out before the work whether it can be written to.

    Raises:
        OSError: it cannot be made, or be written to; the message names the way out.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {folder} ({error.strerror}); choose another one."
        raise OSError(error.errno, message) from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, f"cannot write to the folder {folder}; choose another one.")
    return folder


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the number that the system gives it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__
