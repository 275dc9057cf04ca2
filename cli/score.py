"""`iqguide score` and `iqguide rank`: many files in, one score or one reason for each, explained on request."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..charts import bars
from ..errors import ImageError, make_folder, one_line
from ..images import WorkingSize, load_images, save_image
from ..models import MODELS
from ..models.bpclip import BPCLIP
from ..models.meaning import digits
from ..pictures.listing import list_pictures, no_pictures
from ..rerank import best_first, equal_sized, score_batch
from ..rewards import FullReference, Reward, at_working_size, working_size
from .console import FAILED, INTERRUPTED, OK, progress, say
from .named_models import load_named, names_in
from .outputs import MARK, check_targets, unique_names
from .rows import Row, prepare_output, print_rows

BATCH_SIZE = 8
BATCH_PIXELS = 4 * 2**20
"""A batch holds no more pixels than this, unless one image does: it bounds the memory."""
EXPLANATION = "explanation"
"""What a picture of --explain-to says of itself."""
OUT_OF_MEMORY = "memory ran out; reduce the image, or use --size or another --device."
Explainer = Callable[[Tensor], dict[str, dict[str, float]]]


def run_score(options: argparse.Namespace) -> int:
    """Print a score for each file; 0 if any was scored. What ends the work early, such as Ctrl-C, costs no score."""
    if options.csv and options.explain:
        raise ValueError("a CSV has no columns for --explain; use --json, or the plain table.")
    rows = _listed(options)
    charts = _charts(rows, options)
    end = _score_all(rows, options)
    print_rows([row for row in rows if row.done], options)
    for row, chart in zip(rows, charts, strict=True) if charts else ():
        if row.parts is not None:
            save_image(bars(row.parts, f"{Path(row.path).name}   {digits(row.score)}"), chart, {MARK: EXPLANATION})
    return _status(rows, end)


def run_rank(options: argparse.Namespace) -> int:
    """Print the best files, best first, and copy them where that is wanted; 0 if any was scored."""
    rows = _listed(options)
    folder = make_folder(options.copy_to) if options.copy_to else None
    end = _score_all(rows, options)
    scored = [row for row in rows if row.score is not None]
    order = best_first(torch.tensor([row.score for row in scored], dtype=torch.float64)) if scored else torch.zeros(0)
    best = [scored[i] for i in order[: options.top].int().tolist()]
    print_rows(best, options)
    if folder and end is None:
        _copy([Path(row.path) for row in best], folder)
    return _status(best, end)


def _status(rows: list[Row], end: BaseException | None) -> int:
    """The exit status; what has ended the work early is raised again, except an interrupt, which has a status."""
    if isinstance(end, KeyboardInterrupt):
        return INTERRUPTED
    if end is not None:
        raise end
    return OK if any(row.score is not None for row in rows) else FAILED


def _listed(options: argparse.Namespace) -> list[Row]:
    prepare_output()
    listing = list_pictures(options.paths, options.recursive)
    for remark in listing.remarks():
        say(f"iqguide: {remark}")
    if not listing.files:
        raise no_pictures(options.paths, options.recursive)
    return [Row(str(path)) for path in listing.files]


def _charts(rows: list[Row], options: argparse.Namespace) -> list[Path]:
    """Where each row is drawn, found out before the work; none where nobody asks."""
    if not options.explain_to:
        return []
    folder = make_folder(options.explain_to)
    charts = [folder / name for name in unique_names([Path(row.path).stem for row in rows], ".png")]
    check_targets(charts, [row.path for row in rows], EXPLANATION, options.overwrite)
    return charts


def _score_all(rows: list[Row], options: argparse.Namespace) -> BaseException | None:
    """Fill in the rows, with a progress bar and a line for each bad file.

    Returns:
        What has ended the work after the first row was done; None if all are.
    """
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
    end = None
    try:
        with progress(len(rows), options.model) as bar:
            for row in _scored(rows, reward, device, size, explain):
                if row.error is not None:
                    say(f"iqguide: {row.error if row.path in row.error else f'{row.path}: {row.error}'}")
                bar.update()
    except BaseException as error:
        if not any(row.done for row in rows):
            raise
        end = error
        how = "interrupted" if isinstance(error, KeyboardInterrupt) else f"ended by an error ({one_line(error)})"
        say(f"iqguide: {how} after {sum(row.done for row in rows)} of {len(rows)} images.")
    good = sum(row.score is not None for row in rows)
    if end is None:
        say(f"iqguide: {good} of {len(rows)} images scored by {options.model}, {size}.")
    return end


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
            except (MemoryError, RuntimeError) as error:
                row.error = _out_of_memory(error)
            if row.error is not None:
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
    except (MemoryError, RuntimeError) as error:
        reason = _out_of_memory(error)
        if len(rows) > 1:  # one by one they may still fit
            for row, image in zip(rows, images, strict=True):
                _fill([row], image[None], reward, explain)
        else:
            rows[0].error = reason
        return
    for row, score, image in zip(rows, scores, images, strict=True):
        if score == score:
            row.score = score
            row.parts = explain and explain(image[None])
        else:
            row.error = f"{row.path} has the score NaN; look at the weights of the model."


def _out_of_memory(error: Exception) -> str:
    """What a row says where memory has run out; any other error is raised again."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        return OUT_OF_MEMORY
    raise error


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
    targets = [folder / name for name in unique_names([file.name for file in files], "")]
    taken = [target for target in targets if target.exists()]
    if taken:
        raise ValueError(f"{taken[0]} exists already; nothing was copied: choose an empty folder for --copy-to.")
    for file, target in zip(files, targets, strict=True):
        try:
            shutil.copy2(file, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot copy {file} to {target}: {error.strerror}.") from error
