"""Which pictures weights have learnt from, written into their file, so that a later run can choose by others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ..errors import WeightsError, written_whole
from ..models.cache import find_weights
from ..models.catalog import get_spec
from ..models.weights import read_weights, sha256_of

KEY = "training"
"""Of the metadata: JSON with `seen`, the digests, or null where a former training is not known."""


def short_digest(path: Path) -> str:
    """The first 8 hexadecimal digits of a file's SHA-256."""
    return sha256_of(path)[:8]


def read_seen(model: str, weights: str | Path) -> set[str] | None:
    """Digests of the pictures that weights have learnt from; None where the file does not say.

    Args:
        model: name of the model.
        weights: "default" or the path of a file, as `create_model` takes it.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = find_weights(get_spec(model), str(weights))
    if path.suffix != ".safetensors":
        return None
    try:
        seen = json.loads(read_weights(path)[1].get(KEY, "{}")).get("seen")
        return None if seen is None else set(seen)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} has a record of its training that cannot be read ({error}); get it again."
        ) from error


def write_seen(path: Path, pictures: Iterable[Path], former: set[str] | None = frozenset()) -> None:
    """Add to a file of weights which pictures they have learnt from.

    Args:
        path: a .safetensors file, replaced whole.
        pictures: files that were learnt from.
        former: digests that the initial weights had seen; None if nobody knows, which then holds for these too.
    """
    seen = None
    if former is not None:
        paths = tqdm(list(pictures), desc="digests", unit="picture", delay=1)
        seen = sorted({*former, *(short_digest(picture) for picture in paths)})
    _add_metadata(path, {KEY: json.dumps({"seen": seen})})


def _add_metadata(path: Path, entries: dict[str, str]) -> None:
    """Rewrite the header of a safetensors file, in an order that is always the same, which the library's is not.

    The layout: 8 bytes with the length of the header, the header as JSON, the tensors.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = file.read()
    header["__metadata__"] = dict(sorted((header.get("__metadata__", {}) | entries).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with written_whole(path) as unfinished:
        unfinished.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
