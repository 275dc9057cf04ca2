"""Guidance in diffusers: `guided(pipe, guidance)` around pipeline calls, `RewardGuidanceCallback` inside one.

Both wrap `pipe.scheduler.step` on this one scheduler object, where every pipeline hands over the finished model output
(after classifier-free guidance, its sign settled) together with the noisy latents and the timestep.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.callbacks import PipelineCallback
from diffusers.configuration_utils import register_to_config

from ..evaluation import Evaluation
from ..reward_guidance import RewardGuidance
from .decoders import local_tiny
from .guided_step import GuidedStep

logger = logging.getLogger(__name__)

__all__ = ["RewardGuidanceCallback", "guided"]


@contextmanager
def guided(
    pipe: Any, guidance: RewardGuidance, *, height: int | None = None, width: int | None = None
) -> Iterator[GuidedStep]:
    """Guide every call of a diffusers pipeline inside the block.

    Args:
        pipe: a pipeline whose scheduler is in `schedulers.SCHEDULERS`.
        guidance: settings; without a decoder of its own, `decoders.find_decoder` finds one for the pipeline.
        height: of the pictures, in pixels; only for packed latents whose size cannot be seen otherwise.
        width: of the pictures, in pixels.

    Yields:
        A handle: its `log` holds the evaluations of the latest call, its `runs` those of every call.

    Raises:
        ValueError: if the scheduler or the layout of the pipeline's latents is not known.

    Notes:
        The scheduler is left as it was found, also after an exception or an interrupt. If guidance has not changed
        anything although its scale is not 0, a warning at the end says why.

    Example:
        >>> with guided(pipe, RewardGuidance(reward)) as run:  # doctest: +SKIP
        ...     image = pipe("a lighthouse at dusk").images[0]
        >>> [entry.score_before for entry in run.log]  # doctest: +SKIP
    """
    step = GuidedStep(pipe, guidance, height=height, width=width, load_tiny=local_tiny)
    step.install()
    try:
        yield step
    finally:
        step.remove()
    step.warn_if_idle()


class RewardGuidanceCallback(PipelineCallback):
    """Guidance as a pipeline's `callback_on_step_end`, for code that has no room for a `with` block.

    A callback is called after each step, so on its own it can guide from the second evaluation on. Given the pipeline
    it guides from the first: it then wraps the scheduler's step at once. It guides one pipeline call and takes itself
    away at its last step; for another call make a new one, or call `arm(pipe)` again.

    A callback sees neither an interrupt nor an exception in the denoiser. After one of these the scheduler stays
    wrapped until the next pipeline call begins, at which the wrapper takes itself away before doing anything;
    `remove()` does it at once. Where this matters, use `guided`.

    Args:
        guidance: settings.
        pipe: the pipeline, to guide from the first evaluation.
        height: of the pictures, in pixels; only for packed latents (Flux) whose size cannot be seen, that is without
            `pipe`.
        width: of the pictures, in pixels.

    Raises:
        ValueError: if the scheduler or the layout of the pipeline's latents is not known.

    Example:
        >>> callback = RewardGuidanceCallback(RewardGuidance(reward), pipe)  # doctest: +SKIP
        >>> pipe("a lighthouse at dusk", callback_on_step_end=callback)  # doctest: +SKIP
    """

    ignore_for_config = ["guidance", "pipe", "height", "width"]  # noqa: RUF012 - diffusers reads a list here; neither is JSON
    tensor_inputs = ["latents"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self, guidance: RewardGuidance, pipe: Any = None, *, height: int | None = None, width: int | None = None
    ) -> None:
        self.guidance = guidance
        self._size = {"height": height, "width": width}
        self._step: GuidedStep | None = None
        if pipe is not None:
            self.arm(pipe)

    @property
    def log(self) -> list[Evaluation]:
        """The evaluations of the latest pipeline call."""
        return self._step.log if self._step is not None else []

    def arm(self, pipe: Any) -> None:
        """Guide the next call of the pipeline from its first evaluation on."""
        self.remove()
        self._step = GuidedStep(pipe, self.guidance, single_run=True, load_tiny=local_tiny, **self._size)
        self._step.install()

    def remove(self) -> None:
        """Leave the scheduler as it was found; harmless when done already."""
        if self._step is not None:
            self._step.remove()

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict) -> dict:
        """Called by the pipeline after each step; changes none of the tensors it is given."""
        steps = getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        if not self._watches(pipeline):
            self.arm(pipeline)
            if self.guidance.scale != 0:
                logger.warning(
                    "RewardGuidanceCallback was not armed before this run, so it guides after evaluation %d of %d only;"
                    " give it the pipeline to guide from the first: RewardGuidanceCallback(guidance, pipe).",
                    step_index + 1,
                    steps,
                )
        if step_index + 1 >= steps:
            self.remove()
            self._step.warn_if_idle()
        return callback_kwargs

    def _watches(self, pipeline: Any) -> bool:
        return self._step is not None and self._step.active and self._step.scheduler is pipeline.scheduler
