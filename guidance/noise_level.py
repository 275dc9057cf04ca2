"""Noise levels, the window in which guidance acts, and how strong one evaluation is. Plain numbers, no tensors.

Two measures of how noisy a latent x = alpha * x0 + sigma * noise is are used here:

* `noise_level` = sigma / (alpha + sigma), in [0, 1]: 1 is pure noise, 0 is clean; for flow matching it is sigma itself.
* `ratio` = sigma / alpha, in [0, inf]: the noise in units of the clean latent (k-diffusion's sigma).
"""

import math
from dataclasses import dataclass

_ROUNDING = 1e-6  # of log(sigma / alpha)


def noise_level_of(ratio: float) -> float:
    """Noise level in [0, 1] of a noise-to-signal ratio sigma / alpha in [0, inf]."""
    return 1.0 if math.isinf(ratio) else ratio / (1.0 + ratio)


def ratio_of(noise_level: float) -> float:
    """Noise-to-signal ratio sigma / alpha in [0, inf] of a noise level in [0, 1]."""
    return math.inf if noise_level >= 1.0 else noise_level / (1.0 - noise_level)


def window_share(ratio: float, next_ratio: float, window: tuple[float, float]) -> float:
    """How much of the window one step covers, in units of log(sigma / alpha).

    The shares of all the steps of a run add up to log(high / low), however many steps there are; that is what makes
    the strength of guidance independent of their number.

    Args:
        ratio: sigma / alpha where the step begins, in (0, inf].
        next_ratio: sigma / alpha where it ends, in [0, ratio].
        window: (start, stop) noise levels, 1 > start > stop > 0.

    Returns:
        log(A / B) for the part [B, A] of [next_ratio, ratio] that lies inside the window; 0 if none does, or no more
        than rounding: schedulers keep their levels in float32, with errors of a few times 2**-24 = 6e-8.
    """
    start, stop = window
    high = min(ratio, ratio_of(start))
    low = max(next_ratio, ratio_of(stop))
    share = math.log(high / low) if high > low else 0.0
    return share if share > _ROUNDING else 0.0


@dataclass(frozen=True)
class Stage:
    """One evaluation of the diffusion model as a part of a sampler's step. All levels are sigma / alpha."""

    ratio: float
    """Where the model is evaluated."""

    start: float
    """Where the part of the schedule that this evaluation stands for begins."""

    end: float
    """Where that part ends."""

    portion: float = 1.0
    """How much of that part is its own; the rest belongs to another evaluation of the same step."""

    def share_of(self, window: tuple[float, float]) -> float:
        """Its share of a window of noise levels, in units of log(sigma / alpha)."""
        return self.portion * window_share(self.start, self.end, window)
