"""Readers of photographs as people take them, in the layouts of their publishers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from .sample import PARTS, Sample
from .tables import Finder, existing, number, read_csv, read_mat, read_rows, read_xlsx

logger = logging.getLogger(__name__)


def live_challenge(root: Path) -> Iterator[Sample]:
    """LIVE In the Wild: `Images/`, `Data/All*_release.mat`; the first seven rows are training pictures, left out."""
    data, images = existing(root, "Data"), Finder(existing(root, "Images"))
    columns = [
        read_mat(data / f"{name}_release.mat", f"{name}_release") for name in ("AllImages", "AllMOS", "AllStdDev")
    ]
    for name, mos, std in list(zip(*columns, strict=True))[7:]:
        yield Sample(images(name), float(mos), float(std))


def koniq(root: Path, raw: bool = False) -> Iterator[Sample]:
    """KonIQ-10k: `512x384/` (else `1024x768/`), scores and, in one of the two CSV files, the official sets.

    The score is the z-scored MOS, 0 to 100, as the official sets have it and as papers compare on; with `raw` the mean
    of the ratings, 1 to 5.
    """
    sizes = [name for name in ("512x384", "1024x768") if (root / name).is_dir()]
    images = existing(root, "512x384", "1024x768")
    if len(sizes) > 1:
        logger.warning("%s has two sizes; %s is read, at which papers train and test.", root, images.name)
    scores, sets = (root / f"koniq10k_{name}.csv" for name in ("scores_and_distributions", "distributions_sets"))
    existing(root, scores.name, sets.name)
    rows = read_csv(scores, ["image_name", "MOS", "SD"]) if scores.is_file() else []
    official = read_csv(sets, ["image_name", "MOS"]) if sets.is_file() else []
    of_scores, of_sets = ({row["image_name"]: row for row in table} for table in (rows, official))
    for name in (row["image_name"] for row in rows or official):
        row, other = of_scores.get(name, {}), of_sets.get(name, {})
        mos = row.get("MOS") if raw else other.get("MOS") or row.get("MOS_zscore")
        if mos is None:
            kind, table = ("raw", scores.name) if raw else ("z-scored", sets.name)
            raise ValueError(f"{root} has no {kind} MOS of {name}; expected it in {table}.")
        std = row.get("SD") if raw else other.get("SD")
        part = PARTS.get(other.get("set") or row.get("set"))
        yield Sample(images / name, number(mos, name), number(std, name) if std else None, part=part)


def koniq_raw(root: Path) -> Iterator[Sample]:
    """KonIQ-10k with the mean of the ratings, 1 to 5, in place of the z-scored MOS; see `koniq`."""
    return koniq(root, raw=True)


def spaq(root: Path) -> Iterator[Sample]:
    """SPAQ: `TestImage/`, `Annotations/MOS and Image attribute scores.xlsx`."""
    name = "MOS and Image attribute scores.xlsx"
    images = existing(root, "TestImage")
    for row in read_xlsx(existing(root, f"Annotations/{name}", name), ["Image name", "MOS"]):
        yield Sample(images / str(row["Image name"]), number(row["MOS"], row["Image name"]))


def flive(root: Path) -> Iterator[Sample]:
    """FLIVE (PaQ-2-PiQ), whole pictures: `labels_image.csv`, pictures in `database/` (else beside the list).

    `root` is the repository FLIVE_Database, its folder `database`, or a folder with both. With the publisher's list of
    pictures above 640 px (`labels>640.csv` or `labels640.csv`), these are the official test part.
    """
    table = existing(root, "labels_image.csv", "database/labels_image.csv")
    images = existing(root, "database", ".")
    folders = (root, table.parent)
    larger = [
        path for folder in folders for name in ("labels>640.csv", "labels640.csv") if (path := folder / name).is_file()
    ]
    test = {row["name_image"] for path in larger for row in read_csv(path, ["name_image"])}
    for row in read_csv(table, ["name", "mos"]):
        part = ("test" if row["name"] in test else "train") if larger else None
        yield Sample(images / row["name"], number(row["mos"], row["name"]), part=part)


def bid(root: Path) -> Iterator[Sample]:
    """BID: `DatabaseGrades.xlsx` with a number and a grade from 0 to 5 in each row, `DatabaseImage0001.JPG`, ..."""
    images = Finder(existing(root, "ImageDatabase", "."))
    for first, grade, *_ in read_rows(existing(root, "DatabaseGrades.xlsx")):
        if isinstance(first, int | float):
            yield Sample(images(f"DatabaseImage{int(first):04}.JPG"), number(grade, f"picture {first:g}"))


def uhd_iqa(root: Path) -> Iterator[Sample]:
    """UHD-IQA: `uhd-iqa-metadata.csv`, pictures in `training/`, `validation/` and `test/`; official sets."""
    for row in read_csv(existing(root, "uhd-iqa-metadata.csv"), ["image_name", "quality_mos", "set"]):
        name = row["image_name"]
        if row["set"] not in PARTS:
            raise ValueError(f"the set of {name} is {row['set']!r}; expected one of {', '.join(PARTS)}.")
        yield Sample(root / row["set"] / name, number(row["quality_mos"], name), part=PARTS[row["set"]])
