"""Leave a pipeline call in the middle and enter again later, with all or some of its samples.

A pipeline cannot shrink its batch, but it can be called again with a smaller one. Until the position of the saved state
its denoiser answers nothing and its scheduler does not step; there the state is put in place, and the call goes on.
Nothing here knows a host: pipelines are taken by what they have, as in diffusers.
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
from .sampler_state import SamplerState, check_scheduler, draws_noise, put_back, stored_by


def run_to(
    pipe: Any,
    share: float,
    generator: Sequence[torch.Generator],
    state: SamplerState | None = None,
    **call: Any,
) -> tuple[SamplerState, Tensor]:
    """Call a pipeline until a share of its evaluations has been made, then leave it.

    Args:
        pipe: a diffusers pipeline with a scheduler of `schedulers.SCHEDULERS`.
        share: of the evaluations of the run, in (0, 1].
        generator: one for each sample, as seeded for the beginning of the run.
        state: where to enter; None to begin.
        **call: what the pipeline is called with, for as many samples.

    Returns:
        The state there; and the prediction of the clean latents (N, ...) of that evaluation, float32.

    Raises:
        ValueError: this pipeline or scheduler cannot be left and entered again, or `state` is of another run.
    """
    with _standing_in(pipe, generator, state, share):
        try:
            pipe(**call, generator=list(generator))
        except _Left as left:
            getattr(pipe, "maybe_free_model_hooks", lambda: None)()
            return left.state, left.denoised
    raise ValueError(
        f"{type(pipe).__name__} has finished without reaching {share:.0%} of its evaluations on its own scheduler; it"
        " cannot be left in the middle."
    )


def run_on(pipe: Any, generator: Sequence[torch.Generator], state: SamplerState, **call: Any) -> Any:
    """Call a pipeline to its end, from a state on; arguments as for `run_to`.

    Returns:
        What the pipeline returns.
    """
    with _standing_in(pipe, generator, state, None) as step:
        result = pipe(**call, generator=list(generator))
    if step.made <= state.position:
        raise ValueError(
            f"{type(pipe).__name__} has made {step.made} steps; expected more than {state.position}, where the state"
            " is from: enter again with the arguments of the first call."
        )
    return result


def check_reentry(pipe: Any) -> None:
    """Refuse what cannot be left and entered again.

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
def _standing_in(pipe: Any, generators: Sequence[torch.Generator], state: SamplerState | None, share: float | None):
    check_reentry(pipe)
    with ExitStack() as silence:
        step = _Step(pipe, generators, state, share, silence)
        with replaced(pipe.scheduler, "step", step):
            yield step


class _Left(Exception):
    """Raised out of the pipeline at a checkpoint."""

    def __init__(self, state: SamplerState, denoised: Tensor) -> None:
        self.state, self.denoised = state, denoised


class _NoStep(tuple):
    """What a step that is left out returns, in the forms in which pipelines take it."""

    prev_sample = property(lambda self: self[0])


class _Step:
    """Stands in for the scheduler's step, guided or not, during one call of the pipeline."""

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
        raise ValueError(f"{type(self._pipe).__name__} works on a copy of its scheduler; it cannot be entered again.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        given, index = bound.arguments, self.made
        self.made += 1
        if draws_noise(self._scheduler) and given.get("generator") is None:
            raise ValueError(
                f"{type(self._pipe).__name__} gives {type(self._scheduler).__name__} no generator for the noise that it"
                " adds, so a sample could not be made again; choose a scheduler that adds none."
            )
        if index == 0:
            self._check_generators()
        entry = -1 if self._state is None else self._state.position
        if index < entry:
            return _NoStep([given["sample"]] * 2)
        if index == entry:
            self._enter(given)
        if self._share is not None and index == position_of(self._share, self._total()):
            raise _Left(*self._leave(given, index))
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

    def _enter(self, given: dict[str, Any]) -> None:
        state, sample = self._state, given["sample"]
        got = (float(given["timestep"]), self._total(), tuple(sample.shape))
        expected = (state.timestep, state.total, tuple(state.latents.shape))
        if got != expected:
            raise ValueError(
                f"the pipeline is at timestep {got[0]} of {got[1]} evaluations with latents {got[2]}; expected"
                f" {expected[0]}, {expected[1]} and {expected[2]}: enter again with the arguments of the first call."
            )
        self._silence.close()
        put_back(self._scheduler, state.scheduler, sample.device)
        for generator, own in zip(self._generators, state.generators, strict=True):
            generator.set_state(own)
        if state.guidance is not None:
            self._guided().load_state_dict(state.guidance, sample.device)
        given["sample"] = state.latents.to(sample.device)
        given["model_output"] = state.model_output.to(sample.device)

    def _guided(self) -> GuidedStep:
        if not isinstance(self._original, GuidedStep):
            raise ValueError("the state is of a guided run; expected to enter it again inside guided(), as before.")
        return self._original

    def _leave(self, given: dict[str, Any], index: int) -> tuple[SamplerState, Tensor]:
        scheduler, sample, output = self._scheduler, given["sample"], given["model_output"]
        if getattr(scheduler, "step_index", 0) is None:
            scheduler._init_step_index(given["timestep"])
        step = adapter_for(scheduler).coefficients(scheduler, given["timestep"])
        levels = (step.alpha, step.sigma, step.prediction_type)
        prediction = output.float().split(sample.shape[1], dim=1)[0]  # some models put out their variance, too
        denoised = denoised_from_output(prediction, sample.float(), *levels)
        clipping = clipping_of(scheduler, denoised)
        guided = isinstance(self._original, GuidedStep) and index > 0
        state = SamplerState(
            position=index,
            total=self._total(),
            timestep=float(given["timestep"]),
            latents=sample.detach().to("cpu", copy=True),
            model_output=output.detach().to("cpu", copy=True),
            scheduler=stored_by(scheduler, len(sample)),
            generators=[generator.get_state() for generator in self._generators],
            prepared=self._prepared,
            guidance=self._original.state_dict() if guided else None,
        )
        return state, denoised if clipping is None else clipping.apply(denoised)
