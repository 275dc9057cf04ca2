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
from ..training.correlation import fit_logistic, logistic
from ..training.data import alike_groups
from ..training.datasets import Sample, load_dataset
from ..training.evaluate import chosen, distributed_device, score_samples, summarise
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
    "plcc_fitted": "PLCC after the four-parameter logistic",
    "krcc": "KRCC",
}


def run_evaluate(options: argparse.Namespace) -> int:
    """Print the figures, and write the files that were asked for."""
    names = names_in(options.model)  # a mistyped one is said before the data set is read
    _check_files(options)
    own_device, is_main = distributed_device()
    device = own_device or best_device(options.device)
    samples = load_dataset(options.dataset, Path(options.root), tuple(options.scale) if options.scale else None)
    _check_targets(options, samples)
    samples = [samples[index] for index in chosen(samples, options.split)]
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
    figures = summarise(samples, scores, options.split, options.bootstrap)
    settings = {name: getattr(options, name) for name in ("model", "weights", "dataset", "split")}
    if options.json:
        print(json.dumps({**figures, **settings, "short_side": size.most}, indent=1))
    else:
        _print(figures, settings, size)
    if options.csv:
        _write_csv(samples, scores, Path(options.csv))
    if options.plot:
        _plot(samples, scores, f"{options.model} on {options.dataset}   SRCC {figures['srcc']:.3f}", Path(options.plot))
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


def _print(figures: dict[str, Any], settings: dict[str, str], size: WorkingSize) -> None:
    print(f"{settings['model']} on {settings['dataset']}: {figures['n']} images, {size}")
    for name, text in NAMES.items():
        spread = ""
        if "intervals" in figures:
            spread = "  [{:.3f}, {:.3f}]".format(*figures["intervals"][name])
        elif "std" in figures:
            spread = f"  +- {figures['std'][name]:.3f}"
        print(f"{figures[name]:.3f}{spread}  {text}")
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


def _plot(samples: Sequence[Sample], scores: np.ndarray, title: str, path: Path) -> None:
    """Scores against opinions, with the fitted logistic."""
    mos = np.array([sample.normalised_mos for sample in samples])
    line = np.linspace(scores.min(), scores.max(), 200)
    curve = np.clip(logistic(line, *fit_logistic(scores, mos)), mos.min(), mos.max())
    picture = scatter(scores.tolist(), mos.tolist(), ("score", "opinion"), title, (line.tolist(), curve.tolist()))
    save_image(picture, path, {MARK: PLOT} if picture_format(path) == "PNG" else None)
