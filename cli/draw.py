"""Drawing samples: one picture a seed, guided, best of N or both, with its scores; of `sample` and `demo`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from ..guidance import RewardGuidance
from ..images import to_pil, to_tensor
from ..models import MODELS
from ..rerank import score_finite
from ..rewards import Reward, at_working_size
from ..search.best_of_n import best_of_n
from ..search.calls import guided_calls
from ..search.result import NO_SCORE, NoCandidateError
from .named_models import load_named


@dataclass(frozen=True)
class Sample:
    """One generated picture, and what samples.json says about it."""

    image: Image.Image
    seed: int
    candidate_seed: int
    score: float
    time_s: float
    nfe: int
    judge: float | None = None
    """Score by a model that did not steer."""
    plain_score: float | None = None
    """Score of the picture that the first candidate's seed makes unguided; where there is a judge."""
    plain_judge: float | None = None
    """And what the judge says of that one."""

    def record(self) -> dict[str, Any]:
        """The entry of samples.json."""
        return {name: value for name, value in vars(self).items() if name != "image" and value is not None}


@dataclass(frozen=True)
class NoSample:
    """A seed that gives no picture."""

    seed: int
    failure: str
    """Why: no candidate can be used."""

    def record(self) -> dict[str, Any]:
        """The entry of samples.json."""
        return dict(vars(self))


def load_reward(options: argparse.Namespace, device: torch.device) -> Reward:
    """The quality model to sample by; see `load_model`."""
    return load_model(options.model, options.weights, device)


def load_model(name: str, weights: str, device: torch.device) -> Reward:
    """A quality model, or several joined by +, for pictures that have no reference.

    Raises:
        ValueError: it needs one.
    """
    if name in MODELS and MODELS[name].full_reference:
        raise ValueError(f"{name} compares images with a reference, and samples have none; choose another.")
    return load_named(name, weights, device)


def draw(
    pipe: Any,
    reward: Reward,
    seeds: Sequence[int],
    *,
    guidance: RewardGuidance | None = None,
    best_of: int | None = None,
    batch_size: int = 1,
    halving: Sequence[float] | bool = (),
    decoder: Any = None,
    judge: Reward | None = None,
    **call: Any,
) -> Iterator[Sample | NoSample]:
    """Generate one picture for each seed.

    Args:
        pipe: a diffusers pipeline.
        reward: images (N, 3, H, W) in [0, 1] -> (N,), higher is better; on the device of the pipeline.
        seeds: one for each picture; equal seeds start from equal noise, guided or not.
        guidance: None for none.
        best_of: candidates for each picture, whose seeds are seed * best_of + 0, 1, ...; None for the seed itself.
        batch_size: pictures in one call of the pipeline.
        halving: shares of the steps after which the worse half of the candidates is dropped, see `best_of_n`.
        decoder: with which halving looks at predictions, see `best_of_n`.
        judge: a second reward, which steers nothing. Where something else steers, the first candidate of each seed is
            drawn once more without it, and both score it.
        **call: what the pipeline is called with.

    Yields:
        A `Sample` for each seed, in their order, whose score is that of the picture rounded to 8 bits; a `NoSample`
        where the picture, or every candidate for it, cannot be used (NaN, no finite score, blanked).
    """
    if not seeds:
        return  # guidance would warn that it changed nothing
    groups = [[seed] for seed in seeds]
    if not best_of:
        groups = [list(seeds[i : i + batch_size]) for i in range(0, len(seeds), batch_size)]
    twins = judge is not None and (guidance is not None or best_of is not None)
    with guided_calls(pipe, guidance, call) as run:
        for group in groups:
            wanted = [group[0] * best_of + i for i in range(best_of)] if best_of else group
            how = {"batch_size": batch_size, "top_k": 1 if best_of else None, "halving": halving, "decoder": decoder}
            samples = _samples(pipe, reward, judge, group, wanted, **how, **call)
            plain: list[Sample | NoSample] = [NoSample(seed, "") for seed in group]
            if twins:
                first = wanted[:1] if best_of else wanted
                with run.paused() if guidance is not None else nullcontext():
                    plain = _samples(pipe, reward, judge, group, first, batch_size=min(batch_size, len(first)), **call)
            for sample, twin in zip(samples, plain, strict=True):
                if isinstance(sample, Sample) and isinstance(twin, Sample):
                    yield replace(sample, plain_score=twin.score, plain_judge=twin.judge)
                else:
                    yield sample


def _samples(
    pipe: Any,
    reward: Reward,
    judge: Reward | None,
    seeds: Sequence[int],
    candidates: Sequence[int],
    **options: Any,
) -> list[Sample | NoSample]:
    """A sample for each seed, from one search over their candidates; scored as the 8-bit file that it becomes."""
    start = time.perf_counter()
    try:
        result = best_of_n(pipe, reward, n=len(candidates), seeds=candidates, **options)
    except NoCandidateError as error:
        return [NoSample(seed, str(error)) for seed in seeds]
    spent = round((time.perf_counter() - start) / len(seeds), 4)
    nfe = (result.nfe or 0) // len(seeds)
    seed_of = dict(zip(candidates, seeds, strict=True)) if len(candidates) == len(seeds) else {}
    samples = {seed_of.get(entry.seed, seeds[0]): NoSample(entry.seed, str(entry.failure)) for entry in result.failed}
    pictures = [to_pil(image) for image in result.images]
    scores, judged = scores_of(pictures, reward), scores_of(pictures, judge)
    for candidate, picture, score, other in zip(result.seeds, pictures, scores, judged, strict=True):
        seed = seed_of.get(candidate, seeds[0])
        samples[seed] = Sample(picture, seed, candidate, score, spent, nfe, other)
        if score is None:
            samples[seed] = NoSample(seed, NO_SCORE)
    return [samples[seed] for seed in seeds]


def scores_of(pictures: Sequence[Image.Image], reward: Reward | None) -> list[float | None]:
    """Of pictures of one size; None where there is no reward or no finite score."""
    if reward is None:
        return [None] * len(pictures)
    scores = score_finite(torch.cat([to_tensor(picture) for picture in pictures]), at_working_size(reward)).tolist()
    return [score if math.isfinite(score) else None for score in scores]
