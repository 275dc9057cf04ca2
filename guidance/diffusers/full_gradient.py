"""Gradients back through the diffusion model, of a pipeline that runs without gradients and whose code is not ours.

A pipeline's call is decorated with torch.no_grad, but whoever it calls may switch gradients on: so the latents that it
prepares, and those that each step returns, are made leaves of a graph with gradients on, and the next evaluation is
recorded with all that lies between latents and model output: classifier-free guidance, a ControlNet, an IP-Adapter.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..freeze import frozen
from .denoiser import checkpointed
from .replace import observed
from .schedulers import adapter_for


class FullGradient:
    """Records the evaluations of a pipeline that are inside a window of noise levels.

    Args:
        pipe: a diffusers pipeline.
        window: noise levels (start, stop).
    """

    def __init__(self, pipe: Any, window: tuple[float, float]) -> None:
        self._pipe, self._window = pipe, window
        self._before: bool | None = None  # whether gradients were on before the pipeline was called

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, runs begin with gradients, and the denoiser keeps no activations but computes them again."""
        networks = [part for part in self._pipe.components.values() if isinstance(part, nn.Module)]
        outside = torch.is_grad_enabled()  # what `_record` finds later is the mode inside the pipeline's call
        with ExitStack() as stack:
            stack.enter_context(frozen(networks))
            stack.enter_context(checkpointed(self._pipe))
            if hasattr(self._pipe, "prepare_latents"):
                stack.enter_context(observed(self._pipe, "prepare_latents", self._begin))
            try:
                yield
            finally:
                self._before = None
                torch.set_grad_enabled(outside)

    def _begin(self, _: Any, result: Any) -> None:
        latents = result if isinstance(result, Tensor) else result[0]
        self._before = None
        self._record(latents)

    def _record(self, latents: Tensor) -> None:
        if self._before is None:
            self._before = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        latents.requires_grad_()

    def _rest(self) -> None:
        if self._before is not None:
            torch.set_grad_enabled(self._before)
            self._before = None

    def pull_back(self, denoised: Tensor, sample: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
        """From gradients with respect to `denoised` to gradients with respect to the noisy latent `sample`.

        Raises:
            ValueError: this evaluation was not recorded.
        """
        if not (sample.requires_grad and output.requires_grad):
            raise ValueError(
                f"gradient='full' needs the evaluations of {type(self._pipe).__name__} to keep their graph, and this"
                " one has none: it ran in torch.inference_mode, in blocks without gradients of their own, with"
                " quantised activations, or was taken from a saved state (halving, particles). Use gradient='denoised'"
                " there."
            )
        return lambda gradient: torch.autograd.grad(denoised, sample, gradient.to(denoised))[0].float()

    def armed(self, result: Any, timestep: Any) -> Any:
        """The result of a step; if the next evaluation is inside the window, it will be recorded."""
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        if self._next_is_inside(timestep):
            self._record(latents)
        else:
            self._rest()
        return result

    def _next_is_inside(self, timestep: Any) -> bool:
        scheduler = self._pipe.scheduler
        index = getattr(scheduler, "step_index", None)
        if index is None:
            index = int((scheduler.timesteps == timestep).nonzero()[-1]) + 1
        if index >= len(scheduler.timesteps):
            return False
        step = adapter_for(scheduler).coefficients(scheduler, scheduler.timesteps[index])
        return step.stage.share_of(self._window) > 0
