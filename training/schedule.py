"""The learning rate and the running average of the weights, the same for every training."""

from __future__ import annotations

import math

import torch
from torch import nn


def rate(step: int, steps: int, warmup: int = 50, last: float = 0.02, restarts: int = 0) -> float:
    """Share of the highest learning rate at a step: a linear warm-up, then a cosine down to a share of it.

    Args:
        step: steps done before this one.
        steps: of the whole run.
        warmup: steps until the highest rate.
        last: share that is left at the end of each cosine.
        restarts: how often the rate jumps back to its highest; the cosines between are equally long.

    Source:
        Loshchilov and Hutter (2017), "SGDR: Stochastic gradient descent with warm restarts", equation 5 with equal
        periods, https://arxiv.org/abs/1608.03983.
    """
    period = steps / (restarts + 1)
    return min(1.0, (step + 1) / warmup) * _cosine((step % period) / period, last)


def rate_at(share: float, warmup: float, last: float = 0.01) -> float:
    """The same for a run that ends by the clock.

    Args:
        share: of the run that is over, in [0, 1].
        warmup: share of the run until the highest rate.
        last: share of the rate that is left at the end.
    """
    return min(1.0, share / warmup + 0.02) * _cosine(share, last)


def _cosine(share: float, last: float) -> float:
    return last + (1 - last) * (1 + math.cos(math.pi * share)) / 2


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights and statistics towards the model's, in place; faster in the first steps.

    The decay is min(decay, (1 + step) / (10 + step)). Both modules have the same layout.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
