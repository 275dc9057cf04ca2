"""The lines that `iqguide score` and `iqguide rank` print: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import argparse
import codecs
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..models.meaning import digits, meaning
from ..spreadsheets import safe_row

NAMES = "iqguide-names"
"""Handler of what the encoding of the output lacks: see `_as_bytes_or_escaped`."""


@dataclass
class Row:
    """One line of the output."""

    path: str
    score: float | None = None
    error: str | None = None
    percentile: float | None = None
    """How many of 100 human-scored photographs get a lower score; of bundled weights."""
    word: str | None = None
    """The grade of ITU-R BT.500 that the score stands for; of bundled weights."""
    parts: dict[str, dict[str, float]] | None = None
    """What the score is made of, where that was asked for."""

    @property
    def done(self) -> bool:
        """Whether there is something to print."""
        return self.score is not None or self.error is not None


def prepare_output() -> None:
    """Make stdout take any name of a file, before the work begins.

    Raises:
        ValueError: stdout is closed.
    """
    if sys.stdout is None:
        raise ValueError("the standard output is closed, so nothing could be printed; send it to a file.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(NAMES, _as_bytes_or_escaped)
        sys.stdout.reconfigure(errors=NAMES)


def print_rows(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print rows as JSON, as CSV or as a table, with what the scores mean where that is known."""
    for row in rows:
        if row.score is not None and (known := meaning(options.model, options.weights, row.score)):
            row.percentile, row.word = round(known.percentile, 1), known.word
    if options.json:
        entries = [asdict(row) for row in rows]
        for row in entries:
            for name in ("percentile", "word", "parts"):
                if row[name] is None:
                    del row[name]
        print(json.dumps(entries, indent=1))
    elif getattr(options, "csv", False):
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("path", "score", "error", "percentile", "word"))
        writer.writerows(safe_row((row.path, row.score, row.error, row.percentile, row.word)) for row in rows)
    else:
        _print_table(rows)


def _print_table(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.error is None:
            place = "" if row.word is None else f"{row.percentile:3.0f} %  {row.word:9}  "
            print(f"{digits(row.score)}  {place}{row.path}")
            for group, values in (row.parts or {}).items():
                print(f"  {group}")
                for name, value in values.items():
                    print(f"    {value:7.3f}  {name}")


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a name that are no text go out as they are; characters that the encoding lacks as their numbers."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
