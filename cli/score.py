"""`iqguide score` and `iqguide rank`: many files in, one score or one reason for each, explained on request."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..charts import bars
from ..errors import ImageError, make_folder, one_line
from ..images import WorkingSize, load_images, save_image
from ..models import MODELS
from ..models.bpclip import BPCLIP
from ..pictures.listing import list_pictures, no_pictures
from ..rerank import best_first, equal_sized, score_batch
from ..rewards import FullReference, Reward, at_working_size, working_size
from .console import FAILED, INTERRUPTED, OK, progress, say
from .named_models import load_named, names_in

BATCH_SIZE = 8
BATCH_PIXELS = 4 * 2**20
"""A batch holds no more pixels than this, unless one image does: it bounds the memory."""
Explainer = Callable[[Tensor], dict[str, dict[str, float]]]


@dataclass
class Row:
    """One line of the output."""

    path: str
    score: float | None = None
    error: str | None = None
    parts: dict[str, dict[str, float]] | None = None
    """What the score is made of, where that was asked for."""


def run_score(options: argparse.Namespace) -> int:
    """Print a score for each file; 0 if any was scored. After Ctrl-C print those that are there, and return 130."""
    if options.csv and options.explain:
        raise ValueError("a CSV has no columns for --explain; use --json, or the plain table.")
    rows, status = _listed(options), None
    folder = make_folder(options.explain_to) if options.explain_to else None
    try:
        _score_all(rows, options)
    except KeyboardInterrupt:
        total, rows = len(rows), [row for row in rows if row.score is not None or row.error is not None]
        if not rows:
            raise
        say(f"iqguide: interrupted after {len(rows)} of {total} images.")
        status = INTERRUPTED
    if options.json:
        _print_json(rows)
    elif options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([("path", "score", "error"), *((row.path, row.score, row.error) for row in rows)])
    else:
        _print_table(rows)
    if folder:
        _draw(rows, folder)
    return status or (OK if any(row.error is None for row in rows) else FAILED)


def run_rank(options: argparse.Namespace) -> int:
    """Print the best files, best first, and copy them where that is wanted; 0 if any was scored."""
    rows = _listed(options)
    folder = make_folder(options.copy_to) if options.copy_to else None
    _score_all(rows, options)
    scored = [row for row in rows if row.error is None]
    order = best_first(torch.tensor([row.score for row in scored], dtype=torch.float64))
    best = [scored[i] for i in order[: options.top].tolist()]
    if options.json:
        _print_json(best)
    else:
        _print_table(best)
    if folder:
        _copy([Path(row.path) for row in best], folder)
    return OK if best else FAILED


def _listed(options: argparse.Namespace) -> list[Row]:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be text; they go out as they are
    listing = list_pictures(options.paths, options.recursive)
    for remark in listing.remarks():
        say(f"iqguide: {remark}")
    if not listing.files:
        raise no_pictures(options.paths, options.recursive)
    return [Row(str(path)) for path in listing.files]


def _score_all(rows: list[Row], options: argparse.Namespace) -> None:
    """Fill in the rows, with a progress bar and a line for each bad file."""
    device = best_device(options.device)
    names = names_in(options.model)
    model = load_named(options.model, options.weights, device)
    size = chosen_size(model, options.size)
    reward, reference = model, []
    if MODELS[names[0]].full_reference:
        reference = [_reference(options, size).to(device)]
        reward = FullReference(model, *reference)
    elif options.reference:
        raise ValueError(f"{options.model} takes no reference; leave --reference out, or use --model bpclip-fr.")
    reward = at_working_size(reward) if options.size is None else reward
    explain = _explainer(model, options, reference)
    with progress(len(rows), options.model) as bar:
        for row in _scored(rows, reward, device, size, explain):
            if row.error is not None:
                say(f"iqguide: {row.error if row.path in row.error else f'{row.path}: {row.error}'}")
            bar.update()
    good = sum(row.error is None for row in rows)
    say(f"iqguide: {good} of {len(rows)} images scored by {options.model}, {size}.")


def chosen_size(model: nn.Module, size: int | None) -> WorkingSize:
    """The size at which pictures are scored: the model's own, or what --size says (0: that of the files)."""
    return working_size(model) if size is None else WorkingSize(most=size or None)


def _reference(options: argparse.Namespace, size: WorkingSize) -> Tensor:
    if not options.reference:
        raise ValueError(f"{options.model} compares images with a reference; name it: --reference PATH.")
    return load_images(options.reference, size=size)


def _explainer(model: nn.Module, options: argparse.Namespace, reference: list[Tensor]) -> Explainer | None:
    """The function that says what the score of one image (1, 3, H, W) is made of; None if nobody asks."""
    if not (getattr(options, "explain", False) or getattr(options, "explain_to", None)):
        return None
    if not hasattr(model, "describe"):
        raise ValueError(f"{options.model} has nothing to explain its score with; use bpclip, qualiclip or clipiqa.")
    if isinstance(model, BPCLIP) and model.config.text_source == "random":
        say(
            f"iqguide: the adjectives of this {options.model} are random directions: words and dimensions mean nothing."
        )
    return lambda image: model.describe(image, *reference).parts


def _scored(
    rows: list[Row], reward: Reward, device: torch.device, size: WorkingSize, explain: Explainer | None
) -> Iterator[Row]:
    """Fill in the rows and yield each when it is done; reads no more than one batch ahead."""
    waiting: list[Row] = []
    bad: list[Row] = []

    def readable() -> Iterator[Tensor]:
        for row in rows:
            try:
                image = load_images(row.path, size=size)
            except (ImageError, OSError) as error:
                row.error = one_line(error)
                bad.append(row)
                continue
            waiting.append(row)
            yield image

    for batch in equal_sized(readable(), BATCH_SIZE, BATCH_PIXELS):
        done = waiting[: len(batch)]
        del waiting[: len(batch)]
        _fill(done, torch.cat(batch).to(device), reward, explain)
        yield from done
        yield from bad
        bad.clear()
    yield from bad


def _fill(rows: list[Row], images: Tensor, reward: Reward, explain: Explainer | None) -> None:
    try:
        scores = score_batch(images, reward).tolist()
    except ValueError as error:  # one size, one reason: such as too small for this model
        for row in rows:
            row.error = one_line(error)
        return
    for row, score, image in zip(rows, scores, images, strict=True):
        if score == score:
            row.score = score
            row.parts = explain and explain(image[None])
        else:
            row.error = f"{row.path} has the score NaN; look at the weights of the model."


def best_device(name: str | None) -> torch.device:
    """The device of that name; by default CUDA, else MPS, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try --device cpu.") from error
    return device


def _copy(files: list[Path], folder: Path) -> None:
    """Copy files under their names, with their place in front where two have one name; overwrites nothing."""
    names = [file.name for file in files]
    width = len(str(len(files)))
    targets = [
        folder / (name if names.count(name) == 1 else f"{place:0{width}}_{name}")
        for place, name in enumerate(names, start=1)
    ]
    taken = [target for target in targets if target.exists()]
    if taken:
        raise ValueError(f"{taken[0]} exists already; nothing was copied: choose an empty folder for --copy-to.")
    for file, target in zip(files, targets, strict=True):
        try:
            shutil.copy2(file, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot copy {file} to {target}: {error.strerror}.") from error


def _draw(rows: list[Row], folder: Path) -> None:
    """A picture with bars for each explained row, named after its file (with its place where two have one name)."""
    stems = [Path(row.path).stem for row in rows]
    for place, (row, stem) in enumerate(zip(rows, stems, strict=True), start=1):
        if row.parts is not None:
            name = stem if stems.count(stem) == 1 else f"{place}_{stem}"
            save_image(bars(row.parts, f"{Path(row.path).name}   {row.score:.4f}"), folder / f"{name}.png")


def _print_json(rows: list[Row]) -> None:
    found = [asdict(row) for row in rows]
    for row in found:
        if row["parts"] is None:
            del row["parts"]
    print(json.dumps(found, indent=1))


def _print_table(rows: list[Row]) -> None:
    for row in rows:
        if row.error is None:
            print(f"{row.score:.4f}  {row.path}")
            for group, values in (row.parts or {}).items():
                print(f"  {group}")
                for name, value in values.items():
                    print(f"    {value:7.3f}  {name}")
