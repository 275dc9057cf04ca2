"""Clipping and thresholding that a scheduler applies to its own prediction of the clean latent."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CLIPS = ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler")
_THRESHOLDS = (
    "DDIMScheduler",
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

    keeps_noise: bool = False
    """Whether the scheduler goes on with the noise of the prediction before clipping (DDIM)."""

    def apply(self, denoised: Tensor) -> Tensor:
        """The prediction as the scheduler goes on with it."""
        return self._clamp(denoised) / self.divisor

    def moves(self, denoised: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
        """How to move the noisy latent and the prediction before clipping, so that after the step `push` remains.

        Nothing moves where `denoised` is clipped: there the scheduler would not see the change.

        Returns:
            (move of the noisy latent, in x / alpha; move of `denoised`).
        """
        free = denoised.abs() <= self.limit
        move = torch.where(free, self._clamp(denoised + push * self.divisor) - denoised, 0.0)
        return (move if self.keeps_noise else move / self.divisor), move

    def _clamp(self, values: Tensor) -> Tensor:
        if isinstance(self.limit, Tensor):
            return values.maximum(-self.limit).minimum(self.limit)
        return values.clamp(-self.limit, self.limit)


def clipping_of(scheduler: Any, denoised: Tensor) -> Clipping | None:
    """The clipping a diffusers scheduler would apply to `denoised`, or None."""
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    config = scheduler.config
    keeps_noise = "DDIMScheduler" in names
    if getattr(config, "thresholding", False) and names.intersection(_THRESHOLDS):
        limit = _threshold(config, denoised)
        return Clipping(limit, limit, keeps_noise)
    if getattr(config, "clip_sample", False) and names.intersection(_CLIPS):
        return Clipping(config.clip_sample_range, keeps_noise=keeps_noise)
    return None


def _threshold(config: Any, denoised: Tensor) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", section 2.3, https://arxiv.org/abs/2205.11487)."""
    size = torch.quantile(denoised.abs().flatten(1), config.dynamic_thresholding_ratio, dim=1)
    return size.clamp(1, config.sample_max_value).reshape(-1, *[1] * (denoised.ndim - 1))
