"""Ten splits of `tiny`: its head fitted anew for each on statistics of its convolutions, which are computed once."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from quality_protocol import WHOLE, Pictures, Record, cached, collect, digest, figures, split_keys
from torch import Tensor

from iqguide import create_model
from iqguide.models.cache import find_weights
from iqguide.models.catalog import get_spec
from iqguide.models.tiny import Tiny
from iqguide.training import fit_tiny_head
from iqguide.training.batches import raw_units
from iqguide.training.data import Photograph, clean_photographs, split

SEEN = ("--each", "1", "--large", "10")  # crops of the ladders
FIT = ("--steps", "600", "--batch", "128")
NO_FILES = ("--data", "", "--init", "", "--out", "")  # the fits read and write none
PHOTOGRAPHS = 110  # clean ones, for the ladders


def statistics(model: Tiny, data: Path, known: Pictures, crops: tuple[str, ...]) -> dict[str, Tensor]:
    """What the convolutions see: of ladders, of all scored pictures, of tid2013-6ref."""
    args = fit_tiny_head.parse([*crops, "--data", str(data), "--init", "", "--out", ""])
    clean = split(clean_photographs(data))[0][:PHOTOGRAPHS]
    # no good scored photographs among the ladders: what one split learns from is held out in another
    ladders, severities = fit_tiny_head.gather_ladders(model, clean, [], args)
    tid = [Photograph(path) for path in known.tid.values()]
    return {
        "ladders": ladders,
        "severities": severities,
        "scored": fit_tiny_head.whole_pictures(model, known.scored),
        "tid": fit_tiny_head.whole_pictures(model, tid),
    }


def fitted(model: Tiny, seen: dict[str, Tensor], known: Pictures, number: int, settings: tuple[str, ...]) -> Tiny:
    """The model with a fresh head, fitted on one split."""
    args = fit_tiny_head.parse([*settings, *NO_FILES, "--seed", str(number)])
    kept = torch.from_numpy(~known.held_out(number))
    labels = torch.from_numpy(raw_units(100 * known.opinions)).float()
    no_pairs, nothing = seen["ladders"][:0, :2], seen["scored"][:0]
    learnt = fit_tiny_head.Statistics(
        seen["ladders"], seen["severities"], seen["scored"][kept], labels[kept],
        no_pairs, no_pairs[..., 0], nothing, labels[:0],
    )  # fmt: skip
    model = copy.deepcopy(model)
    torch.manual_seed(number)
    fit_tiny_head.fit(model, learnt, args, torch.device("cpu"))
    return model


@torch.no_grad()
def judged(model: Tiny, statistics: Tensor) -> np.ndarray:
    return model.judge(statistics).numpy().astype(np.float64)


def run(
    data: Path,
    out: Path,
    known: Pictures,
    weights: str,
    splits: int,
    crops: tuple[str, ...] = SEEN,
    settings: tuple[str, ...] = FIT,
) -> list[Record]:
    """Records of the file itself and of `splits` splits; with other weights everything is computed anew."""
    mark = digest(find_weights(get_spec("tiny"), weights), crops)
    model = create_model("tiny", weights=weights).to(memory_format=torch.channels_last)
    seen = cached(out / f"tiny-{mark}.pt", lambda: statistics(model, data, known, crops))

    def record(key: Record) -> Record:
        number = key["split"]
        own = model if key["variant"].endswith(WHOLE) else fitted(model, seen, known, number, settings)
        aside = torch.from_numpy(known.held_out(number))
        return figures(known, number, judged(own, seen["scored"][aside]), judged(own, seen["tid"]))

    fit_mark = digest(vars(fit_tiny_head.parse([*settings, *NO_FILES])))  # its defaults too
    return collect(out / f"tiny-{mark}-{fit_mark}.json", split_keys("tiny", splits), record)
