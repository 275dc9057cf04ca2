"""The state of a sampler in the middle of a run: what is needed to go on from there, with all or some of its samples.

The state is taken when the denoiser has answered and the scheduler has not stepped yet. So the answer is kept, and
whoever resumes the run needs no evaluation that has been made before. diffusers is not imported: a scheduler is known
by the name of its class, and its state is what it stores in its attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.tensor_tree import join, map_tensors, select

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

_BATCHED = ("latents", "model_output", "scheduler", "guidance")  # fields that are trees of tensors (N, ...)
_LISTS = ("generators", "prepared")  # fields with one item for each sample


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
    """Of this evaluation, as the pipeline gives it to `step`."""
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

    def select(self, batch_indices: Sequence[int]) -> "SamplerState":
        """The state of some of the samples, in this order."""
        tensors = {name: select(getattr(self, name), batch_indices) for name in _BATCHED}
        lists = {name: [getattr(self, name)[index] for index in batch_indices] for name in _LISTS}
        return replace(self, **tensors, **lists)


def join_states(states: Sequence[SamplerState]) -> SamplerState:
    """One state of the samples of several, all of one run's settings and at one position.

    Raises:
        ValueError: they are at different positions.
    """
    places = {(state.position, state.total, state.timestep) for state in states}
    if len(places) != 1:
        raise ValueError(f"got sampler states at {sorted(places)}; expected one position, timestep and run length.")
    tensors = {name: join([getattr(state, name) for state in states]) for name in _BATCHED}
    lists = {name: [item for state in states for item in getattr(state, name)] for name in _LISTS}
    return replace(states[0], **tensors, **lists)


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


def scheduler_state_dict(scheduler: Any, samples: int) -> dict[str, Any]:
    """What a scheduler has stored for `samples` samples since its `set_timesteps`: a copy, on the CPU.

    Schedules (tensors with one axis) and objects are left out: `set_timesteps` makes them again.

    Raises:
        ValueError: the scheduler stores what cannot be told apart by sample.
    """
    state = {name: value for name, value in vars(scheduler).items() if _is_plain(value)}
    for name, value in state.items():
        map_tensors(value, lambda tensor, name=name: _check_rows(name, tensor, samples, scheduler))
    return map_tensors(state, lambda tensor: tensor.detach().to("cpu", copy=True))


def load_scheduler_state_dict(scheduler: Any, state: dict[str, Any], device: torch.device) -> None:
    """Put the result of `scheduler_state_dict` into a scheduler whose `set_timesteps` has been called as before."""
    vars(scheduler).update(map_tensors(state, lambda tensor: tensor.to(device, copy=True)))


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


def _check_rows(name: str, tensor: Tensor, samples: int, scheduler: Any) -> None:
    if len(tensor) != samples:
        raise ValueError(
            f"{type(scheduler).__name__} stores {name} of shape {tuple(tensor.shape)} for {samples} samples; expected"
            " one row for each sample. It cannot be continued with some of them."
        )
