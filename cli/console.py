"""What the commands have in common: exit statuses, progress and messages on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

OK, FAILED, INTERRUPTED = 0, 2, 130
"""Exit statuses."""


class _Stderr:
    """stderr, whose loss (closed, or on a full disk) must not cost what goes to stdout."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        return 2


STDERR = _Stderr()


def progress(total: int, what: str, unit: str = "image", quiet: bool = False) -> Any:
    """A tqdm bar on stderr, unless quiet: for work of more than a second; off a terminal a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.1 if STDERR.isatty() else 10
    look = {"file": STDERR, "delay": 1, "mininterval": interval, "dynamic_ncols": True, "disable": quiet}
    return tqdm(total=total, desc=what, unit=unit, **look)


def say(text: str) -> None:
    """A message for people: on stderr, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=STDERR)
