"""What is done to a gradient before it becomes a push: plain functions of tensors whose samples are apart, (N, ...)."""

import torch
from torch import Tensor


def unit_rms(tensor: Tensor) -> Tensor:
    """Each sample of (N, ...) scaled to root mean square 1; a sample that is 0 everywhere stays so."""
    largest = tensor.flatten(1).abs().amax(1)
    tensor = tensor / per_sample(largest.clamp_min(torch.finfo(tensor.dtype).tiny), tensor)  # squares must not vanish
    return tensor / per_sample(rms(tensor).clamp_min(1e-12), tensor)


def moving_average(average: Tensor, new: Tensor, passed: float, half_life: float) -> Tensor:
    """Exponential moving average: the old value keeps 0.5 ** (passed / half_life); `new` alone for half_life 0."""
    if half_life == 0:
        return new
    keep = 0.5 ** (max(passed, 0.0) / half_life)
    return keep * average + (1 - keep) * new


def fade(scores: Tensor, target: float | None, width: float) -> Tensor:
    """Strength (N,) in [0, 1] of the push: 1 up to `target - width`, linearly down to 0 at `target`; 1 without one."""
    return torch.ones_like(scores) if target is None else ((target - scores) / width).clamp(0, 1)


def within_trust_region(drift: Tensor, radius: float | None) -> Tensor:
    """Samples (N, ...) whose root mean square is above `radius`, scaled down to it; None for no limit."""
    if radius is None:
        return drift
    return drift * per_sample((radius / rms(drift).clamp_min(1e-12)).clamp(max=1.0), drift)


def rms(tensor: Tensor) -> Tensor:
    """Root mean square of each sample of (N, ...); (N,)."""
    return tensor.flatten(1).square().mean(1).sqrt()


def all_finite(tensor: Tensor) -> Tensor:
    """Whether each sample of (N, ...) is finite everywhere; (N,)."""
    return tensor.flatten(1).isfinite().all(1)


def zero_unless(kept: Tensor, tensor: Tensor) -> Tensor:
    """(N, ...) with 0 for the samples that are not `kept` (N,)."""
    return torch.where(per_sample(kept, tensor), tensor, 0.0)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(N,) in a shape that broadcasts over (N, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
