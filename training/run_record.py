"""What a run leaves in its folder: one run at a time, nothing of a former one replaced unasked, and a record of it."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import atomic_write, claimed, make_folder
from .run_settings import Started
from .splits import SPLITS

RECORD = "run.json"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder while this one is inside; see `claimed`.

    Raises:
        OSError: the folder cannot be made or be written to, or another run is inside.
    """
    make_folder(folder)
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes; it claims the folder for all
    with claimed(folder) if first else nullcontext():
        yield


def refuse_used(folder: Path, names: Sequence[str], ways_out: str) -> None:
    """Refuse a folder that holds results of a former run.

    Args:
        folder: where this one wants to write.
        names: files and patterns of files that a run writes.
        ways_out: what to do, such as a flag.

    Raises:
        ValueError: one of them is there.
    """
    former = sorted(path.name for name in names for path in folder.glob(name))
    if former:
        raise ValueError(f"{folder} holds {', '.join(former)} of a former run; {ways_out}, or choose another --out.")


def write_record(path: Path, **entries: Any) -> None:
    """Write the settings and figures of a run, whole or not at all.

    Raises:
        OSError: with the path and the way out in its text.
    """
    atomic_write(path, f"{json.dumps(entries | {'torch': torch.__version__}, indent=2)}\n".encode())


def listed(figures: dict[str, float]) -> str:
    """Figures on one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def ten_splits(
    one: Callable[[int], dict[str, float]], record: Path, settings: dict[str, Any], started: Started
) -> dict[str, dict[str, float]]:
    """Ten runs, each on another seeded split, and a record with the mean and the standard deviation of their figures.

    Args:
        one: runs on the split of a number, or reads what such a run has left; returns the held-out figures.
        record: where the mean and the spread go.
        settings: of the runs.
        started: how they are started.

    Returns:
        `mean` and `std` by figure.

    Raises:
        ValueError: a former record is there and is not to be replaced.
    """
    if not (started.resume or started.overwrite):
        refuse_used(record.parent, (record.name,), "go on with --resume, replace it with --overwrite")
    figures = [one(number) for number in range(SPLITS)]
    names = [name for name, value in figures[0].items() if isinstance(value, float)]
    mean = {name: statistics.mean(each[name] for each in figures) for name in names}
    std = {name: statistics.stdev(each[name] for each in figures) for name in names}
    make_folder(record.parent)
    write_record(record, config=settings, mean=mean, std=std, splits=figures)
    tqdm.write(f"ten splits: {', '.join(f'{name} {mean[name]:.3f} +- {std[name]:.3f}' for name in names)}")
    return {"mean": mean, "std": std}
