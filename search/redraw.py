"""One picture of a search again, without the others."""

import functools
from dataclasses import replace
from typing import Any

from torch import Tensor

from .ancestral import ancestral, seeded
from .calls import call_arguments, guided_calls, pictures_of, seeded_generators
from .result import SearchResult
from .resume import resume, run_until

_SETTINGS_OF_ALL = ("guidance", "batch_size")
_SETTINGS_OF_PARTICLES = (
    *("particles", "lambda_", "seeds", "checkpoints", "potential", "resample_below", "eta", "decoder"),
    *_SETTINGS_OF_ALL,
)


def redraw(pipe: Any, ranking: SearchResult, index: int) -> Tensor:
    """Make one picture of a search again, at the cost of one run.

    Args:
        pipe: the pipeline it was made with, with the same components; inside `guided` if it was made there.
        ranking: of `best_of_n`, `fk_steering`, `zero_order_search` or `optimize_noise`.
        index: of the picture, in the order of `ranking.images`.

    Returns:
        (3, H, W) in [0, 1], on the CPU: the same to the bit if the search had batch_size=1, else to the last digits.
    """
    settings = ranking.settings
    # eta may be the pipeline's own argument
    names = _SETTINGS_OF_ALL if ranking.lineages is None else _SETTINGS_OF_PARTICLES
    pipe_kwargs = {name: value for name, value in settings.items() if name not in names}
    call = call_arguments(pipe_kwargs, 1)
    if ranking.from_latents:
        call["latents"] = ranking.latents[index : index + 1].to(pipe.device)
    if ranking.lineages is not None:
        return _follow_lineage(pipe, ranking, index, pipe_kwargs, call)
    with guided_calls(pipe, settings.get("guidance"), pipe_kwargs):
        output = pipe(**call, generator=seeded_generators([ranking.seeds[index]]))
    return pictures_of(output)[0].float().cpu()


def _follow_lineage(
    pipe: Any, result: SearchResult, index: int, pipe_kwargs: dict[str, Any], call: dict[str, Any]
) -> Tensor:
    """The same run, whose noise comes from another seed from each resampling on."""
    (_, initial_seed), *resamplings = result.lineages[index]
    settings, state = result.settings, None
    with ancestral(pipe, settings["eta"]) as step, guided_calls(pipe, settings["guidance"], pipe_kwargs):
        for share, seed in resamplings:
            state, _ = run_until(pipe, share, seeded([initial_seed], step), state, **call)
            state = replace(state, generators=[seeded_generators([seed])[0].get_state()])
        run = pipe if state is None else functools.partial(resume, pipe, state=state)
        output = run(**call, generator=seeded([initial_seed], step))
    return pictures_of(output)[0].float().cpu()
