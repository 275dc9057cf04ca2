"""One picture of a search again, without the others."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..rerank import Ranking
from .ancestral import ancestral, seeded
from .candidates import call_arguments, guided_calls, pictures_of
from .resume import run_on, run_to

_OF_ALL = ("guidance", "batch_size")
_OF_PARTICLES = (
    *("particles", "lambda_", "seeds", "checkpoints", "potential", "resample_below", "eta", "decoder"),
    *_OF_ALL,
)


def redraw(pipe: Any, ranking: Ranking, index: int) -> Tensor:
    """Make one picture of a search again, at the cost of one run.

    Args:
        pipe: the pipeline it was made with, set up as it was; inside `guided` if it was made there.
        ranking: what `best_of_n`, `fk_steering`, `zero_order_search` or `optimize_noise` has returned.
        index: of the picture, in the order of `ranking.images`.

    Returns:
        (3, H, W) in [0, 1], on the CPU: the same to the bit if the search had batch_size=1, else to the last digits.
    """
    settings = ranking.settings
    ours = _OF_ALL if ranking.lineages is None else _OF_PARTICLES  # eta may be the pipeline's own
    given = {name: value for name, value in settings.items() if name not in ours}
    call, seed = call_arguments(pipe, given, 1), ranking.seeds[index]
    if ranking.from_latents:
        call["latents"] = ranking.latents[index : index + 1].to(pipe.device)
    if ranking.lineages is not None:
        return _resampled(pipe, ranking, index, given, call)
    with guided_calls(pipe, settings.get("guidance"), given):
        result = pipe(**call, generator=[torch.Generator("cpu").manual_seed(seed)])
    return pictures_of(result)[0].float().cpu()


def _resampled(pipe: Any, ranking: Ranking, index: int, given: dict[str, Any], call: dict[str, Any]) -> Tensor:
    """Follow a lineage: the same run, whose noise comes from another seed from each resampling on."""
    (_, root), *later = ranking.lineages[index]
    state = None
    with ancestral(pipe, ranking.settings["eta"]) as made, guided_calls(pipe, ranking.settings["guidance"], given):
        for share, seed in later:
            state, _ = run_to(pipe, share, seeded([root], made), state, **call)
            state = replace(state, generators=[torch.Generator("cpu").manual_seed(seed).get_state()])
        run = pipe if state is None else functools.partial(run_on, pipe, state=state)
        result = run(**call, generator=seeded([root], made))
    return pictures_of(result)[0].float().cpu()
