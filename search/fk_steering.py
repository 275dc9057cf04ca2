"""Feynman-Kac steering: particles that are resampled while they are sampled, by a reward of their predictions."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import counted_rows
from ..guidance.reward_guidance import RewardGuidance
from ..rewards import margin_of
from .ancestral import AncestralStep, ancestral, seeded
from .best_of_n import predict_at
from .calls import call_arguments, chunks, guided_calls, progress_bar, size_of
from .candidates import Candidate, draw, result_of, score_candidates
from .halving import check_shares, position_of
from .particles import Checkpoint, Particles
from .result import NO_SCORE, Dropped, SearchResult, check_some_left, dropped_failures
from .resume import resume
from .sampler_state import SamplerState, join_states

CHECKPOINTS = (0.2, 0.4, 0.6, 0.8)
"""Shares of the steps after which particles are weighted, by default."""


def fk_steering(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    *,
    particles: int = 4,
    lambda_: float = 10.0,
    seeds: Sequence[int] | None = None,
    checkpoints: Sequence[float] = CHECKPOINTS,
    potential: Literal["difference", "max"] = "difference",
    resample_below: float = 0.5,
    eta: float | None = None,
    guidance: RewardGuidance | None = None,
    decoder: Decoder | nn.Module | None = None,
    batch_size: int = 1,
    **pipe_kwargs: Any,
) -> SearchResult:
    """Sample from p(x) * exp(lambda_ * margin(x)), where p is what the pipeline samples from, by particles.

    At each checkpoint the weight of a particle is multiplied by a potential, which says how much the margin of its
    denoised prediction has risen. When few particles hold most of the weight, they are resampled (systematically):
    light ones end, heavy ones continue in several copies, each with noise of its own, and with the solver's history,
    the guidance's state and everything else that belongs to a sample. The last weights are those of the finished
    pictures, so with any number of particles, mean(exp(log_weights) * f(images)) estimates E_p[f * exp(lambda_ *
    margin)] without bias. A particle whose prediction or margin is not finite has the weight 0 from there on.

    Args:
        pipe: a diffusers pipeline that can be stopped and resumed, as for `best_of_n(halving=...)`.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; need not be differentiable. Its `margin`
            decides the weights, where it has one, since scores saturate.
        particles: how many, at least 2.
        lambda_: per unit of the margin, which is its spread over clean photographs.
        seeds: one for each particle; 0 ... particles-1 by default. They also seed the resampling.
        checkpoints: shares of the evaluations of a run, rising in (0, 1).
        potential: its logarithm is, with "difference", lambda_ * (margin - that at the last checkpoint); with "max",
            lambda_ * the highest margin so far at every checkpoint, which resamples harder; the last weight makes up
            for it.
        resample_below: resample when the effective sample size is below this share of the particles, or when a particle
            cannot be used; 1 for always.
        eta: None for a scheduler that adds noise by itself. In (0, 1] makes a deterministic one ancestral: in each step
            this share of the noise is fresh, as eta of DDIM. 1 wants many steps (the paper's have 100); with 25, 0.5
            leaves the pictures cleaner.
        guidance: with which the particles are guided; p is then the distribution of guided samples.
        decoder: with which predictions become pictures; as in `best_of_n`.
        batch_size: particles per call of the pipeline; memory and speed.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        The particles: `images`, `scores`, `log_weights`, `lineages`, `seeds` (in which each began), `latents` (their
        initial noise), `log` (a `Checkpoint` for each checkpoint), `nfe`. `fk_steering(pipe, reward,
        **result.settings)` makes all of them again, `redraw(pipe, result, index)` one of them. Particles of weight 0
        are left out and counted in `failed`; the weights of the others make up for it, so that means stay unbiased.

    Raises:
        ValueError: a bad argument; a deterministic scheduler without eta; a pipeline or scheduler that cannot be
            stopped and resumed; no particle can be used.

    Source:
        Singhal et al. (2025), "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
        https://arxiv.org/abs/2501.06848. Ours differs: weights are logarithms and are carried when there is no
        resampling; resampling is systematic, not multinomial; any stochastic solver, not DDIM alone.
    """
    seeds = tuple(range(particles)) if seeds is None else tuple(int(seed) for seed in seeds)
    _check(particles, lambda_, seeds, checkpoints, potential, resample_below, batch_size)
    swarm, margin, progress = Particles(seeds, lambda_, potential), margin_of(reward), progress_bar(pipe)
    batches = chunks(range(particles), batch_size)  # of indices of particles
    log: list[Checkpoint] = []
    dropped: list[Dropped] = []
    candidates: list[Candidate] = []
    with ancestral(pipe, eta) as step, guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        look = find_decoder(pipe, decoder, **size_of(pipe_kwargs))
        for share in checkpoints:
            if swarm.state is not None and position_of(share, swarm.state.total) <= swarm.state.position:
                continue  # two checkpoints in one step
            states: list[SamplerState] = []
            margins: list[float] = []
            failures: list[str | None] = []
            for batch in progress(batches, desc=f"particles to {share:.0%}"):
                state = None if swarm.state is None else swarm.state.select(batch)
                generators = seeded([swarm.seeds[index] for index in batch], step)
                state, images = predict_at(pipe, share, generators, state, look, pipe_kwargs)
                batch_margins, batch_failures = score_candidates(images, margin)
                states.append(state)
                margins += batch_margins
                failures += batch_failures
            dropped += dropped_failures(swarm.seeds, share, failures)
            check_some_left(failures.count(None), dropped)
            swarm.state = join_states(states)
            log.append(swarm.reweight(share, margins, resample_below))
        margins = []
        for batch in progress(batches, desc="particles to the end"):
            call, run = call_arguments(pipe_kwargs, len(batch)), functools.partial(_finish, pipe, swarm, batch, step)
            drawn = draw(pipe, reward, [swarm.seeds[index] for index in batch], call, run)
            candidates += drawn
            images = torch.stack([candidate.image for candidate in drawn])
            margins += score_candidates(images, margin, [candidate.failure is not None for candidate in drawn])[0]
    swarm.reweight_finished(margins)
    finite = swarm.log_weights.isfinite()
    candidates = [
        candidate if has_weight else replace(candidate, failure=candidate.failure or NO_SCORE)
        for candidate, has_weight in zip(candidates, finite.tolist(), strict=True)
    ]
    settings = {"particles": particles, "lambda_": lambda_, "seeds": seeds, "checkpoints": tuple(checkpoints)}
    settings |= {"potential": potential, "resample_below": resample_below, "eta": eta, "batch_size": batch_size}
    return result_of(
        candidates,
        dropped,
        settings={**pipe_kwargs, **settings, "guidance": guidance, "decoder": decoder},
        log=tuple(log),
        log_weights=swarm.log_weights[finite] + math.log(max(int(finite.sum()), 1) / particles),
        lineages=tuple(lineage for lineage, kept in zip(swarm.lineages, finite.tolist(), strict=True) if kept),
        nfe=sum(rows),
    )


def _finish(
    pipe: Any,
    swarm: Particles,
    batch: Sequence[int],
    step: AncestralStep | None,
    *,
    generator: Sequence[torch.Generator],
    **call: Any,
) -> Any:
    """Run the pipeline to its end for some of the particles."""
    if step is not None:
        step.generators = generator
    if swarm.state is None:  # there were no checkpoints
        return pipe(**call, generator=generator)
    return resume(pipe, generator, swarm.state.select(batch), **call)


def _check(
    particles: int,
    lambda_: float,
    seeds: Sequence[int],
    checkpoints: Sequence[float],
    potential: str,
    resample_below: float,
    batch_size: int,
) -> None:
    if particles < 2 or len(set(seeds)) != particles:
        raise ValueError(
            f"got {len(seeds)} seeds, {len(set(seeds))} of them different, for particles={particles}; expected at least"
            " 2 particles and a different seed for each."
        )
    if not math.isfinite(lambda_):
        raise ValueError(f"lambda_ is {lambda_}; expected a finite number.")
    check_shares("checkpoints", checkpoints)
    if potential not in ("difference", "max"):
        raise ValueError(f"potential is {potential!r}; expected 'difference' or 'max'.")
    if not 0 < resample_below <= 1:
        raise ValueError(f"resample_below is {resample_below}; expected more than 0 and at most 1.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
