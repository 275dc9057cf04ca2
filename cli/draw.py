"""Drawing samples: one picture a seed, guided, best of N or both, with its scores; of `sample` and `demo`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..guidance import RewardGuidance
from ..images import to_pil
from ..models import MODELS
from ..models.create import create_model
from ..rerank import Ranking, rank
from ..rewards import Reward
from ..search.best_of_n import best_of_n
from ..search.candidates import guided_calls


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


def load_reward(options: argparse.Namespace, device: torch.device) -> nn.Module:
    """The quality model to sample by; see `load_model`."""
    return load_model(options.model, options.weights, device)


def load_model(name: str, weights: str, device: torch.device) -> nn.Module:
    """A quality model for pictures that have no reference.

    Raises:
        ValueError: it needs one.
    """
    if name in MODELS and MODELS[name].full_reference:
        raise ValueError(f"{name} compares images with a reference, and samples have none; choose another.")
    return create_model(name, weights=weights, device=device)


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
) -> Iterator[Sample]:
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
        A `Sample` for each seed, in their order; its score is that of the picture rounded to 8 bits.
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
            start = time.perf_counter()
            how = {"batch_size": batch_size, "top_k": 1 if best_of else None, "halving": halving, "decoder": decoder}
            ranking = best_of_n(pipe, reward, n=len(wanted), seeds=wanted, **how, **call)
            spent = time.perf_counter() - start
            samples = _samples(ranking, reward, judge, group, spent / len(group), (ranking.nfe or 0) // len(group))
            if not twins:
                yield from samples
                continue
            with run.paused() if guidance is not None else nullcontext():
                first = wanted[:1] if best_of else wanted
                plain = best_of_n(
                    pipe, reward, n=len(first), seeds=first, batch_size=min(batch_size, len(first)), **call
                )
            for sample, twin in zip(samples, _samples(plain, reward, judge, group, 0, 0), strict=True):
                yield replace(sample, plain_score=twin.score, plain_judge=twin.judge)


def _samples(
    ranking: Ranking, reward: Reward, judge: Reward | None, seeds: list[int], time_s: float, nfe: int
) -> Iterator[Sample]:
    """The pictures of a ranking (one for each seed), scored as the 8-bit files that they become."""
    pictures = [to_pil(image) for image in ranking.images]
    scores = rank(pictures, reward, batch_size=len(pictures)).scores.tolist()
    judged = rank(pictures, judge, batch_size=len(pictures)).scores.tolist() if judge else [None] * len(pictures)
    every = zip(seeds, ranking.seeds, pictures, scores, judged, strict=True)
    for seed, candidate, picture, score, other in every:
        yield Sample(picture, seed, candidate, score, round(time_s, 4), nfe, other)
