"""Data sets of pictures with human scores, read from their official layouts.

Every reader takes the folder as it was released (unpacked) and yields rows; `load_dataset` checks them and brings the
scores to [0, 1], higher is better, by the fixed scale of the study, so that the numbers mean the same for every part of
a set. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from . import readers_distorted as distorted
from . import readers_generated as generated
from . import readers_photographs as photographs
from .sample import PARTS, Sample
from .tables import Locator, existing, number, read_csv

Scale = tuple[float, float]
"""The published scores of the worst and of the best quality; (1, 0) is a difference score from 0 to 1."""


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
    "live-challenge": (photographs.live_challenge, (0, 100)),
    "koniq-10k": (photographs.koniq, (0, 100)),
    "koniq-10k-raw": (photographs.koniq_raw, (1, 5)),
    "spaq": (photographs.spaq, (0, 100)),
    "flive": (photographs.flive, (0, 100)),
    "bid": (photographs.bid, (0, 5)),
    "uhd-iqa": (photographs.uhd_iqa, (0, 1)),
    "kadid-10k": (distorted.kadid, (1, 5)),
    "tid2013": (distorted.tid2013, (0, 9)),
    "csiq": (distorted.csiq, (1, 0)),
    "live": (distorted.live, None),  # realigned scores have no fixed ends
    "pipal": (distorted.pipal, None),  # Elo scores have no ends
    "agiqa-3k": (generated.agiqa_3k, (0, 5)),
    "agiqa-1k": (generated.agiqa_1k, (0, 5)),
    "aigiqa-20k": (generated.aigiqa_20k, (0, 5)),
    "aigciqa2023": (generated.aigciqa_2023, (0, 100)),
    "csv": (csv_table, None),
}


def load_dataset(name: str, root: Path, scale: Scale | None = None, lower_is_better: bool = False) -> list[Sample]:
    """Read and check a data set.

    Args:
        name: one of `READERS`.
        root: its folder; for "csv" the table itself or a folder with `mos.csv`.
        scale: published scores of the worst and the best quality, in place of the data set's own. For "csv" and
            "pipal" without one the lowest and the highest score of the table; for "live" the highest and the lowest.
        lower_is_better: the lowest score, of `scale` or of the table, is that of the best quality.

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
    if lower_is_better:
        worst, best = max(worst, best), min(worst, best)
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
