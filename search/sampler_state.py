"""The state of a sampler in the middle of a run: what is needed to go on from there, with all or some of its samples.

The state is taken when the denoiser has answered and the scheduler has not stepped yet. So the answer is kept, and
whoever enters again needs no evaluation that has been made before. Nothing here knows a host: a scheduler is taken by
what it stores in its attributes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_DRAWING = (
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)

_BY_SAMPLE = ("latents", "model_output", "scheduler", "guidance")


@dataclass(frozen=True, eq=False)
class SamplerState:
    """N samples between an evaluation of the denoiser and the step that uses it. Tensors, numbers and lists only.

    `torch.save(vars(state), file)` writes it, `SamplerState(**torch.load(file))` reads it.
    """

    position: int
    """Number of this evaluation in the run, from 0."""
    total: int
    """Evaluations of the whole run."""
    timestep: float
    """What the pipeline calls this position."""
    latents: Tensor
    """(N, ...) the noisy latents as the scheduler's `step` gets them."""
    model_output: Tensor
    """(N, ...) the denoiser's answer as `step` gets it."""
    scheduler: dict[str, Any]
    """What the scheduler has stored: its place in the schedule, and the history of a multistep solver (N, ...)."""
    generators: list[Tensor]
    """N states of generators."""
    prepared: list[Tensor]
    """N states that these generators had before the first step."""
    guidance: dict[str, Any] | None = None
    """What a guided run has stored; None if it has not begun or there is none."""

    def __len__(self) -> int:
        return len(self.latents)

    def pick(self, lanes: Sequence[int]) -> "SamplerState":
        """The state of some of the samples, in this order."""
        lanes = list(lanes)
        chosen = {name: _each(getattr(self, name), lambda t: t[lanes]) for name in _BY_SAMPLE}
        own = {name: [getattr(self, name)[lane] for lane in lanes] for name in ("generators", "prepared")}
        return replace(self, **chosen, **own)


def joined(states: Sequence[SamplerState]) -> SamplerState:
    """One state of the samples of several, all of one run's settings and at one position.

    Raises:
        ValueError: they are at different positions.
    """
    places = {(state.position, state.total, state.timestep) for state in states}
    if len(places) != 1:
        raise ValueError(f"got sampler states at {sorted(places)}; expected one position, timestep and run length.")
    together = {name: _together([getattr(state, name) for state in states]) for name in _BY_SAMPLE}
    own = {name: [each for state in states for each in getattr(state, name)] for name in ("generators", "prepared")}
    return replace(states[0], **together, **own)


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose samples cannot be continued apart.

    Raises:
        ValueError: with the reason.
    """
    if hasattr(scheduler, "noise_sampler"):
        raise ValueError(
            f"{type(scheduler).__name__} draws its noise for a whole batch at once from a source of its own, so a"
            " sample cannot be continued without the others; choose another scheduler, such as"
            " DPMSolverMultistepScheduler."
        )


def stored_by(scheduler: Any, samples: int) -> dict[str, Any]:
    """What a scheduler has stored for `samples` samples since its `set_timesteps`: a copy, on the CPU.

    Schedules (tensors with one axis) and objects are left out: `set_timesteps` makes them again.

    Raises:
        ValueError: the scheduler stores what cannot be told apart by sample.
    """
    stored = {name: value for name, value in vars(scheduler).items() if _is_plain(value)}
    for name, value in stored.items():
        _each(value, lambda t, name=name: _check_lanes(name, t, samples, scheduler))
    return _each(stored, lambda t: t.detach().to("cpu", copy=True))


def put_back(scheduler: Any, stored: dict[str, Any], device: torch.device) -> None:
    """Let a scheduler, whose `set_timesteps` has been called as before, go on with what `stored_by` has found."""
    for name, value in _each(stored, lambda t: t.to(device, copy=True)).items():
        vars(scheduler)[name] = value


def draws_noise(scheduler: Any) -> bool:
    """Whether the scheduler's `step` adds noise."""
    config = scheduler.config
    named = {cls.__name__ for cls in type(scheduler).__mro__}.intersection(_DRAWING)
    sde = str(getattr(config, "algorithm_type", "")).startswith("sde")
    return (
        (bool(named) and getattr(config, "eta", None) != 0)
        or sde
        or bool(getattr(config, "stochastic_sampling", False))
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim != 1
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float))


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same structure, in which `change` has been applied to every tensor of samples; lists are new lists."""
    if isinstance(value, Tensor) and value.ndim >= 1:
        return change(value)
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    if isinstance(value, dict):
        return {name: _each(item, change) for name, item in value.items()}
    return value


def _together(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.ndim >= 1:
        return torch.cat(list(values))
    if isinstance(first, list):
        return [_together(items) for items in zip(*values, strict=True)]
    if isinstance(first, dict):
        return {name: _together([value[name] for value in values]) for name in first}
    return first


def _check_lanes(name: str, tensor: Tensor, samples: int, scheduler: Any) -> None:
    if len(tensor) != samples:
        raise ValueError(
            f"{type(scheduler).__name__} stores {name} of shape {tuple(tensor.shape)} for {samples} samples; expected"
            " one row for each sample. It cannot be continued with some of them."
        )
