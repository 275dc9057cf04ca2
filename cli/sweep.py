"""What makes `iqguide sample` a sweep: which seeds are finished, who draws which, and whether a judge agrees."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..search.calls import chunks

RECORDED = ("seed", "candidate_seed", "score", "time_s", "nfe", "judge", "plain_score", "plain_judge")


def kept(out: Path, seeds: Sequence[int], settings: dict[str, Any], overwrite: bool) -> dict[int, dict[str, Any]]:
    """The records of the pictures SEED.png that a folder has from the same settings; each picture carries its own.

    Args:
        out: the folder.
        seeds: those that are to be drawn now.
        settings: those of now.
        overwrite: leave out what was made with other settings, in place of refusing it.

    Raises:
        ValueError: a picture was made with other settings; or one that would be written now is there, and not from us.
    """
    records, now = {}, json.loads(json.dumps(settings))
    for path in sorted(out.glob("*.png"), key=lambda path: (len(path.name), path.name)):
        if not (path.stem.isascii() and path.stem.isdigit()):
            continue
        seed, (said, whole) = int(path.stem), _said_by(path, int(path.stem) in seeds)
        other = next((n for n in sorted({*said, *now} - {*RECORDED, "iqguide"}) if said.get(n) != now.get(n)), None)
        ways = "choose another --out, or give --overwrite to make all pictures again"
        if "score" not in said:
            if seed in seeds and not overwrite:
                raise ValueError(f"{path} is there and is no picture of this command; {ways}.")
        elif other is None and whole:
            records[seed] = {name: said[name] for name in RECORDED if name in said}
        elif other is not None and not overwrite:
            made = f"{path} was made with {other} {said.get(other)!r}, and now it is {now.get(other)!r}"
            raise ValueError(f"{made}; {ways}.")
    return records


def _said_by(path: Path, read_pixels: bool) -> tuple[dict[str, Any], bool]:
    """What a picture says of itself, nothing if it is another program's; and whether its pixels, if read, are there."""
    said, whole = {}, False
    try:
        with Image.open(path, formats=("PNG",)) as image:
            said = json.loads(image.info.get("iqguide", "{}"))
            if read_pixels:
                image.load()
            whole = True
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for a damaged PNG, and json for other people's text
        pass
    return (said if isinstance(said, dict) else {}), whole


def share_of(seeds: Sequence[int], batch_size: int) -> list[int]:
    """The seeds of this process, of those that accelerate has launched: whole batches, as one process alone draws them.

    Args:
        seeds: of all processes.
        batch_size: seeds that are drawn together; those that follow each other fill a batch, see `best_of_n`.
    """
    from accelerate import PartialState

    state = PartialState()
    mine = chunks(seeds, batch_size)[state.process_index :: state.num_processes]
    return [seed for batch in mine for seed in batch]


def gathered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all processes, for every one of them."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    return gather_object(records) if PartialState().num_processes > 1 else records


def verdict(records: Sequence[dict[str, Any]], model: str, judge: str) -> list[str]:
    """What to say of the scores by the model that steered and by a judge that did not.

    Args:
        records: of samples.json, with `judge`; and with `plain_score` and `plain_judge` where something steered.
        model: name of the model that steered.
        judge: name of the judge.

    Returns:
        Lines; the last one is a warning if the reward has risen and the judge has fallen.
    """
    steered = any("plain_score" in record for record in records)
    names = {"judge", "plain_judge"} if steered else {"judge"}
    records = [record for record in records if names <= record.keys()]  # without those that have no finite score
    if not records:
        return [f"no image with a score by {judge}"]
    lines = [f"mean score {_mean(records, 'score'):.4f} by {model}, {_mean(records, 'judge'):.4f} by {judge}"]
    if not steered:
        return lines
    plain = f"{_mean(records, 'plain_score'):.4f} and {_mean(records, 'plain_judge'):.4f}"
    lines[0] += f" (unguided, first candidate: {plain})"
    rise = statistics.fmean(r["score"] - r["plain_score"] for r in records)
    changes = [r["judge"] - r["plain_judge"] for r in records]
    if rise > 0 > statistics.fmean(changes):
        error = f" +- {statistics.stdev(changes) / math.sqrt(len(changes)):.4f}" if len(changes) > 1 else ""
        lines.append(
            f"warning: {model}, which steered, rose by {rise:.4f} while {judge}, which did not, changed by"
            f" {statistics.fmean(changes):+.4f}{error} (standard error over {len(records)} images): what was gained may"
            " be nothing that people see. Guide less, or choose another --model."
        )
    return lines


def _mean(records: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(record[name] for record in records)
