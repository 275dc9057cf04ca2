"""The finished pictures of a search: drawn, scored and ranked; those that cannot be used are left out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rerank import best_first, score_finite
from ..rewards import at_working_size
from .calls import check_count, pictures_of, seeded_generators
from .initial_noise import recording_noise, unscaled
from .result import (
    BLANKED,
    NO_SCORE,
    NOT_FINITE,
    Dropped,
    SearchResult,
    check_some_left,
    dropped_failures,
    warn_of_failures,
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A finished picture of a search."""

    seed: int
    image: Tensor
    """(3, H, W), or (F, 3, H, W) of a video, float32 in [0, 1] on the CPU."""
    score: float
    latents: Tensor | None
    """(...) the initial noise, as `latents=` takes it, on the CPU; None where the pipeline starts from a picture."""
    failure: str | None = None
    """Why it cannot be used; None if it can."""


def draw(
    pipe: Callable[..., Any],
    reward: Callable[[Tensor], Tensor],
    batch_seeds: Sequence[int | None],
    call: dict[str, Any],
    run: Callable[..., Any],
    latents: Sequence[Tensor | None] | None = None,
) -> list[Candidate]:
    """Run the pipeline once, and score its pictures.

    Args:
        pipe: a diffusers pipeline.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,).
        batch_seeds: a seed for each place of the batch; None for a place that is filled up and not returned.
        call: arguments from `call_arguments`.
        run: what is called with them: the pipeline, or `resume` with a state.
        latents: initial noise for each place, where `call` sets it; by default what the pipeline prepares.

    Returns:
        The candidates, those that cannot be used too.

    Raises:
        ValueError: the pipeline makes another number of pictures.
    """
    used = [index for index, seed in enumerate(batch_seeds) if seed is not None]
    seeds = [batch_seeds[index] for index in used]
    generators = seeded_generators([seeds[0] if seed is None else seed for seed in batch_seeds])
    initial: list[Tensor] = []
    with recording_noise(pipe, initial):
        result = run(**call, generator=generators)
    images = pictures_of(result)
    check_count(len(images), len(batch_seeds))
    images = images[used].float()
    blanked = getattr(result, "nsfw_content_detected", None) or [False] * len(batch_seeds)
    scores, failures = score_candidates(images, reward, [bool(blanked[index]) for index in used])
    if latents is None:
        latents = unscaled(pipe, initial[0]).cpu() if initial else [None] * len(batch_seeds)
    return list(map(Candidate, seeds, images.cpu(), scores, [latents[index] for index in used], failures))


def score_candidates(
    images: Tensor, reward: Callable[[Tensor], Tensor], blanked: Sequence[bool] = ()
) -> tuple[list[float], list[str | None]]:
    """Score pictures, and find those that cannot be used.

    Args:
        images: (N, 3, H, W), or videos (N, F, 3, H, W), whose score is the mean over their frames.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,).
        blanked: for each whether a safety checker has blanked it; such a picture is not scored.

    Returns:
        The scores, NaN where there is none; and for each why it cannot be used, None if it can.

    Raises:
        ValueError: the reward does not return one number per picture.
    """
    finite = images.isfinite().flatten(1).all(1)
    shown = finite & ~torch.tensor(list(blanked) or [False] * len(images)).to(finite)
    scores = torch.full((len(images),), math.nan)
    if shown.any():
        frames = images[shown].flatten(0, -4)
        scores[shown.cpu()] = score_finite(frames, at_working_size(reward)).view(int(shown.sum()), -1).mean(1)
    failures = [NOT_FINITE if not is_finite else BLANKED for is_finite in finite.tolist()]
    for index in shown.nonzero().flatten().tolist():
        failures[index] = None if scores[index].isfinite() else NO_SCORE
    return scores.tolist(), failures


def result_of(candidates: Sequence[Candidate], dropped: Sequence[Dropped], **fields: Any) -> SearchResult:
    """Rank the candidates of a search that can be used, and log how many cannot.

    Args:
        candidates: that are finished, in the order in which they are returned.
        dropped: those that are not.
        **fields: of the `SearchResult`.

    Raises:
        ValueError: no candidate can be used.
    """
    seeds, failures = [candidate.seed for candidate in candidates], [candidate.failure for candidate in candidates]
    dropped = [*dropped, *dropped_failures(seeds, 1.0, failures)]
    candidates = [candidate for candidate in candidates if candidate.failure is None]
    check_some_left(len(candidates), dropped)
    warn_of_failures(dropped)
    scores = torch.tensor([candidate.score for candidate in candidates], dtype=torch.float32)
    latents = [candidate.latents for candidate in candidates]
    return SearchResult(
        images=torch.stack([candidate.image for candidate in candidates]),
        scores=scores,
        order=best_first(scores),
        seeds=tuple(candidate.seed for candidate in candidates),
        latents=None if latents[0] is None else torch.stack(latents),
        dropped=tuple(dropped),
        **fields,
    )
