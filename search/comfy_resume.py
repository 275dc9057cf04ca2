"""Stop a sampling of ComfyUI at some step and resume it later, with all or some of its samples.

A sampler of ComfyUI is a function that asks the model for predictions and has a state of its own, which nobody else
sees. To resume it, the function is called from its beginning and gets the predictions of earlier calls from a
recording. That costs some arithmetic on latents but no evaluation of the model, and brings the sampler back into the
same state. The sampler must treat the samples of a batch separately and draw the noise of each from its own seed.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..guidance.comfy.patch import patches_of
from ..guidance.prediction_only import join_run, split_run

_POST_CFG = "sampler_post_cfg_function"
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
_SAME = 1 + 1e-6  # schedules are float32


@dataclass
class Recording:
    """What the sampler of one sample has received so far; empty at the beginning."""

    seed: int
    predictions: list[Tensor] = field(default_factory=list)
    """(1, ...) after CFG and guidance, one for each evaluation."""
    unconditional: list[Tensor] = field(default_factory=list)
    """(1, ...) the same without a prompt; empty unless the sampler uses them (CFG++)."""
    guidance: list[dict[str, Any]] = field(default_factory=list)
    """State of each guidance on the MODEL."""
    steps: int = 0
    """Steps that the sampler has reported."""


def samples_alone(sampler: str, masked: bool) -> bool:
    """Whether a sampler treats the samples of a batch together, or may: then each candidate is a batch of its own.

    Args:
        sampler: a name of ComfyUI's.
        masked: whether there is a noise mask.
    """
    function = comfy.samplers.sampler_object(sampler).sampler_function
    chooses_steps = sampler == "dpm_adaptive"  # by an error over the whole batch
    draws_again = sampler == "ddim" and masked  # the noise around the mask, for the whole batch
    return chooses_steps or draws_again or not function.__module__.startswith("comfy.")


class PartialSampler(KSAMPLER):
    """A sampler that resumes some samples, which are at the same step, and stops again at a later one.

    Args:
        name: of ComfyUI's sampler.
        recordings: one per row of the batch; continued here.
        stop: sigma at which to stop; None for the end of the schedule.
        alone: whether the samples are batches of one, for which ComfyUI draws all noise by itself.
    """

    def __init__(self, name: str, recordings: Sequence[Recording], stop: float | None, alone: bool) -> None:
        sampler = comfy.samplers.sampler_object(name)
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.stopped = False
        self._name, self._recordings, self._stop, self._alone = name, recordings, stop, alone

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args, **kwargs):
        """As ComfyUI calls it; returns the prediction at which it stops, or the finished samples."""
        if not self._alone:
            seeds = [recording.seed for recording in self._recordings]
            options = noise_by_row(self._name, self.sampler_function, noise, sigmas, seeds)
            self.extra_options = {**self.extra_options, **options}
        patches = patches_of(model_wrap.model_patcher)
        for index, patch in enumerate(patches):
            if self._recordings[0].guidance:
                patch.resume(join_run([each.guidance[index] for each in self._recordings]), noise.device)
        model = _RecordingGuider(model_wrap, self._recordings, self._stop)
        try:
            return super().sample(model, sigmas, extra_args, callback, noise, *args, **kwargs)
        except _Stopped as stopped:
            self.stopped = True
            parts = [split_run(patch.leave(), len(self._recordings)) for patch in patches]
            for index, recording in enumerate(self._recordings):
                recording.guidance = [part[index] for part in parts]
            return stopped.denoised


def noise_by_row(
    name: str, function: Callable[..., Tensor], x: Tensor, sigmas: Tensor, seeds: Sequence[int]
) -> dict[str, Any]:
    """The option that gives a stochastic sampler, for each row, the noise that it draws for a batch of one; or nothing.

    Args:
        name: of ComfyUI's sampler.
        function: what it calls.
        x: (N, ...) the latents that it starts from; for shape and device.
        sigmas: its schedule.
        seeds: one per row.
    """
    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    library = comfy.k_diffusion.sampling
    if name.removesuffix("_gpu") in _BROWNIAN:
        ends = sigmas[sigmas > 0].min(), sigmas.max()
        on_cpu = not name.endswith("_gpu")
        return {"noise_sampler": library.BrownianTreeNoiseSampler(x, *ends, seed=list(seeds), cpu=on_cpu)}
    rows = [library.default_noise_sampler(x[index : index + 1], seed=seed) for index, seed in enumerate(seeds)]
    return {"noise_sampler": lambda sigma, following: torch.cat([row(sigma, following) for row in rows])}


class _Stopped(Exception):
    """Raised out of a sampler function where it is to stop."""

    def __init__(self, denoised: Tensor) -> None:
        self.denoised = denoised


class _RecordingGuider:
    """Replaces ComfyUI's guider inside a sampler: answers from the recordings first, then evaluates and records."""

    def __init__(self, guider: Any, recordings: Sequence[Recording], stop: float | None) -> None:
        self._guider, self._recordings, self._stop = guider, recordings, stop
        self._own = list(guider.model_options.get(_POST_CFG, []))
        self._evaluations = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
        index, self._evaluations = self._evaluations, self._evaluations + 1
        functions = model_options.get(_POST_CFG, [])
        of_sampler = [function for function in functions if function not in self._own]  # of a CFG++ sampler
        if index < len(self._recordings[0].predictions):
            return self._recorded(index, of_sampler, x)
        comfy.model_management.throw_exception_if_processing_interrupted()
        unconditional: list[Tensor] = []
        if of_sampler:
            model_options = {**model_options, _POST_CFG: [*functions, _append_unconditional(unconditional)]}
        denoised = self._guider(x, sigma, model_options=model_options, seed=seed)
        if self._stop is None:
            return denoised
        self._record(denoised, unconditional)
        if float(sigma.max()) <= self._stop * _SAME:
            raise _Stopped(denoised)
        return denoised

    def _recorded(self, index: int, of_sampler: Sequence[Callable[[dict], Tensor]], x: Tensor) -> Tensor:
        denoised = torch.cat([each.predictions[index] for each in self._recordings]).to(x)
        if of_sampler:
            unconditional = torch.cat([each.unconditional[index] for each in self._recordings]).to(x)
            for function in of_sampler:
                function({"denoised": denoised, "uncond_denoised": unconditional})
        return denoised

    def _record(self, denoised: Tensor, unconditional: Sequence[Tensor]) -> None:
        device = comfy.model_management.intermediate_device()
        for index, recording in enumerate(self._recordings):
            recording.predictions.append(denoised[index : index + 1].to(device, copy=True))
            recording.unconditional += [each[index : index + 1].to(device, copy=True) for each in unconditional]


def _append_unconditional(predictions: list[Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    """A post-CFG function that changes nothing and appends the prediction without a prompt to `predictions`."""

    def append(args: dict[str, Any]) -> Tensor:
        predictions.append(args["uncond_denoised"])
        return args["denoised"]

    return append
