"""Readers of pictures that were damaged on purpose, each with its reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .sample import Sample
from .tables import Finder, existing, number, read_csv, read_mat, read_text, read_xlsx


def kadid(root: Path) -> Iterator[Sample]:
    """KADID-10k: `images/`, `dmos.csv`; its "dmos" is higher for better pictures."""
    images = Finder(existing(root, "images"))
    for row in read_csv(existing(root, "dmos.csv"), ["dist_img", "ref_img", "dmos", "var"]):
        name = row["dist_img"]
        std = number(row["var"], name) ** 0.5
        yield Sample(images(name), number(row["dmos"], name), std, images(row["ref_img"]), row["ref_img"])


def tid2013(root: Path) -> Iterator[Sample]:
    """TID2013: `distorted_images/`, `reference_images/`, `mos_with_names.txt`; the case of the names varies.

    `mos_std.txt`, where it is there, has the standard deviations line by line.
    """
    images, references = Finder(existing(root, "distorted_images")), Finder(existing(root, "reference_images"))
    pairs = pairs_of(existing(root, "mos_with_names.txt"))
    spread = root / "mos_std.txt"
    stds = read_text(spread).split() if spread.is_file() else [None] * len(pairs)
    if len(stds) != len(pairs):
        raise ValueError(f"{spread} has {len(stds)} numbers and mos_with_names.txt {len(pairs)}; expected as many.")
    for (mos, name), std in zip(pairs, stds, strict=True):
        source = name.split("_")[0].lower()
        deviation = None if std is None else number(std, name, "deviation")
        yield Sample(images(name), number(mos, name), deviation, references(f"{source}.bmp"), source)


def pairs_of(path: Path) -> list[list[str]]:
    """The two words of every line of a text file that is not empty.

    Raises:
        ValueError: a line has another number of words.
    """
    lines = [(place, line.split()) for place, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    for place, words in lines:
        if len(words) != 2:
            raise ValueError(f"line {place} of {path} has {len(words)} words; expected a score and a name.")
    return [words for _, words in lines]


def csiq(root: Path) -> Iterator[Sample]:
    """CSIQ: `src_imgs/`, `dst_imgs/<type>/`, and scores of which lower is better.

    They are in `csiq_label.txt` (names and scores) or in the sheet `all_by_image` of `csiq.DMOS.xlsx`.
    """
    folder = existing(root, "dst_imgs")
    images, references = Finder(folder, folder.rglob("*.png")), Finder(existing(root, "src_imgs"))
    if (root / "csiq_label.txt").is_file():
        for name, score in pairs_of(root / "csiq_label.txt"):
            source = name.split(".")[0]
            yield Sample(images(name), number(score, name), None, references(f"{source}.png"), source)
        return
    tokens = {"noise": "AWGN", "jpeg 2000": "jpeg2000"}  # the others are named alike in the table and in the files
    columns = ["image", "dst_type", "dst_lev", "dmos_std", "dmos"]
    for row in read_xlsx(existing(root, "csiq.DMOS.xlsx"), columns, "all_by_image"):
        source = f"{row['image']:g}" if isinstance(row["image"], float) else str(row["image"])  # one is called 1600
        kind, level = str(row["dst_type"]), number(row["dst_lev"], f"{source} in csiq.DMOS.xlsx", "level")
        name = f"{source}.{tokens.get(kind, kind)}.{level:g}.png"
        mos, std = number(row["dmos"], name), number(row["dmos_std"], name)
        yield Sample(images(name), mos, std, references(f"{source}.png"), source)


def live(root: Path) -> Iterator[Sample]:
    """LIVE: five folders, `refnames_all.mat`, and scores of which lower is better; the originals are left out.

    The scores are in `dmos_realigned.mat`, or in the `dmos.mat` of the first release.
    """
    table = existing(root, "dmos_realigned.mat", "dmos.mat")
    realigned = table.name == "dmos_realigned.mat"
    scores, originals = (read_mat(table, name) for name in ("dmos_new" if realigned else "dmos", "orgs"))
    stds = read_mat(table, "dmos_std").tolist() if realigned else [None] * len(scores)
    sources = read_mat(existing(root, "refnames_all.mat"), "refnames_all")
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    names = [f"{folder}/img{i + 1}.bmp" for folder, count in counts.items() for i in range(count)]
    for name, mos, std, original, source in zip(names, scores, stds, originals, sources, strict=True):
        if not original:
            yield Sample(root / name, float(mos), std, root / "refimgs" / source, source)


def pipal(root: Path) -> Iterator[Sample]:
    """PIPAL, training part: `Train_Label/*.txt` (name, Elo score), `Train_Ref/`, pictures in folders beside them."""
    labels = sorted(existing(root, "Train_Label").glob("*.txt"))
    folders = [
        path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in ("Train_Label", "Train_Ref")
    ]
    images = Finder(root, (file for folder in folders for file in sorted(folder.rglob("*.bmp"))))
    references = Finder(existing(root, "Train_Ref"))
    for path in labels:
        for place, line in enumerate(read_text(path).splitlines(), 1):
            name, comma, score = line.partition(",")
            if not line.strip():
                continue
            if not comma:
                raise ValueError(f"line {place} of {path} is {line!r}; expected a name, a comma and a score.")
            source = name.split("_")[0]
            yield Sample(images(name), number(score, name), None, references(f"{source}.bmp"), source)
