"""Readers of pictures that generators drew, grouped by their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .sample import PARTS, Sample
from .tables import existing, number, read_csv, read_mat, read_xlsx


def agiqa_3k(root: Path) -> Iterator[Sample]:
    """AGIQA-3K: `data.csv`, pictures in `images/` or `file/` (else beside the list); quality, not alignment."""
    images = existing(root, "images", "file", ".")
    for row in read_csv(existing(root, "data.csv"), ["name", "prompt", "mos_quality", "std_quality"]):
        mos, std = (number(row[column], row["name"]) for column in ("mos_quality", "std_quality"))
        yield Sample(images / row["name"], mos, std, group=row["prompt"])


def agiqa_1k(root: Path) -> Iterator[Sample]:
    """AGIQA-1K: `AIGC_MOS_Zscore.xlsx`, pictures in `images/` or `file/` (else beside the list)."""
    images = existing(root, "images", "file", ".")
    for row in read_xlsx(existing(root, "AIGC_MOS_Zscore.xlsx"), ["Image", "Prompt", "MOS"]):
        name = str(row["Image"])
        yield Sample(images / name, number(row["MOS"], name), group=str(row["Prompt"]))


def aigiqa_20k(root: Path) -> Iterator[Sample]:
    """AIGIQA-20K: lists `info_train.csv`, `info_val.csv`, `info_test.csv` (or one `info.csv`), pictures beside them.

    A list has columns name, mos and, if it likes, prompt. Pictures are in `train/`, `val/`, `test/`, in `all/`, or
    beside the lists.
    """
    lists = {part: root / f"info_{part}.csv" for part in ("train", "val", "test")}
    tables = {part: path for part, path in lists.items() if path.is_file()}
    for part, path in (tables or {None: existing(root, "info.csv", *(path.name for path in lists.values()))}).items():
        images = existing(root, *([part] if part else []), "all", ".")
        for row in read_csv(path, ["name", "mos"]):
            name = row["name"]
            yield Sample(images / name, number(row["mos"], name), group=row.get("prompt") or "", part=PARTS.get(part))


def aigciqa_2023(root: Path) -> Iterator[Sample]:
    """AIGCIQA2023: `Image/allimg/0.png`, ..., `DATA/MOS/mosz1.mat` (quality), `DATA/STD/SD1.mat` where it is there.

    The pictures are those of six generators one after the other, four of each of a hundred prompts.
    """
    images = existing(root, "Image/allimg", "allimg")
    scores = read_mat(existing(root, "DATA/MOS/mosz1.mat"), "MOSz").tolist()
    spread = root / "DATA/STD/SD1.mat"
    stds = read_mat(spread, "SD").tolist() if spread.is_file() else [None] * len(scores)
    for n, (mos, std) in enumerate(zip(scores, stds, strict=True)):
        yield Sample(images / f"{n}.png", mos, std, group=f"prompt {n % 400 // 4}")
