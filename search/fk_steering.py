"""Feynman-Kac steering: particles that are resampled on their way by what a reward says of their predictions."""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import counted_rows
from ..guidance.reward_guidance import RewardGuidance
from ..rerank import Ranking, best_first
from ..rewards import margin_of
from .ancestral import AncestralStep, ancestral, seeded
from .candidates import call_arguments, chunks, drawn, guided_calls, scored, size_of
from .halving import check_shares, position_of
from .resume import run_on, run_to
from .sampler_state import SamplerState, joined

CHECKPOINTS = (0.2, 0.4, 0.6, 0.8)
"""Shares of the steps after which particles are weighed, by default."""


@dataclass(frozen=True)
class Weighing:
    """What happened to the particles at one checkpoint."""

    share: float
    """Of the steps that have been made."""
    margins: tuple[float, ...]
    """Of the denoised predictions."""
    log_weights: tuple[float, ...]
    """Before any resampling."""
    ess: float
    """Effective sample size, between 1 and the number of particles."""
    ancestors: tuple[int, ...] | None
    """From which particle each one goes on; None where they were not resampled."""


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
) -> Ranking:
    """Sample from p(x) * exp(lambda_ * margin(x)), where p is what the pipeline samples from, by particles.

    At each checkpoint a particle is weighed by how much the margin of its denoised prediction has risen. Weights are
    logarithms and are carried on; when few particles hold most of the weight, they are resampled (systematically): the
    light ones go, the heavy ones go on in several copies, each with noise of its own, and with the solver's history,
    the guidance's state and everything else that belongs to a sample. The last weights are those of the finished
    pictures, so with any number of particles, mean(exp(log_weights) * f(images)) estimates E_p[f * exp(lambda_ *
    margin)] without bias.

    Args:
        pipe: a diffusers pipeline that can be left and entered again, as for `best_of_n(halving=...)`.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; need not be differentiable. Its `margin`
            is what weighs, where it has one, since scores saturate.
        particles: how many, at least 2.
        lambda_: per unit of the margin, which is its spread over clean photographs.
        seeds: one for each particle; 0 ... particles-1 by default. They also seed the resampling.
        checkpoints: shares of the evaluations of a run, rising in (0, 1).
        potential: "difference" weighs by lambda_ * (margin - that at the last checkpoint); "max" by lambda_ * the
            highest margin so far at every checkpoint, which resamples harder; the last weight makes up for it.
        resample_below: resample when the effective sample size is below this share of the particles; 1 for always.
        eta: None for a scheduler that adds noise by itself. In (0, 1] makes a deterministic one ancestral: in each step
            this share of the noise is fresh, as eta of DDIM. 1 wants many steps (the paper's have 100); with 25, 0.5
            leaves the pictures cleaner.
        guidance: with which the particles are guided; p is then the distribution of guided samples.
        decoder: with which predictions are looked at; as in `best_of_n`.
        batch_size: particles per call of the pipeline; memory and speed.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        A `Ranking` of the particles: `images`, `scores`, `log_weights`, `lineages`, `seeds` (in which each began),
        `latents` (their initial noise), `log` (a `Weighing` for each checkpoint), `nfe`. `fk_steering(pipe, reward,
        **ranking.settings)` makes all of them again, `redraw(pipe, ranking, index)` one of them.

    Raises:
        ValueError: a bad argument; a deterministic scheduler without eta; a pipeline or scheduler that cannot be left
            and entered again.

    Source:
        Singhal et al. (2025), "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
        https://arxiv.org/abs/2501.06848. Ours differs: weights are logarithms and are carried when there is no
        resampling; resampling is systematic, not multinomial; any stochastic solver, not DDIM alone.
    """
    seeds = tuple(range(particles)) if seeds is None else tuple(int(seed) for seed in seeds)
    _check(particles, lambda_, seeds, checkpoints, potential, resample_below, batch_size)
    cloud = _Cloud(seeds, lambda_, potential)
    quiet = getattr(pipe, "_progress_bar_config", {}).get("disable", False)
    progress = functools.partial(tqdm, disable=quiet or None)
    lanes, margin = chunks(range(particles), batch_size), margin_of(reward)
    with ancestral(pipe, eta) as made, guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        look = find_decoder(pipe, decoder, **size_of(pipe_kwargs))
        log: list[Weighing] = []
        for share in checkpoints:
            if cloud.state is not None and position_of(share, cloud.state.total) <= cloud.state.position:
                continue  # two checkpoints in one step
            parts = [
                _to(pipe, margin, cloud, part, share, look, made, pipe_kwargs)
                for part in progress(lanes, desc=f"particles to {share:.0%}")
            ]
            cloud.state = joined([state for state, _ in parts])
            cloud.weigh([value for _, margins in parts for value in margins])
            log.append(cloud.resample(share, resample_below))
        found = [
            candidate
            for part in progress(lanes, desc="particles to the end")
            for candidate in _finished(pipe, reward, cloud, part, made, pipe_kwargs)
        ]
    _, images, scores, latents = zip(*found, strict=True)
    pictures = torch.stack(images)
    margins = [
        value for part in lanes for value in scored(pictures[list(part)], margin, [cloud.roots[i] for i in part])
    ]
    cloud.weigh_finished(margins)
    scores = torch.tensor(scores, dtype=torch.float32)
    settings = {"particles": particles, "lambda_": lambda_, "seeds": seeds, "checkpoints": tuple(checkpoints)}
    settings |= {"potential": potential, "resample_below": resample_below, "eta": eta, "batch_size": batch_size}
    return Ranking(
        images=pictures,
        scores=scores,
        order=best_first(scores),
        seeds=tuple(cloud.roots),
        latents=None if latents[0] is None else torch.stack(latents),
        settings={**pipe_kwargs, **settings, "guidance": guidance, "decoder": decoder},
        log=tuple(log),
        log_weights=cloud.log_weights,
        lineages=tuple(cloud.lineages),
        nfe=sum(rows),
    )


class _Cloud:
    """The particles between two checkpoints: their states on the CPU, their weights, and where they come from."""

    def __init__(self, seeds: Sequence[int], lambda_: float, potential: str) -> None:
        self.roots = list(seeds)  # the seed in which each particle began
        self.lineages: list[tuple[tuple[float, int], ...]] = [((0.0, seed),) for seed in seeds]
        self.log_weights = torch.zeros(len(seeds), dtype=torch.float64)
        self.state: SamplerState | None = None
        self._lambda, self._potential = lambda_, potential
        self._spent = torch.zeros_like(self.log_weights)  # all log potentials of a particle so far
        self._highest = torch.full_like(self.log_weights, -math.inf)
        entropy = np.random.SeedSequence([seed % 2**64 for seed in seeds]).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator().manual_seed(int(entropy >> 1))

    def weigh(self, margins: Sequence[float]) -> None:
        """Multiply each weight by the potential of its margin."""
        self._margins = torch.tensor(margins, dtype=torch.float64)
        self._highest = self._highest.maximum(self._margins)
        if self._potential == "difference":
            self._add(self._lambda * self._margins - self._spent)
        else:
            self._add(self._lambda * self._highest)

    def weigh_finished(self, margins: Sequence[float]) -> None:
        """Make all potentials of a particle come to lambda_ * margin of its picture."""
        self._add(self._lambda * torch.tensor(margins, dtype=torch.float64) - self._spent)

    def _add(self, potentials: Tensor) -> None:
        self.log_weights = self.log_weights + potentials
        self._spent = self._spent + potentials

    def resample(self, share: float, below: float) -> Weighing:
        """Let particles of much weight go on in several copies if the effective sample size is low."""
        ess = effective_sample_size(self.log_weights)
        note = Weighing(share, tuple(self._margins.tolist()), tuple(self.log_weights.tolist()), ess, None)
        if below < 1 and ess >= below * len(self.roots):
            return note
        ancestors = systematic(self.log_weights, self._generator)
        self.state = self.state.pick(ancestors)
        for name in ("_spent", "_highest"):
            setattr(self, name, getattr(self, name)[ancestors])
        self.roots = [self.roots[ancestor] for ancestor in ancestors]
        self.lineages = [self.lineages[ancestor] for ancestor in ancestors]
        mean = torch.logsumexp(self.log_weights, 0) - math.log(len(ancestors))
        self.log_weights = mean.expand(len(ancestors)).clone()
        self._part(share, [lane for lane in range(1, len(ancestors)) if ancestors[lane] == ancestors[lane - 1]])
        return replace(note, ancestors=tuple(ancestors))

    def _part(self, share: float, copies: Sequence[int]) -> None:
        """Give these particles noise of their own from here on; the first of each ancestor keeps its stream."""
        generators = list(self.state.generators)
        for lane in copies:
            seed = int(torch.randint(2**62, (), generator=self._generator))
            generators[lane] = torch.Generator("cpu").manual_seed(seed).get_state()
            self.lineages[lane] += ((share, seed),)
        self.state = replace(self.state, generators=generators)


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum w)^2 / sum w^2 of weights exp(log_weights) (N,), between 1 and N."""
    return float((2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)).exp())


def systematic(log_weights: Tensor, generator: torch.Generator) -> list[int]:
    """Ancestors of N particles, rising: particle i gets floor or ceil of N * w_i copies, N * w_i in expectation.

    Source:
        Kitagawa (1996), "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models", appendix.
    """
    count = len(log_weights)
    edges = torch.softmax(log_weights.double(), 0).cumsum(0)
    points = (torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)) / count
    return torch.searchsorted(edges, points, right=True).clamp_max(count - 1).tolist()


def _to(
    pipe: Any,
    margin: Callable[[Tensor], Tensor],
    cloud: _Cloud,
    lanes: Sequence[int],
    share: float,
    look: Decoder,
    made: AncestralStep | None,
    given: dict[str, Any],
) -> tuple[SamplerState, list[float]]:
    """Some particles at the checkpoint: their state, and the margins of their denoised predictions."""
    roots = [cloud.roots[lane] for lane in lanes]
    state = None if cloud.state is None else cloud.state.pick(lanes)
    call = call_arguments(pipe, given, len(lanes))
    with look.watch(pipe) if hasattr(look, "watch") else nullcontext():
        state, denoised = run_to(pipe, share, seeded(roots, made), state, **call)
    if len(denoised) != len(lanes):
        raise ValueError(f"the pipeline samples {len(denoised)} pictures; expected {len(lanes)}: give one prompt.")
    with torch.no_grad():
        return state, scored(look(denoised), margin, roots)


def _finished(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    cloud: _Cloud,
    lanes: Sequence[int],
    made: AncestralStep | None,
    given: dict[str, Any],
) -> Any:
    """The pictures of some particles, as candidates."""

    def run(generator: Sequence[torch.Generator], **call: Any) -> Any:
        if made is not None:
            made.generators = generator
        return run_on(pipe, generator, cloud.state.pick(lanes), **call)

    roots = [cloud.roots[lane] for lane in lanes]
    return drawn(pipe, reward, roots, call_arguments(pipe, given, len(lanes)), run)


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
