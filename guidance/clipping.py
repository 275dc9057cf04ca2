"""Clipping and thresholding that a scheduler applies to its own prediction of the clean latent."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CLIPS = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "HeunDiscreteScheduler")
_THRESHOLDS = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class Clipping:
    """denoised -> clamp(denoised, -limit, limit) / divisor."""

    limit: Tensor | float
    divisor: Tensor | float = 1.0

    def apply(self, denoised: Tensor) -> Tensor:
        """The prediction as the scheduler goes on with it."""
        return self._clamp(denoised) / self.divisor

    def change_before(self, denoised: Tensor, change: Tensor) -> Tensor:
        """The change of `denoised` before clipping that makes `change`, or what can be had of it, after clipping.

        Zero where `denoised` itself is clipped: there a change is lost on the prediction but not on the noise that
        DDIM takes from the same output, so it would push backwards.
        """
        free = denoised.abs() <= self.limit
        return torch.where(free, self._clamp(denoised + change * self.divisor) - denoised, 0.0)

    def _clamp(self, values: Tensor) -> Tensor:
        if isinstance(self.limit, Tensor):
            return values.maximum(-self.limit).minimum(self.limit)
        return values.clamp(-self.limit, self.limit)


def clipping_of(scheduler: Any, denoised: Tensor) -> Clipping | None:
    """The clipping a diffusers scheduler would apply to `denoised`, or None.

    Raises:
        ValueError: for DDIM with dynamic thresholding, which keeps the noise of the prediction before thresholding, so
            that no model output can express a change of the prediction after it.
    """
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    config = scheduler.config
    if getattr(config, "thresholding", False):
        if "DDIMScheduler" in names:
            raise ValueError(
                "the scheduler is DDIM with thresholding=True, with which the prediction cannot be guided consistently;"
                " set thresholding=False (it is meant for pixels, not for latents)."
            )
        if names.intersection(_THRESHOLDS):
            return _threshold(config, denoised)
    if getattr(config, "clip_sample", False) and names.intersection(_CLIPS):
        return Clipping(config.clip_sample_range)
    return None


def _threshold(config: Any, denoised: Tensor) -> Clipping:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", section 2.3, https://arxiv.org/abs/2205.11487)."""
    size = torch.quantile(denoised.abs().flatten(1), config.dynamic_thresholding_ratio, dim=1)
    limit = size.clamp(1, config.sample_max_value).reshape(-1, *[1] * (denoised.ndim - 1))
    return Clipping(limit, limit)
