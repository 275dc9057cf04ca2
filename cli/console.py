"""What the commands have in common: exit statuses, progress and messages on stderr."""

from __future__ import annotations

import sys
from typing import Any

OK, FAILED, INTERRUPTED = 0, 2, 130
"""Exit statuses."""


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
