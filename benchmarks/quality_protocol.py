"""What the figures of quality_models.py are measured on, and how a fit becomes a record.

Human-scored photographs of live-challenge in seeded splits, a fifth held out, near-identical pictures on one side; and
the series of tid2013-6ref, which nothing is ever fitted to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_quality import flat, tid_paths, tid_rows, tid_steps

from iqguide.training.correlation import correlations, intervals
from iqguide.training.data import Photograph, held_out, scored_photographs
from iqguide.training.duplicates import alike_groups

Record = dict[str, Any]
DRAWS = 1000  # of the bootstrap
WHOLE = ", the file itself"  # the variant whose weights are all as they are in the file, on split 0


@dataclass(frozen=True)
class Pictures:
    """What is judged."""

    scored: list[Photograph]
    groups: np.ndarray
    """(N,), number of the group of near-identical pictures that each one is in."""
    tid: dict[str, Path]
    """Name -> file."""
    rows: list[dict[str, str]]
    """Of tid2013-6ref's list."""

    @property
    def opinions(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        return np.array([photograph.mos for photograph in self.scored]) / 100

    def held_out(self, split: int) -> np.ndarray:
        """(N,) bool; split 0 is the package's own, whose held-out part no part of a bundled model has seen."""
        return held_out(self.groups, split)


def pictures(data: Path) -> Pictures:
    scored = scored_photographs(data)
    folder = data / "tid2013-6ref"
    return Pictures(
        scored, alike_groups([photograph.path for photograph in scored]), tid_paths(folder), tid_rows(folder)
    )


def figures(known: Pictures, split: int, scores: np.ndarray, tid_scores: np.ndarray) -> Record:
    """How good a fit is.

    Args:
        known: what was judged.
        split: the number of the split.
        scores: (N,) of the held-out pictures, in their order.
        tid_scores: (M,) of the pictures in `known.tid`.

    Returns:
        `srcc`, `plcc`, `plcc_fitted`, `krcc`, `n`, their bootstrap `intervals`, and `falls`: the share of the steps at
        which the score falls, by distortion and of "all".
    """
    aside = known.held_out(split)
    record: Record = correlations(scores, known.opinions[aside])
    ends = intervals(scores, known.opinions[aside], [str(group) for group in known.groups[aside]], DRAWS)
    record["intervals"] = {name: list(interval) for name, interval in ends.items()}
    steps = tid_steps(known.rows, dict(zip(known.tid, tid_scores.tolist(), strict=True)))
    record["falls"] = {name: float(np.mean(flat(series))) for name, series in steps.items()}
    record["falls"]["all"] = float(np.mean([fell for series in steps.values() for fell in flat(series)]))
    return record


def digest(*things: object) -> str:
    """Eight characters that differ where the things do: files by content, all else by how it prints."""
    total = hashlib.sha256()
    for thing in things:
        total.update(thing.read_bytes() if isinstance(thing, Path) and thing.is_file() else repr(thing).encode())
    return total.hexdigest()[:8]


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, made once and kept in a file."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        torch.save(made, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


def split_keys(name: str, splits: int) -> list[Record]:
    """Of the file itself on split 0, and of a fit on each split; the seed is the split's number."""
    own = {"variant": name + WHOLE, "split": 0, "seed": 0}
    return [own, *({"variant": name, "split": number, "seed": number} for number in range(splits))]


def collect(path: Path, keys: Sequence[Record], measure: Callable[[Record], Record]) -> list[Record]:
    """The records of all keys; each is written when it is there, and not measured again when it is in the file.

    Args:
        path: JSON file of records.
        keys: what tells a record from the others, such as {"variant": ..., "split": ..., "seed": ...}.
        measure: key -> figures.
    """
    records: list[Record] = json.loads(path.read_text()) if path.is_file() else []
    for key in keys:
        if not any(key.items() <= record.items() for record in records):
            records.append(key | measure(key))
            path.write_text(json.dumps(records, indent=1) + "\n")
    return [record for key in keys for record in records if key.items() <= record.items()]
