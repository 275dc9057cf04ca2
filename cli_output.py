"""What the commands have in common: exit statuses, progress and messages on stderr."""

from __future__ import annotations

import sys
from typing import Any

OK, FAILED, INTERRUPTED = 0, 2, 130
"""Exit statuses."""


def one_line(error: BaseException) -> str:
    """What an error says, as one line; without the number that the system gives it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def progress(total: int, what: str, unit: str = "image", quiet: bool = False) -> Any:
    """A tqdm bar on stderr, unless quiet: for work of more than a second; off a terminal a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10
    look = {"file": sys.stderr, "delay": 1, "mininterval": interval, "dynamic_ncols": True, "disable": quiet}
    return tqdm(total=total, desc=what, unit=unit, **look)


def say(text: str) -> None:
    """A message for people: on stderr, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
