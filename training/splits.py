"""How data sets are split: by their publisher, by seed and group, or as others have split them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from .sample import Sample

SPLITS, HELD_OUT = 10, 0.2
PYIQA = {"live-challenge": 1162, "spaq": 11125}
"""Data sets, and their sizes, whose seeded splits in IQA-PyTorch follow from the seed alone."""


def official_split(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training part (validation included) and of the test part that the publisher has made.

    Raises:
        ValueError: there is none.
    """
    parts = np.array([sample.part or "" for sample in samples])
    if not (parts == "test").any():
        raise ValueError("this data set has no official test part; use ten seeded splits or all of it.")
    return np.flatnonzero((parts == "train") | (parts == "validation")), np.flatnonzero(parts == "test")


def seeded_splits(
    samples: list[Sample], count: int = SPLITS, held_out: float = HELD_OUT
) -> list[tuple[np.ndarray, ...]]:
    """Training and test indices of `count` splits, seeded 0, 1, ...; pictures of one group stay on one side.

    Args:
        samples: of at least two groups.
        count: number of splits.
        held_out: share of the groups that are tested on.

    Raises:
        ValueError: there is one group only.
    """
    names, group = np.unique([sample.group or str(sample.image) for sample in samples], return_inverse=True)
    if len(names) < 2:
        raise ValueError("all pictures have one reference; expected two or more, so that some can be held out.")
    size = min(max(1, round(held_out * len(names))), len(names) - 1)
    splits = []
    for seed in range(count):
        held = np.random.default_rng(seed).permutation(len(names))[:size]
        splits.append((np.flatnonzero(~np.isin(group, held)), np.flatnonzero(np.isin(group, held))))
    return splits


def named_split(samples: list[Sample], name: str, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices of the split that a setting names.

    Args:
        samples: the whole data set, in the order of its list.
        name: "" for the official test part, else the first seeded split; a number for that seeded split; "pyiqa" or
            "pyiqa-N" for split N, 1 to 10, of IQA-PyTorch; or the path of a json file, see `split_of_file`.
        dataset: its name.

    Raises:
        ValueError: unknown name, a split that the data set does not have, or a file that fits other pictures.
        FileNotFoundError: there is no such file.
    """
    if not name:
        official = any(sample.part == "test" for sample in samples)
        return official_split(samples) if official else seeded_splits(samples, 1)[0]
    if name.isdecimal():
        return seeded_splits(samples, int(name) + 1)[int(name)]
    if name.startswith("pyiqa"):
        return pyiqa_split(dataset, len(samples), name)
    if Path(name).suffix == ".json":
        return split_of_file(samples, Path(name))
    raise ValueError(f"split is {name!r}; expected a number, pyiqa, pyiqa-N, the path of a json file, or nothing.")


def pyiqa_split(dataset: str, count: int, name: str = "pyiqa") -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices of the 80/20 splits with seed 123 that IQA-PyTorch trains and tests on.

    They are the first four fifths and the rest of a list that Python's own generator shuffles again for every split.
    Those of sets with references cannot be computed: they begin with the order of a Python set, which differs between
    runs; convert the published file to json.

    Raises:
        ValueError: another data set, an incomplete one, or a number that is not from 1 to 10.
    """
    if PYIQA.get(dataset) != count:
        sizes = ", ".join(f"{known} with {size} pictures" for known, size in PYIQA.items())
        raise ValueError(
            f"{dataset} with {count} pictures has no split of IQA-PyTorch that can be computed; expected {sizes}: for "
            "others give the path of a json file with train and test lists."
        )
    number = name.removeprefix("pyiqa").removeprefix("-") or "1"
    if not number.isdecimal() or not 1 <= int(number) <= SPLITS:
        raise ValueError(f"split is {name!r}; expected pyiqa, or pyiqa-1 to pyiqa-{SPLITS}.")
    order, generator = list(range(count)), random.Random(123)
    for _ in range(int(number)):
        generator.shuffle(order)
    train = round((1 - HELD_OUT) * count)
    return np.sort(order[:train]), np.sort(order[train:])


def split_of_file(samples: list[Sample], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices that a json file lists.

    Args:
        samples: the whole data set.
        path: a list of entries with an `image`, as the files of DeQA-Score and Q-Insight are, which is the test part,
            all others being for training; or {"train": [...], "test": [...]} with such entries, names or indices, where
            pictures that are in neither are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such json, or names pictures that the data set does not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no split {path}.")
    try:
        lists = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); expected json.") from error
    places = {sample.image.name: n for n, sample in enumerate(samples)}
    lists = {"test": lists} if isinstance(lists, list) else lists
    if not isinstance(lists, dict) or not lists.get("test"):
        raise ValueError(
            f"{path} has no list of test pictures; expected entries with an image, or train and test lists."
        )
    parts = {part: _places(lists.get(part, []), places, len(samples), path) for part in ("train", "test")}
    rest = np.setdiff1d(np.arange(len(samples)), parts["test"])
    train = parts["train"] if "train" in lists else rest
    if np.intersect1d(train, parts["test"]).size:
        raise ValueError(f"{path} has pictures in both parts; expected each in one.")
    return train, parts["test"]


def _places(entries: list, places: dict[str, int], count: int, path: Path) -> np.ndarray:
    names = [entry["image"] if isinstance(entry, dict) and "image" in entry else entry for entry in entries]
    chosen = []
    for name in names:
        place = places.get(Path(name).name) if isinstance(name, str) else name
        if type(place) is not int or not 0 <= place < count:
            raise ValueError(
                f"{path} names {name!r}, which the data set does not have; give the split of this data set."
            )
        chosen.append(place)
    return np.unique(chosen).astype(int)
