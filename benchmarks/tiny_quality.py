"""How well a bundled model judges pictures that it never saw: `tiny`, or another that --model names.

    python benchmarks/tiny_quality.py --data DIR             # print the tables
    python benchmarks/tiny_quality.py --data DIR --publish   # also write them into benchmarks/

Correlation with people's scores on the held-out part of live-challenge and of biq2021, and how often the score falls
from level to level: on the series of tid2013-6ref, and on ladders of the package's own degradations over held-out clean
photographs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from judges import load
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from tables import README, machine, table, write_between
from torch import Tensor
from tqdm import tqdm

from iqguide import create_model
from iqguide.training.data import biq_photographs, clean_photographs, scored_photographs, split
from iqguide.training.distortions import LADDERS, distort

RESULTS = Path(__file__).parent / "results"
Margin = Callable[[Tensor], Tensor]
Steps = dict[str, list[list[bool]]]
"""Distortion -> of each series, whether the score falls at its steps; the first step is that from the clean picture."""


def score_files(margin: Margin, paths: Iterable[Path]) -> np.ndarray:
    with torch.no_grad():
        return np.array([margin(load([path])).item() for path in tqdm(list(paths), desc="scoring", leave=False)])


def correlations(scores: np.ndarray, mos: np.ndarray, draws: int = 2000) -> dict[str, list[float]]:
    """SRCC and PLCC (no fitted curve), each with a bootstrap 95 % interval."""
    rng, result = np.random.default_rng(0), {}
    for name, function in (("SRCC", stats.spearmanr), ("PLCC", stats.pearsonr)):
        picks = rng.integers(0, len(mos), (draws, len(mos)))
        interval = np.percentile([function(scores[p], mos[p]).statistic for p in picks], (2.5, 97.5))
        result[name] = [float(function(scores, mos).statistic), *interval.tolist()]
    return result


def falls(series: Iterable[float]) -> list[bool]:
    """Whether each value is below the one before it."""
    return [bool(b < a) for a, b in zip(list(series), list(series)[1:], strict=False)]


def tid_rows(folder: Path) -> list[dict[str, str]]:
    """The list of tid2013-6ref, in the order of its series."""
    with (folder / "mos.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: (row["reference"], row["distortion"], int(row["level"])))


def tid_paths(folder: Path) -> dict[str, Path]:
    """Name in the list -> file, of distorted pictures and references."""
    rows = tid_rows(folder)
    names = {row["image"] for row in rows} | {row["reference"] for row in rows}
    files = {path.stem: path for path in (folder / "images").iterdir()}
    return {name: files[Path(name).stem] for name in sorted(names)}


def flat(series: Iterable[list[bool]], after: int = 0) -> list[bool]:
    """All steps of some series; with `after` at 1 only those from level to level."""
    return [fell for steps in series for fell in steps[after:]]


def tid_steps(rows: list[dict[str, str]], scores: dict[str, float]) -> Steps:
    """Of the series of tid2013-6ref (reference, level 1, ... level 5)."""
    series: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        key = (row["distortion"], row["reference"])
        series[key] = series[key] or [scores[row["reference"]]]
        series[key].append(scores[row["image"]])
    steps: Steps = defaultdict(list)
    for (distortion, _), values in series.items():
        steps[distortion].append(falls(values))
    return dict(steps)


def tid_series(margin: Margin, folder: Path) -> Steps:
    """`tid_steps` of a model."""
    paths = tid_paths(folder)
    return tid_steps(tid_rows(folder), dict(zip(paths, score_files(margin, paths.values()), strict=True)))


def ladder_scores(
    score: Callable[[Tensor, Tensor], Tensor], paths: list[Path], side: int = 256
) -> dict[str, list[list[float]]]:
    """Distortion -> for each photograph the scores of its centre crop, clean and at the five levels.

    `score` takes these six pictures (6, 3, side, side) and the clean one (1, 3, side, side), and gives (6,).
    """
    scores: dict[str, list[list[float]]] = defaultdict(list)
    for number, path in enumerate(tqdm(paths, desc="ladders", leave=False)):
        image = load([path])
        y, x = ((extent - side) // 2 // 8 * 8 for extent in image.shape[-2:])  # on the grid of the file's own blocks
        clean = image[..., y : y + side, x : x + side]
        for name in LADDERS:
            generator = torch.Generator().manual_seed(number)
            levels = distort(clean.expand(5, -1, -1, -1), name, torch.arange(5.0), generator)
            with torch.no_grad():
                scores[name].append(score(torch.cat([clean, levels]), clean).tolist())
    return dict(scores)


def ladder_steps(margin: Margin, paths: list[Path], side: int = 256) -> Steps:
    """Of the ladders, from the clean centre crops to the fifth level."""
    scores = ladder_scores(lambda images, clean: margin(images), paths, side)
    return {name: [falls(series) for series in several] for name, several in scores.items()}


def scatter(scores: np.ndarray, mos: np.ndarray, path: Path, side: int = 480) -> None:
    """People's scores (across) against the model's margin (up)."""
    picture = Image.new("RGB", (side, side), "white")
    pen, font, edge = ImageDraw.Draw(picture), ImageFont.load_default(14), 48
    span = side - 2 * edge
    pen.rectangle((edge, edge, side - edge, side - edge), outline="black")

    def place(values: np.ndarray, low: float, high: float) -> np.ndarray:
        return edge + span * (values - low) / (high - low)

    low, high = float(np.floor(scores.min())), float(np.ceil(scores.max()))
    for x, y in zip(place(mos, 0, 100), side - place(scores, low, high), strict=True):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(40, 90, 160))
    for value in range(0, 101, 25):
        pen.text((place(np.array(value), 0, 100), side - edge + 6), str(value), "black", font, anchor="mt")
    for value in np.linspace(low, high, 5):
        pen.text((edge - 6, side - place(value, low, high)), f"{value:.1f}", "black", font, anchor="rm")
    pen.text((side / 2, side - 10), "mean opinion score", "black", font, anchor="mb")
    pen.text((side / 2, 24), "margin, in deviations of clean photographs", "black", font, anchor="mm")
    picture.save(path, optimize=True)


def step_table(title: str, steps: Steps) -> str:
    """A row for each distortion, and one for all of them."""
    rows = [[name.replace("_", " "), *shares(series, ".0%")] for name, series in steps.items()]
    every = [series for several in steps.values() for series in several]
    rows.append(["**all**", *(f"**{cell}**" for cell in shares(every, ".1%"))])
    return table([title, "steps", "score falls", "level to level", "score falls"], rows)


def shares(series: list[list[bool]], digits: str) -> list[str]:
    """Number of steps and share of those at which the score falls: of all steps, and of those from level to level."""
    parts = [flat(series), flat(series, after=1)]
    return [cell for part in parts for cell in (str(len(part)), format(float(np.mean(part)), digits))]


def held_out_rows(data: Path, listed: Path | None) -> tuple[list[Path], np.ndarray]:
    """Pictures and opinion scores: those of a list of file names, or the part that the training keeps aside."""
    every = scored_photographs(data)
    if listed is None:
        chosen = split(every)[1]
    else:
        names = {line.split(",")[0].strip() for line in listed.read_text().splitlines()}
        chosen = [photograph for photograph in every if photograph.path.name in names]
    if len(chosen) < 3:
        raise SystemExit(f"{listed} names {len(chosen)} pictures of {data / 'live-challenge'}; expected at least 3.")
    return [photograph.path for photograph in chosen], np.array([photograph.mos for photograph in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of live-challenge/, pristine/, tid2013-6ref/")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--list", type=Path, help="held-out pictures of live-challenge, one name a line")
    parser.add_argument("--photographs", type=int, default=30, help="clean photographs for the ladders")
    parser.add_argument("--publish", action="store_true", help="write tables, CSV and plot into benchmarks/")
    args = parser.parse_args()
    model = create_model(args.model, weights=args.weights)
    margin = getattr(model, "margin", model)
    paths, mos = held_out_rows(args.data, args.list)
    scores = score_files(margin, paths)
    agreement = correlations(scores, mos)
    biq = split(biq_photographs(args.data))[1] if (args.data / "biq2021").is_dir() else []
    if biq:
        biq_scores = score_files(margin, [photograph.path for photograph in biq])
        agreed = correlations(biq_scores, np.array([photograph.mos for photograph in biq]))
        agreement |= {f"{name}, biq2021, {len(biq)} photographs": values for name, values in agreed.items()}
    tid = tid_series(margin, args.data / "tid2013-6ref")
    clean = [photograph.path for photograph in split(clean_photographs(args.data))[1]][: args.photographs]
    ladders = ladder_steps(margin, clean)
    rows = [[name, f"{value:.3f}", f"{low:.3f} to {high:.3f}"] for name, (value, low, high) in agreement.items()]
    text = "\n\n".join(
        [
            f"Model `{args.model}`, {sum(p.numel() for p in model.parameters())} parameters. {machine()}.",
            table([f"live-challenge, {len(paths)} held-out photographs", "value", "95 % interval"], rows),
            step_table("tid2013-6ref", tid),
            step_table(f"own ladders, {len(clean)} held-out clean photographs", ladders),
        ]
    )
    print(text)
    if args.publish:
        write_between(README, f"{args.model}-quality", text)
        share = {name: float(np.mean(flat(series))) for name, series in {**tid, **ladders}.items()}
        summary = {"correlations": agreement, "score_falls": share}
        results = RESULTS / f"{args.model}_quality.json"
        results.write_text(json.dumps(summary, indent=1) + "\n")
        lines = [f"{path.name},{m},{s:.4f}" for path, m, s in zip(paths, mos, scores, strict=True)]
        results.with_suffix(".csv").write_text("\n".join(["image,mos,margin", *lines]) + "\n")
        scatter(scores, mos, results.with_suffix(".png"))


if __name__ == "__main__":
    main()
