"""The adjectives that BPCLIP compares pictures with: adjectives.csv, 20 antonym pairs in six dimensions.

The paper uses 40 adjectives in six dimensions and prints five of them (clear, blurry, sharp, soft, stable). The other
words, the names of the dimensions and the pairing are ours.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WeightsError
from .weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor

Pairs = tuple[tuple[str, str, str], ...]
"""(dimension, positive adjective, negative adjective) of each pair."""

TABLE = Path(__file__).with_name("adjectives.csv")
FEATURES = Path(__file__).parent / "assets" / "adjectives.safetensors"
ENCODER = "all-MiniLM-L6-v2"
"""The sentence encoder behind `FEATURES`; `recipes/adjective_features.py` has computed them."""


def read_pairs(path: Path = TABLE) -> Pairs:
    """Read a table with the columns dimension, positive, negative.

    Raises:
        ValueError: a column is missing, a cell is empty, or an adjective comes twice.
    """
    columns = ("dimension", "positive", "negative")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise ValueError(f"{path} is no table of adjectives; expected the columns {','.join(columns)}, all filled.")
    pairs = tuple((row["dimension"], row["positive"], row["negative"]) for row in rows)
    words = adjectives(pairs)
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise ValueError(f"{path} has the adjective {twice!r} twice; expected each once.")
    return pairs


def adjectives(pairs: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """The words in order, positive and negative in turn: 40 of them for the table that comes with the package."""
    return tuple(word for _, positive, negative in pairs for word in (positive, negative))


def bundled_features(pairs: Sequence[tuple[str, str, str]]) -> Tensor:
    """Features (2 P, 384) of the adjectives of some pairs by all-MiniLM-L6-v2, which come with the package.

    Raises:
        WeightsError: a word is not among those that were encoded.
    """
    state, metadata = read_weights(FEATURES)
    known = {word: row for row, word in enumerate(json.loads(metadata["words"]))}
    missing = [word for word in adjectives(pairs) if word not in known]
    if missing:
        raise WeightsError(
            f"{FEATURES.name} has no adjective {missing[0]!r}; expected words of {TABLE.name}, or a CLIP checkpoint "
            "as text."
        )
    return state["features"][[known[word] for word in adjectives(pairs)]].float()
