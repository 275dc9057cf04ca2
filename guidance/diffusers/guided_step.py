"""A stand-in for `step` of one scheduler object that guides the model output on its way in."""

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation import Evaluation
from ..prediction import denoised_from_output, output_change, output_shift
from ..reward_guidance import GuidanceRun, RewardGuidance
from .clipping import clipping_of
from .decoders import find_decoder
from .denoiser import denoisers_of
from .full_gradient import FullGradient
from .replace import replaced
from .schedulers import adapter_for

_HISTORY = ("model_outputs", "derivatives", "ets", "last_sample", "cur_sample", "prev_derivative", "sample")
_OWN_WAYS = ("per_token_timesteps", "r_timestep")  # arguments of `step` that leave the scheduler's own schedule
_HALF = (torch.float16, torch.bfloat16)


class GuidedStep:
    """Callable put in place of `pipe.scheduler.step`, on this one object.

    Args:
        pipe: a diffusers pipeline.
        guidance: settings.
        height: of the pictures, in pixels; for packed latents whose size cannot be seen otherwise.
        width: of the pictures, in pixels.
        single_run: take itself away when a second run begins.
        load_tiny: hub name -> an AutoencoderTiny that is on this machine, or None.

    Raises:
        ValueError: if the scheduler or the layout of the pipeline's latents is not known.
    """

    def __init__(
        self,
        pipe: Any,
        guidance: RewardGuidance,
        *,
        height: int | None = None,
        width: int | None = None,
        single_run: bool = False,
        load_tiny: Callable[[str], nn.Module | None] | None = None,
    ) -> None:
        self.scheduler = pipe.scheduler
        self.guidance = guidance
        self.runs: list[GuidanceRun] = []
        self.active = False
        self._pipe = pipe
        self._single_run = single_run
        self._adapter = adapter_for(self.scheduler)
        self._decoder = None
        if guidance.scale != 0:
            self._decoder = find_decoder(pipe, guidance.decoder, height=height, width=width, load_tiny=load_tiny)
        self._full = FullGradient(pipe, guidance.noise_window) if guidance.needs_graph else None
        self._undo = ExitStack()
        self._timesteps: Tensor | None = None  # the schedule of the run
        self._float32 = False  # whether this run has gone over to float32
        self._resumed: dict[str, Any] | None = None  # with what the next run begins
        self._copied = False  # whether somebody has deep-copied the scheduler

    @property
    def log(self) -> list[Evaluation]:
        """The evaluations of the latest pipeline call."""
        return self.runs[-1].log if self.runs else []

    def install(self) -> None:
        """Take the place of the scheduler's `step`."""
        self._original = self.scheduler.step
        self._signature = inspect.signature(self._original)
        functools.update_wrapper(self, self._original, updated=())  # pipelines ask the signature for eta and generator
        self._undo.enter_context(replaced(self.scheduler, "step", self))
        if hasattr(self._decoder, "watch"):
            self._undo.enter_context(self._decoder.watch(self._pipe))
        if self._full is not None:
            self._undo.enter_context(self._full.installed())
        if self._single_run:
            for module in denoisers_of(self._pipe):
                hook = module.register_forward_hook(self._remove_after_failure, always_call=True)
                self._undo.callback(hook.remove)
        self.active = True

    def uninstall(self) -> None:
        """Put the scheduler back as it was, in the middle of a run; harmless when done already."""
        self.active = False
        self._undo.close()

    def remove(self) -> None:
        """Put the scheduler back at the end of a run: the log stays, the tensors of the runs go."""
        self.uninstall()
        for run in self.runs:
            run.state.forget()

    def _remove_after_failure(self, module: nn.Module, args: Any, output: Any) -> None:
        if output is None:  # what hooks are given after an exception
            self.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, calls of the pipeline are not guided."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the scheduler gets its own ordinary `step`: this one would advance the original instead."""
        copy = memo.get(id(self.scheduler))
        if copy is None:
            return self
        self._copied = True
        return types.MethodType(type(copy).step, copy)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the scheduler's `step`."""
        if not self.active:
            return self._original(*args, **kwargs)
        try:
            self._follow()
            return self._guided(*args, **kwargs) if self.active else self._original(*args, **kwargs)
        except BaseException:
            if self._single_run:
                self.remove()
            raise

    def _follow(self) -> None:
        """Notice the beginning of a run: `set_timesteps` has made a new list."""
        begins = self._timesteps is not self.scheduler.timesteps or getattr(self.scheduler, "step_index", 0) is None
        self._timesteps = self.scheduler.timesteps
        if begins and self.runs and self._single_run:
            self.remove()
        elif begins or not self.runs:
            for finished in self.runs:
                finished.state.forget()
            self.runs.append(self.guidance.start(self._decoder))
            state, self._resumed = self._resumed, None
            self._float32 = state is not None and state["float32"]
            if state is not None:
                self.runs[-1].state.load_state_dict(state["run"], state["device"])

    def state_dict(self) -> dict[str, Any]:
        """What the run carries from step to step, of its samples; of the guidance around this one, too."""
        outer = self._original.state_dict() if isinstance(self._original, GuidedStep) else None
        return {"run": self.runs[-1].state.state_dict(), "float32": self._float32, "outer": outer}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Let the run that begins next go on with the `state_dict` of another."""
        self._resumed = state | {"device": device}
        if isinstance(self._original, GuidedStep):
            self._original.load_state_dict(state["outer"], device)

    def _guided(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        arguments = bound.arguments
        sample, output = arguments["sample"], arguments["model_output"]
        for name in _OWN_WAYS:
            if arguments.get(name) is not None:
                raise ValueError(
                    f"the pipeline steps with {name}; guidance needs steps from one timestep to the next of the"
                    " scheduler's list, the same for all of a sample. It does not support this pipeline."
                )
        moved = self._move(sample, output, arguments["timestep"])
        if self._full is not None:
            sample, output = arguments["sample"], arguments["model_output"] = sample.detach(), output.detach()
        if moved is None and not self._float32:
            result = self._original(*bound.args, **bound.kwargs)
        else:
            moved = (sample.float(), output.float()) if moved is None else moved
            arguments["sample"], arguments["model_output"] = moved
            result = _with_dtype(self._original(*bound.args, **bound.kwargs), sample.dtype)
        return result if self._full is None else self._full.armed(result, arguments["timestep"])

    def _move(self, sample: Tensor, output: Tensor, timestep: Any) -> tuple[Tensor, Tensor] | None:
        """Sample and model output, both float32, with the clean latent in them moved and the noise kept; None: as is.

        What the scheduler stores from earlier evaluations moves along. So a solver of any order, deterministic or not,
        sees one and the same trajectory in another place, and its own extrapolation does not amplify the push.
        """
        scheduler, run = self.scheduler, self.runs[-1]
        if getattr(scheduler, "step_index", 0) is None:
            scheduler._init_step_index(timestep)
        step = self._adapter.coefficients(scheduler, timestep)
        if run.skips(step.stage):
            return None
        prediction, *variance = output.float().split(sample.shape[1], dim=1)  # some models put out their variance, too
        levels = (step.alpha, step.sigma, step.prediction_type)
        denoised = denoised_from_output(prediction, sample.float(), *levels)
        clipping = clipping_of(scheduler, denoised)
        seen = denoised if clipping is None else clipping.apply(denoised)
        if self._full is None:
            push = run.push(seen, step.stage)
        else:
            push = run.push(seen.detach(), step.stage, self._full.pull_back(seen, sample, output))
            denoised, prediction, sample = denoised.detach(), prediction.detach(), sample.detach()
            variance = [part.detach() for part in variance]
        if push is None:
            return None
        if clipping is not None:
            push, move = clipping.moves(denoised, push)
            prediction = prediction + output_change(move - push, *levels)
        self._go_over_to_float32(sample, output)
        if self._adapter.move is not None:
            self._adapter.move(scheduler, timestep, step, push)
        prediction = prediction + output_shift(push, *levels)
        return sample.float() + step.alpha * push, torch.cat([prediction, *variance], dim=1)

    def _go_over_to_float32(self, sample: Tensor, output: Tensor) -> None:
        """Half precision would round away most of a small push, so the rest of the run steps in float32."""
        if not self._float32 and (sample.dtype in _HALF or output.dtype in _HALF):
            self._float32 = True
            _history_to_float32(self.scheduler)

    def warn_if_idle(self) -> None:
        """Warn if guidance was wanted and has not changed anything."""
        if self.guidance.scale == 0 or any(run.fired for run in self.runs):
            return
        reasons = {entry.skipped for run in self.runs for entry in run.log}
        if reasons:
            why = f"every evaluation was skipped: {'; '.join(sorted(map(str, reasons)))}"
        elif self._copied:
            why = "the pipeline worked on a copy of its scheduler, which guidance cannot see"
        else:
            why = "pipe.scheduler.step was never called; was the pipeline called, and with this scheduler?"
        warnings.warn(f"Guidance changed nothing: {why}.", UserWarning, stacklevel=4)


def _with_dtype(result: Any, dtype: torch.dtype) -> Any:
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    result.prev_sample = result.prev_sample.to(dtype)
    return result


def _history_to_float32(scheduler: Any) -> None:
    """Solvers combine stored tensors with new ones, and some (UniPC) want all of them in one type."""
    for name in _HISTORY:
        value = getattr(scheduler, name, None)
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.float())
        elif isinstance(value, list):
            value[:] = [item.float() if isinstance(item, Tensor) else item for item in value]
