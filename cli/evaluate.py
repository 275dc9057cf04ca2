"""`iqguide evaluate`: how well a model agrees with the people who scored a data set."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..charts import scatter
from ..errors import atomic_write, make_folder
from ..images import WorkingSize, picture_format, save_image
from ..models import MODELS
from ..rewards import at_working_size
from ..spreadsheets import safe_row
from ..training.correlation import fit_logistic, fit_logistic5, logistic, logistic5
from ..training.datasets import load_dataset
from ..training.duplicates import alike_groups
from ..training.evaluate import chosen, distributed_device, score_samples, summarise
from ..training.sample import Sample
from .console import OK
from .named_models import load_named, names_in
from .outputs import MARK, check_targets
from .score import best_device, chosen_size

COLUMNS = ("image", "score", "mos", "opinion", "reference", "part")
PLOT = "plot"
"""What a PNG of --plot says of itself."""
NAMES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "plcc_fitted": "PLCC after the {} logistic",
    "krcc": "KRCC",
    "pairwise": "pairs of pictures in the right order",
}


def run_evaluate(options: argparse.Namespace) -> int:
    """Print the figures, and write the files that were asked for."""
    names = names_in(options.model)  # a mistyped one is said before the data set is read
    _check_files(options)
    own_device, is_main = distributed_device()
    device = own_device or best_device(options.device)
    scale = tuple(options.scale) if options.scale else None
    samples = load_dataset(options.dataset, Path(options.root), scale, options.lower_is_better)
    _check_targets(options, samples)
    samples = [samples[index] for index in chosen(samples, options.split, options.dataset)]
    if options.group_alike:
        groups = alike_groups([sample.image for sample in samples])
        samples = [replace(sample, group=f"alike {group}") for sample, group in zip(samples, groups, strict=True)]
    model = load_named(options.model, options.weights, device)
    size = chosen_size(model, options.size)
    compares = MODELS[names[0]].full_reference
    reward = model if compares or options.size is not None else at_working_size(model)
    scores = score_samples(reward, samples, size, device, compares)
    if not is_main:
        return OK
    figures = summarise(samples, scores, options.split, options.bootstrap, options.logistic)
    settings = {name: getattr(options, name) for name in ("model", "weights", "dataset", "split", "logistic")}
    if options.json:
        print(json.dumps({**figures, **settings, "short_side": size.most}, indent=1))
    else:
        _print(figures, settings, size)
    if options.csv:
        _write_csv(samples, scores, Path(options.csv))
    if options.plot:
        title = f"{options.model} on {options.dataset}   SRCC {figures['srcc']:.3f}"
        _plot(samples, scores, title, Path(options.plot), options.logistic)
    return OK


def _check_files(options: argparse.Namespace) -> None:
    """Find out before any image is scored what could not be written afterwards."""
    for name in filter(None, (options.csv, options.plot)):
        make_folder(Path(name).parent)
    if options.plot:
        picture_format(options.plot)


def _check_targets(options: argparse.Namespace, samples: Sequence[Sample]) -> None:
    """Neither the data set nor anything else that is not ours is written over."""
    read = [path for sample in samples for path in (sample.image, sample.reference) if path is not None]
    for target, own in ((options.csv, ",".join(COLUMNS)), (options.plot, PLOT)):
        check_targets(filter(None, [target]), [Path(options.root), *read], own, options.overwrite)


def _print(figures: dict[str, Any], settings: dict[str, Any], size: WorkingSize) -> None:
    print(f"{settings['model']} on {settings['dataset']}: {figures['n']} images, {size}")
    curve = {4: "four-parameter", 5: "five-parameter"}[settings["logistic"]]
    for name, text in NAMES.items():
        spread = ""
        if name in figures.get("intervals", {}):
            spread = "  [{:.3f}, {:.3f}]".format(*figures["intervals"][name])
        elif "std" in figures:
            spread = f"  +- {figures['std'][name]:.3f}"
        print(f"{figures[name]:.3f}{spread}  {text.format(curve)}")
    if "intervals" in figures:
        print("In brackets: 95 % bootstrap intervals.")
    elif "std" in figures:
        print("Mean and standard deviation over the test parts of ten seeded splits, a fifth of the references each.")


def _write_csv(samples: Sequence[Sample], scores: np.ndarray, path: Path) -> None:
    """image, score, mos, opinion, and reference and part where there are any."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample, score in zip(samples, scores, strict=True):
        cells = (sample.image, float(score), sample.mos, sample.normalised_mos, sample.reference, sample.part)
        writer.writerow(safe_row(cells))
    atomic_write(path, text.getvalue().encode(errors="surrogateescape"))


def _plot(samples: Sequence[Sample], scores: np.ndarray, title: str, path: Path, parameters: int) -> None:
    """Scores against opinions, with the fitted logistic."""
    mos = np.array([sample.normalised_mos for sample in samples])
    line = np.linspace(scores.min(), scores.max(), 200)
    if parameters == 4:
        curve = logistic(line, *fit_logistic(scores, mos))
    else:
        curve = logistic5(line, *fit_logistic5(scores, mos))
    curve = np.clip(curve, mos.min(), mos.max())
    picture = scatter(scores.tolist(), mos.tolist(), ("score", "opinion"), title, (line.tolist(), curve.tolist()))
    save_image(picture, path, {MARK: PLOT} if picture_format(path) == "PNG" else None)
