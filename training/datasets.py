"""Data sets of pictures with human scores, read from their official layouts, and how they are split.

Every reader takes the folder as it was released (unpacked) and yields rows; `load_dataset` checks them and brings the
scores to [0, 1], higher is better, by the fixed scale of the study, so that the numbers mean the same for every part of
a set. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .tables import Finder, Locator, existing, number, read_csv, read_mat, read_text, read_xlsx

SPLITS, HELD_OUT = 10, 0.2
PARTS = {"training": "train", "train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Sample:
    """One picture and what people said of it."""

    image: Path
    """Its file."""
    mos: float
    """The score as published; some are worse the higher they are."""
    std: float | None = None
    """Standard deviation of the single ratings, as published."""
    reference: Path | None = None
    """The undistorted picture, where there is one."""
    group: str = ""
    """Pictures of one group stay on one side of a split: those of one reference, or of one prompt."""
    part: str | None = None
    """"train", "validation" or "test" where the publisher has split the set."""
    normalised_mos: float = math.nan
    """The score in [0, 1], higher is better."""


Scale = tuple[float, float]
"""The published scores of the worst and of the best quality; (1, 0) is a difference score from 0 to 1."""


def live_challenge(root: Path) -> Iterator[Sample]:
    """LIVE In the Wild: `Images/`, `Data/All*_release.mat`; the first seven rows are training pictures, left out."""
    data, images = existing(root, "Data"), Finder(existing(root, "Images"))
    columns = [
        read_mat(data / f"{name}_release.mat", f"{name}_release") for name in ("AllImages", "AllMOS", "AllStdDev")
    ]
    for name, mos, std in list(zip(*columns, strict=True))[7:]:
        yield Sample(images(name), float(mos), float(std))


def koniq(root: Path) -> Iterator[Sample]:
    """KonIQ-10k: `1024x768/` (else `512x384/`), scores and, in one of the two CSV files, the official sets."""
    images = existing(root, "1024x768", "512x384")
    tables = [root / f"koniq10k_{name}.csv" for name in ("scores_and_distributions", "distributions_sets")]
    table = existing(root, *(path.name for path in tables))
    parts = {}
    for path in filter(Path.is_file, tables):
        parts |= {row["image_name"]: PARTS.get(row["set"]) for row in read_csv(path, ["image_name"]) if "set" in row}
    for row in read_csv(table, ["image_name", "MOS", "SD"]):
        name = row["image_name"]
        std = number(row["SD"], name)
        yield Sample(images / name, number(row["MOS"], name), std, part=parts.get(name))


def spaq(root: Path) -> Iterator[Sample]:
    """SPAQ: `TestImage/`, `Annotations/MOS and Image attribute scores.xlsx`."""
    name = "MOS and Image attribute scores.xlsx"
    images = existing(root, "TestImage")
    for row in read_xlsx(existing(root, f"Annotations/{name}", name), ["Image name", "MOS"]):
        yield Sample(images / str(row["Image name"]), number(row["MOS"], row["Image name"]))


def flive(root: Path) -> Iterator[Sample]:
    """FLIVE (PaQ-2-PiQ), whole pictures: `labels_image.csv`, pictures in `database/` (else beside the list).

    With the publisher's list of pictures above 640 px (`labels>640.csv`), these are the official test part.
    """
    images = existing(root, "database", ".")
    larger = [path for path in (root / "labels>640.csv", root / "labels640.csv") if path.is_file()]
    test = {row["name_image"] for path in larger for row in read_csv(path, ["name_image"])}
    for row in read_csv(existing(root, "labels_image.csv"), ["name", "mos"]):
        part = ("test" if row["name"] in test else "train") if larger else None
        yield Sample(images / row["name"], number(row["mos"], row["name"]), part=part)


def kadid(root: Path) -> Iterator[Sample]:
    """KADID-10k: `images/`, `dmos.csv`; its "dmos" is higher for better pictures."""
    images = Finder(existing(root, "images"))
    for row in read_csv(existing(root, "dmos.csv"), ["dist_img", "ref_img", "dmos", "var"]):
        name = row["dist_img"]
        std = number(row["var"], name) ** 0.5
        yield Sample(images(name), number(row["dmos"], name), std, images(row["ref_img"]), row["ref_img"])


def tid2013(root: Path) -> Iterator[Sample]:
    """TID2013: `distorted_images/`, `reference_images/`, `mos_with_names.txt`; the case of the names varies."""
    images, references = Finder(existing(root, "distorted_images")), Finder(existing(root, "reference_images"))
    path = existing(root, "mos_with_names.txt")
    for place, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            words = line.split()
            if len(words) != 2:
                raise ValueError(f"line {place} of {path} has {len(words)} words; expected a score and a name.")
            mos, name = words
            source = name.split("_")[0].lower()
            yield Sample(images(name), number(mos, name), None, references(f"{source}.bmp"), source)


def csiq(root: Path) -> Iterator[Sample]:
    """CSIQ: `src_imgs/`, `dst_imgs/<type>/`, sheet `all_by_image` of `csiq.DMOS.xlsx`; lower is better."""
    folder = existing(root, "dst_imgs")
    images, references = Finder(folder, folder.rglob("*.png")), Finder(existing(root, "src_imgs"))
    tokens = {"noise": "AWGN", "jpeg 2000": "jpeg2000"}  # the others are named alike in the table and in the files
    columns = ["image", "dst_type", "dst_lev", "dmos_std", "dmos"]
    for row in read_xlsx(existing(root, "csiq.DMOS.xlsx"), columns, "all_by_image"):
        source = f"{row['image']:g}" if isinstance(row["image"], float) else str(row["image"])  # one is called 1600
        kind, level = str(row["dst_type"]), number(row["dst_lev"], f"{source} in csiq.DMOS.xlsx", "level")
        name = f"{source}.{tokens.get(kind, kind)}.{level:g}.png"
        mos, std = number(row["dmos"], name), number(row["dmos_std"], name)
        yield Sample(images(name), mos, std, references(f"{source}.png"), source)


def live(root: Path) -> Iterator[Sample]:
    """LIVE: five folders, `dmos_realigned.mat`, `refnames_all.mat`; lower is better; the originals are left out."""
    scores, stds, originals = (
        read_mat(existing(root, "dmos_realigned.mat"), name) for name in ("dmos_new", "dmos_std", "orgs")
    )
    sources = read_mat(existing(root, "refnames_all.mat"), "refnames_all")
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    names = [f"{folder}/img{i + 1}.bmp" for folder, count in counts.items() for i in range(count)]
    for name, mos, std, original, source in zip(names, scores, stds, originals, sources, strict=True):
        if not original:
            yield Sample(root / name, float(mos), float(std), root / "refimgs" / source, source)


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


def csv_table(path: Path) -> Iterator[Sample]:
    """One's own: columns image, mos and optionally std, reference, split; or a folder with such a `mos.csv`.

    Pictures are looked for beside the table, then in `images/` beside it.
    """
    path = existing(path, "mos.csv") if path.is_dir() else path

    def find(name: str) -> Path:
        inside = path.parent / "images" / name
        return inside if inside.is_file() and not (path.parent / name).is_file() else path.parent / name

    for row in read_csv(path, ["image", "mos"]):
        name, reference, part = row["image"], row.get("reference"), row.get("split")
        if part and part not in PARTS:
            raise ValueError(f"the split of {name} is {part!r}; expected one of {', '.join(PARTS)}.")
        yield Sample(
            image=find(name),
            mos=number(row["mos"], name),
            std=number(row["std"], name) if row.get("std") else None,
            reference=find(reference) if reference else None,
            group=reference or "",
            part=PARTS[part] if part else None,
        )


READERS: dict[str, tuple[Callable[[Path], Iterator[Sample]], Scale | None]] = {
    "live-challenge": (live_challenge, (0, 100)),
    "koniq-10k": (koniq, None),  # 1 to 5 in one of its tables, 0 to 100 in the other
    "spaq": (spaq, (0, 100)),
    "flive": (flive, (0, 100)),
    "kadid-10k": (kadid, (1, 5)),
    "tid2013": (tid2013, (0, 9)),
    "csiq": (csiq, (1, 0)),
    "live": (live, None),  # realigned scores have no fixed ends
    "agiqa-3k": (agiqa_3k, (0, 5)),
    "agiqa-1k": (agiqa_1k, (0, 5)),
    "csv": (csv_table, None),
}


def load_dataset(name: str, root: Path, scale: Scale | None = None) -> list[Sample]:
    """Read and check a data set.

    Args:
        name: one of `READERS`.
        root: its folder; for "csv" the table itself or a folder with `mos.csv`.
        scale: published scores of the worst and the best quality, in place of the data set's own. For "csv" without
            one the lowest and the highest score of the table; for "live" the highest and the lowest.

    Returns:
        The samples in the order of the list, `normalised_mos` filled in.

    Raises:
        FileNotFoundError: files that should be there are missing.
        ValueError: unknown name; a table that cannot be read; a picture that comes twice; scores that are no numbers,
            all equal, or outside the scale.
    """
    if name not in READERS:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(READERS)}.")
    reader, own = READERS[name]
    locate = Locator()
    samples = [
        replace(sample, image=locate(sample.image), reference=sample.reference and locate(sample.reference))
        for sample in reader(Path(root))
    ]
    scores = [sample.mos for sample in samples]
    _check(samples, scores, root)
    worst, best = scale or own or _scale_of(name, scores)
    if not math.isfinite(worst) or not math.isfinite(best) or worst == best:
        raise ValueError(f"the scale is from {worst} to {best}; expected two different numbers, worst and best.")
    normalised = [(score - worst) / (best - worst) for score in scores]
    for sample, value in zip(samples, normalised, strict=True):
        if not -1e-6 <= value <= 1 + 1e-6:
            raise ValueError(
                f"the score of {sample.image.name} is {sample.mos:g}, outside the scale from {worst:g} (worst) to "
                f"{best:g} (best); give the scale that the scores have."
            )
    return [
        replace(sample, normalised_mos=min(max(n, 0.0), 1.0)) for sample, n in zip(samples, normalised, strict=True)
    ]


def _scale_of(name: str, scores: list[float]) -> Scale:
    low, high = min(scores), max(scores)
    if name == "koniq-10k":
        return (1, 5) if high <= 5 else (0, 100)
    return (high, low) if name == "live" else (low, high)


def _check(samples: list[Sample], scores: list[float], root: Path) -> None:
    if len(samples) < 2:
        raise ValueError(f"{root} lists {len(samples)} pictures; expected two or more.")
    broken = [sample for sample in samples if not math.isfinite(sample.mos)]
    if broken:
        raise ValueError(f"the score of {broken[0].image.name} is {broken[0].mos}; expected a finite number.")
    if min(scores) == max(scores):
        raise ValueError(f"all {len(scores)} scores in {root} are {scores[0]:g}; nothing can be learnt from them.")
    twice = [path for path, count in Counter(sample.image for sample in samples).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0].name} comes more than once in {root} ({len(twice)} such pictures); list it once.")
    files = dict.fromkeys(path for sample in samples for path in (sample.image, sample.reference) if path is not None)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(files)} pictures are missing (first: {missing[0]}).")


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
    found = []
    for seed in range(count):
        held = np.random.default_rng(seed).permutation(len(names))[:size]
        found.append((np.flatnonzero(~np.isin(group, held)), np.flatnonzero(np.isin(group, held))))
    return found
