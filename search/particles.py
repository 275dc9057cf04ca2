"""The particles of Feynman-Kac steering between two checkpoints: their states, weights and lineages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .calls import seeded_generators
from .sampler_state import SamplerState


@dataclass(frozen=True)
class Checkpoint:
    """What happened to the particles at one checkpoint."""

    share: float
    """Of the steps that have been made."""
    margins: tuple[float, ...]
    """Of the denoised predictions; NaN for a particle that cannot be used."""
    log_weights: tuple[float, ...]
    """Before any resampling; -inf for a particle that cannot be used."""
    ess: float
    """Effective sample size, between 1 and the number of particles."""
    ancestors: tuple[int, ...] | None
    """The index of the particle from which each one continues; None where they were not resampled."""


class Particles:
    """N particles.

    Args:
        seeds: one for each particle.
        lambda_: factor of the margin.
        potential: "difference" or "max", see `fk_steering`.
    """

    def __init__(self, seeds: Sequence[int], lambda_: float, potential: str) -> None:
        self.seeds = list(seeds)  # in which each particle began
        self.lineages: list[tuple[tuple[float, int], ...]] = [((0.0, seed),) for seed in seeds]
        self.log_weights = torch.zeros(len(seeds), dtype=torch.float64)
        self.state: SamplerState | None = None
        self._lambda, self._potential = lambda_, potential
        self._potentials = torch.zeros_like(self.log_weights)  # sum of all log potentials of a particle so far
        self._highest = torch.full_like(self.log_weights, -math.inf)  # margin so far
        entropy = np.random.SeedSequence([seed % 2**64 for seed in seeds]).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator().manual_seed(int(entropy) >> 1)

    def __len__(self) -> int:
        return len(self.seeds)

    def reweight(self, share: float, margins: Sequence[float], resample_below: float) -> Checkpoint:
        """Multiply each weight by the potential of its margin, and resample if few particles hold most of the weight.

        A particle whose margin is not finite gets the weight 0, and resampling replaces it. One margin at least must be
        finite.

        Args:
            share: of the steps that have been made.
            margins: of the denoised predictions.
            resample_below: the effective sample size, as a share of the particles, below which to resample.
        """
        values = torch.tensor(margins, dtype=torch.float64)
        self._highest = self._highest.maximum(values)  # NaN stays NaN
        if self._potential == "difference":
            self._add(self._lambda * values - self._potentials)
        else:
            self._add(self._lambda * self._highest)
        ess, log_weights = effective_sample_size(self.log_weights), tuple(self.log_weights.tolist())
        resamples = resample_below == 1 or ess < resample_below * len(self) or not values.isfinite().all()
        ancestors = tuple(self._resample(share)) if resamples else None
        return Checkpoint(share, tuple(margins), log_weights, ess, ancestors)

    def reweight_finished(self, margins: Sequence[float]) -> None:
        """Let the potentials of each particle add up to lambda_ * the margin of its picture; weight 0 if it is NaN."""
        self._add(self._lambda * torch.tensor(margins, dtype=torch.float64) - self._potentials)

    def _add(self, potentials: Tensor) -> None:
        self.log_weights = (self.log_weights + potentials).where(potentials.isfinite(), -math.inf)
        self._potentials = self._potentials + potentials

    def _resample(self, share: float) -> list[int]:
        """Continue heavy particles in several copies and light ones not at all; all weights are equal afterwards."""
        ancestors = systematic(self.log_weights, self._generator)
        self.state = self.state.select(ancestors)
        self._potentials, self._highest = self._potentials[ancestors], self._highest[ancestors]
        self.seeds = [self.seeds[ancestor] for ancestor in ancestors]
        self.lineages = [self.lineages[ancestor] for ancestor in ancestors]
        mean = torch.logsumexp(self.log_weights, 0) - math.log(len(ancestors))
        self.log_weights = mean.expand(len(ancestors)).clone()
        self._reseed(share, [index for index in range(1, len(ancestors)) if ancestors[index] == ancestors[index - 1]])
        return ancestors

    def _reseed(self, share: float, copies: Sequence[int]) -> None:
        """Give these particles noise of their own from here on; the first copy of each ancestor keeps its generator."""
        generators = list(self.state.generators)
        for index in copies:
            seed = int(torch.randint(2**62, (), generator=self._generator))
            generators[index] = seeded_generators([seed])[0].get_state()
            self.lineages[index] += ((share, seed),)
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
    edges = edges / edges[-1]  # exactly 1, so that no point lies behind the last particle with a weight
    points = (torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)) / count
    return torch.searchsorted(edges, points, right=True).tolist()
