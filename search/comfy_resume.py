"""One leg of a sampling in ComfyUI: candidates go on from where they were left to where they are left again.

A sampler of ComfyUI is a function that asks the model for predictions and keeps to itself what it remembers of them. So
a candidate is entered again by calling that function from its beginning: it gets the predictions that it has had
already from memory, at the cost of some arithmetic on latents, and stands where it stood with whatever it remembers. No
evaluation is made twice. It must only treat the samples of a batch apart, and draw the noise of each from its own seed.
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
from ..guidance.prediction_only import joined_run, split_run

_POST_CFG = "sampler_post_cfg_function"
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
_SAME = 1 + 1e-6  # schedules are float32


@dataclass
class Candidate:
    """One sample, and what it has been told so far."""

    seed: int
    predictions: list[Tensor] = field(default_factory=list)
    """(1, ...) after CFG and guidance, one for each evaluation."""
    unconditional: list[Tensor] = field(default_factory=list)
    """(1, ...) those without a prompt; empty unless the sampler looks at them (CFG++)."""
    guidance: list[dict[str, Any]] = field(default_factory=list)
    """What each guidance on the MODEL has stored."""
    steps: int = 0
    """That the sampler has reported."""


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


class Leg(KSAMPLER):
    """A sampler for some candidates, which are equally far.

    Args:
        name: of ComfyUI's sampler.
        candidates: one per row of the batch.
        stop: sigma at which the leg ends; None to go on to the end of the schedule.
        alone: whether candidates are batches of one, for which ComfyUI draws all noise by itself.
    """

    def __init__(self, name: str, candidates: Sequence[Candidate], stop: float | None, alone: bool) -> None:
        sampler = comfy.samplers.sampler_object(name)
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.left = False
        self._name, self._candidates, self._stop, self._alone = name, candidates, stop, alone

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args, **kwargs):
        """As ComfyUI calls it; returns the prediction at which the leg ended, or the finished samples."""
        if not self._alone:
            seeds = [candidate.seed for candidate in self._candidates]
            drawn = noise_by_row(self._name, self.sampler_function, noise, sigmas, seeds)
            self.extra_options = {**self.extra_options, **drawn}
        patches = patches_of(model_wrap.model_patcher)
        for index, patch in enumerate(patches):
            if self._candidates[0].guidance:
                patch.resume(joined_run([each.guidance[index] for each in self._candidates]), noise.device)
        model = _FromMemory(model_wrap, self._candidates, self._stop)
        try:
            return super().sample(model, sigmas, extra_args, callback, noise, *args, **kwargs)
        except _Left as left:
            self.left = True
            parts = [split_run(patch.leave(), len(self._candidates)) for patch in patches]
            for lane, candidate in enumerate(self._candidates):
                candidate.guidance = [part[lane] for part in parts]
            return left.denoised


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
    rows = [library.default_noise_sampler(x[lane : lane + 1], seed=seed) for lane, seed in enumerate(seeds)]
    return {"noise_sampler": lambda sigma, following: torch.cat([row(sigma, following) for row in rows])}


class _Left(Exception):
    """Raised out of a sampler function where its leg ends."""

    def __init__(self, denoised: Tensor) -> None:
        self.denoised = denoised


class _FromMemory:
    """Stands in for ComfyUI's guider inside a sampler: answers from memory first, then asks, and remembers."""

    def __init__(self, guider: Any, candidates: Sequence[Candidate], stop: float | None) -> None:
        self._guider, self._candidates, self._stop = guider, candidates, stop
        self._own = list(guider.model_options.get(_POST_CFG, []))
        self._asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None) -> Tensor:
        index, self._asked = self._asked, self._asked + 1
        functions = model_options.get(_POST_CFG, [])
        looking = [function for function in functions if function not in self._own]  # those of a CFG++ sampler
        if index < len(self._candidates[0].predictions):
            return self._told_before(index, looking, x)
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen: list[Tensor] = []
        if looking:
            model_options = {**model_options, _POST_CFG: [*functions, _noting(seen)]}
        denoised = self._guider(x, sigma, model_options=model_options, seed=seed)
        if self._stop is None:
            return denoised
        self._remember(denoised, seen)
        if float(sigma.max()) <= self._stop * _SAME:
            raise _Left(denoised)
        return denoised

    def _told_before(self, index: int, looking: Sequence[Callable[[dict], Tensor]], x: Tensor) -> Tensor:
        denoised = torch.cat([each.predictions[index] for each in self._candidates]).to(x)
        if looking:
            without = torch.cat([each.unconditional[index] for each in self._candidates]).to(x)
            for look in looking:
                look({"denoised": denoised, "uncond_denoised": without})
        return denoised

    def _remember(self, denoised: Tensor, seen: Sequence[Tensor]) -> None:
        device = comfy.model_management.intermediate_device()
        for lane, candidate in enumerate(self._candidates):
            candidate.predictions.append(denoised[lane : lane + 1].to(device, copy=True))
            candidate.unconditional += [each[lane : lane + 1].to(device, copy=True) for each in seen]


def _noting(seen: list[Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    def note(args: dict[str, Any]) -> Tensor:
        seen.append(args["uncond_denoised"])
        return args["denoised"]

    return note
