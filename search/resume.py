"""Stop a pipeline call of diffusers in the middle and resume it later, with all or some of its samples.

A pipeline cannot shrink its batch, but it can be called again with a smaller one. Up to the position of the saved state
its denoiser is not evaluated and its scheduler makes no step; there the state is loaded, and the call continues.
"""

import functools
import inspect
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..guidance.diffusers.clipping import clipping_of
from ..guidance.diffusers.denoiser import denoisers_of, silenced
from ..guidance.diffusers.guided_step import GuidedStep
from ..guidance.diffusers.replace import replaced
from ..guidance.diffusers.schedulers import adapter_for
from ..guidance.prediction import denoised_from_output
from .halving import position_of
from .sampler_state import (
    SamplerState,
    check_scheduler,
    draws_noise,
    load_scheduler_state_dict,
    scheduler_state_dict,
)


def run_until(
    pipe: Any,
    share: float,
    generator: Sequence[torch.Generator],
    state: SamplerState | None = None,
    **call: Any,
) -> tuple[SamplerState, Tensor]:
    """Call a pipeline until a share of its evaluations has been made, then stop it.

    Args:
        pipe: a diffusers pipeline with a scheduler of `schedulers.SCHEDULERS`.
        share: of the evaluations of the run, in (0, 1].
        generator: one for each sample, as seeded for the beginning of the run.
        state: from where to continue; None to begin.
        **call: arguments of the pipeline, for as many samples.

    Returns:
        The state there; and the prediction of the clean latents (N, ...) of that evaluation, float32.

    Raises:
        ValueError: this pipeline or scheduler cannot be resumed, or `state` is of another run.
    """
    with _step_replaced(pipe, generator, state, share):
        try:
            pipe(**call, generator=list(generator))
        except _Stopped as stopped:
            getattr(pipe, "maybe_free_model_hooks", lambda: None)()
            return stopped.state, stopped.denoised
    raise ValueError(
        f"{type(pipe).__name__} has finished without reaching {share:.0%} of its evaluations on its own scheduler; it"
        " cannot be stopped in the middle."
    )


def resume(pipe: Any, generator: Sequence[torch.Generator], state: SamplerState, **call: Any) -> Any:
    """Call a pipeline from a state to its end; arguments as for `run_until`.

    Returns:
        What the pipeline returns.
    """
    with _step_replaced(pipe, generator, state, None) as step:
        result = pipe(**call, generator=list(generator))
    if step.made <= state.position:
        raise ValueError(
            f"{type(pipe).__name__} has made {step.made} steps; expected more than {state.position}, where the state"
            " is from: resume with the arguments of the first call."
        )
    return result


def check_resumable(pipe: Any) -> None:
    """Refuse a pipeline that cannot be stopped and resumed.

    Raises:
        ValueError: with the reason.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not denoisers_of(pipe):
        raise ValueError(
            f"got a {type(pipe).__name__}; expected a diffusers pipeline with a scheduler and a unet or transformer."
        )
    adapter_for(scheduler)
    check_scheduler(scheduler)
    if any(getattr(module, "is_cache_enabled", False) for module in denoisers_of(pipe)):
        raise ValueError(
            "the denoiser keeps a cache from step to step, which cannot be carried over to another batch; call its"
            " disable_cache() first."
        )


@contextmanager
def _step_replaced(pipe: Any, generators: Sequence[torch.Generator], state: SamplerState | None, share: float | None):
    check_resumable(pipe)
    with ExitStack() as silence:
        step = _ResumedStep(pipe, generators, state, share, silence)
        with replaced(pipe.scheduler, "step", step):
            yield step


class _Stopped(Exception):
    """Raised out of the pipeline where it is to stop."""

    def __init__(self, state: SamplerState, denoised: Tensor) -> None:
        self.state, self.denoised = state, denoised


class _NoStep(tuple):
    """The result of a step that is not made: a tuple and an output object, since pipelines read either."""

    prev_sample = property(lambda self: self[0])


class _ResumedStep:
    """Replaces the scheduler's step, guided or not, during one call of the pipeline."""

    def __init__(
        self,
        pipe: Any,
        generators: Sequence[torch.Generator],
        state: SamplerState | None,
        share: float | None,
        silence: ExitStack,
    ) -> None:
        self.made = 0
        self._pipe, self._scheduler, self._original = pipe, pipe.scheduler, pipe.scheduler.step
        self._generators, self._state, self._share, self._silence = generators, state, share, silence
        self._signature = inspect.signature(self._original)
        functools.update_wrapper(self, self._original, updated=())  # pipelines ask the signature for eta and generator
        if state is not None:
            silence.enter_context(silenced(pipe, state.model_output))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise ValueError(f"{type(self._pipe).__name__} works on a copy of its scheduler; it cannot be resumed.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        arguments, index = bound.arguments, self.made
        self.made += 1
        if draws_noise(self._scheduler) and arguments.get("generator") is None:
            raise ValueError(
                f"{type(self._pipe).__name__} gives {type(self._scheduler).__name__} no generator for the noise that it"
                " adds, so a sample could not be made again; choose a scheduler that adds none."
            )
        if index == 0:
            self._check_generators()
        saved = -1 if self._state is None else self._state.position
        if index < saved:
            return _NoStep([arguments["sample"]] * 2)
        if index == saved:
            self._load_state(arguments)
        if self._share is not None and index == position_of(self._share, self._total()):
            raise _Stopped(*self._save_state(arguments, index))
        return self._original(*bound.args, **bound.kwargs)

    def _total(self) -> int:
        return getattr(self._pipe, "num_timesteps", None) or len(self._scheduler.timesteps)

    def _check_generators(self) -> None:
        """What has been drawn before the first step must have come from each sample's own generator."""
        self._prepared = [generator.get_state() for generator in self._generators]
        if self._state is None or all(map(torch.equal, self._prepared, self._state.prepared)):
            return
        raise ValueError(
            f"{type(self._pipe).__name__} has not prepared these samples as before: the generators are others, or it"
            " draws for a whole batch from the generator of one sample; then use batch_size=1."
        )

    def _load_state(self, arguments: dict[str, Any]) -> None:
        state, sample = self._state, arguments["sample"]
        got = (float(arguments["timestep"]), self._total(), tuple(sample.shape))
        expected = (state.timestep, state.total, tuple(state.latents.shape))
        if got != expected:
            raise ValueError(
                f"the pipeline is at timestep {got[0]} of {got[1]} evaluations with latents {got[2]}; expected"
                f" {expected[0]}, {expected[1]} and {expected[2]}: resume with the arguments of the first call."
            )
        self._silence.close()
        load_scheduler_state_dict(self._scheduler, state.scheduler, sample.device)
        for generator, generator_state in zip(self._generators, state.generators, strict=True):
            generator.set_state(generator_state)
        if state.guidance is not None:
            self._guided().load_state_dict(state.guidance, sample.device)
        arguments["sample"] = state.latents.to(sample.device)
        arguments["model_output"] = state.model_output.to(sample.device)

    def _guided(self) -> GuidedStep:
        if not isinstance(self._original, GuidedStep):
            raise ValueError("the state is of a guided run; expected to resume it inside guided(), as before.")
        return self._original

    def _save_state(self, arguments: dict[str, Any], index: int) -> tuple[SamplerState, Tensor]:
        scheduler, sample, output = self._scheduler, arguments["sample"], arguments["model_output"]
        if getattr(scheduler, "step_index", 0) is None:
            scheduler._init_step_index(arguments["timestep"])
        step = adapter_for(scheduler).coefficients(scheduler, arguments["timestep"])
        levels = (step.alpha, step.sigma, step.prediction_type)
        prediction = output.float().split(sample.shape[1], dim=1)[0]  # some models put out their variance, too
        denoised = denoised_from_output(prediction, sample.float(), *levels)
        clipping = clipping_of(scheduler, denoised)
        guided = isinstance(self._original, GuidedStep) and index > 0
        state = SamplerState(
            position=index,
            total=self._total(),
            timestep=float(arguments["timestep"]),
            latents=sample.detach().to("cpu", copy=True),
            model_output=output.detach().to("cpu", copy=True),
            scheduler=scheduler_state_dict(scheduler, len(sample)),
            generators=[generator.get_state() for generator in self._generators],
            prepared=self._prepared,
            guidance=self._original.state_dict() if guided else None,
        )
        return state, denoised if clipping is None else clipping.apply(denoised)
