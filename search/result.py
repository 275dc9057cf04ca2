"""What a search returns: a ranking, and what is needed to make each of its pictures again.

Needs neither diffusers nor ComfyUI.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..rerank import Ranking

logger = logging.getLogger(__name__)

NOT_FINITE = "the picture holds NaN or infinite values"
NO_SCORE = "the score is not a finite number"
BLANKED = "the safety checker of the pipeline has blanked the picture"

_ADVICE = {
    NOT_FINITE: "check dtype and guidance",
    NO_SCORE: "check the reward",
    BLANKED: "change the prompt or the seeds",
}


@dataclass(frozen=True)
class Dropped:
    """A candidate that is not in the result."""

    seed: int
    share: float
    """Of its evaluations that had been made, in (0, 1]; 1 for a finished picture."""
    score: float
    """Of its denoised prediction or its picture there; NaN where there is none."""
    failure: str | None = None
    """Why it could not be used; None where others were better."""


@dataclass(frozen=True, eq=False)
class SearchResult(Ranking):
    """A ranking of generated pictures, and what is needed to make each of them again.

    Every search returns one. Candidates that could not be used (NaN in the picture or the score, or blanked by a safety
    checker) are not among `images`; they are in `dropped`, with the reason.
    """

    seeds: tuple[int, ...] = ()
    """The seed of each candidate."""
    latents: Tensor | None = None
    """(N, ...) the initial noise of each candidate; None where the pipeline starts from a picture."""
    settings: Mapping[str, Any] | None = None
    """The arguments with which the candidates were generated."""
    dropped: tuple[Dropped, ...] = ()
    """Candidates that are not in the result, in the order in which they were dropped."""
    from_latents: bool = False
    """Whether they were made from `latents`, and `seeds` seed only the noise that the sampler adds in its steps."""
    log: tuple[Any, ...] = ()
    """What the search recorded at each step; see there."""
    log_weights: Tensor | None = None
    """(N,) float64: the logarithm of the weight of each sample; from `fk_steering` only."""
    lineages: tuple[tuple[tuple[float, int], ...], ...] | None = None
    """Of each sample, pairs (share of the steps, seed of the noise from there on); from `fk_steering` only."""
    nfe: int | None = None
    """Rows that went through the denoiser for all candidates together; with classifier-free guidance a step is two."""

    @property
    def failed(self) -> tuple[Dropped, ...]:
        """The candidates in `dropped` that could not be used."""
        return tuple(candidate for candidate in self.dropped if candidate.failure is not None)


def dropped_failures(seeds: Sequence[int], share: float, failures: Sequence[str | None]) -> list[Dropped]:
    """The candidates that cannot be used, after `share` of their evaluations."""
    pairs = zip(seeds, failures, strict=True)
    return [Dropped(seed, share, math.nan, failure) for seed, failure in pairs if failure is not None]


class NoCandidateError(ValueError):
    """No candidate of a search can be used; says why, and what to do."""


def check_some_left(left: int, dropped: Sequence[Dropped]) -> None:
    """Raise `NoCandidateError` if no candidate is left."""
    if not left:
        reasons = {candidate.failure for candidate in dropped if candidate.failure is not None}
        advice = " and ".join(_ADVICE[reason] for reason in sorted(reasons))
        raise NoCandidateError(f"no candidate can be used: {counted_failures(dropped)}; {advice}.")


def warn_of_failures(dropped: Sequence[Dropped]) -> None:
    """Log how many candidates could not be used, which and why; nothing if all could."""
    seeds = [candidate.seed for candidate in dropped if candidate.failure is not None]
    if seeds:
        logger.warning(
            "%d candidates cannot be used and are left out, seeds %s: %s.",
            len(seeds),
            seeds,
            counted_failures(dropped),
        )


def counted_failures(dropped: Sequence[Dropped]) -> str:
    """The reasons why candidates could not be used, each with its number."""
    reasons = Counter(candidate.failure for candidate in dropped if candidate.failure is not None)
    return "; ".join(f"{reason} ({count} of them)" for reason, count in reasons.items())
