"""Makes any one-evaluation solver stochastic: in each step a part of the predicted noise is replaced by fresh noise.

With r = sigma / alpha, a step from r to r' becomes

    x' / alpha' = denoised + sqrt(r'^2 - up^2) * noise + up * fresh,    up = eta * r' * sqrt(1 - r'^2 / r^2)

which keeps the distribution at r' what it is. For variance-preserving schedulers this is DDIM with eta, for k-diffusion
the ancestral Euler sampler; written in r, it holds for flow matching too.

Source:
    Song, Meng, Ermon (2021), "Denoising Diffusion Implicit Models", eqs. 12 and 16, https://arxiv.org/abs/2010.02502;
    Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative Models", section 4,
    https://arxiv.org/abs/2206.00364 (the change of variables).
"""

import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..guidance.diffusers.clipping import clipping_of
from ..guidance.diffusers.guided_step import GuidedStep
from ..guidance.diffusers.replace import replaced
from ..guidance.diffusers.schedulers import StepCoefficients, adapter_for
from ..guidance.prediction import denoised_from_output
from .calls import seeded_generators
from .sampler_state import draws_noise

_SEVERAL_STAGES = ("state_in_first_order", "ets")  # attributes of solvers with stages inside a step


@contextmanager
def ancestral(pipe: Any, eta: float | None) -> Iterator["AncestralStep | None"]:
    """While open, the scheduler makes ancestral steps; for eta=None it must be one that adds noise by itself.

    Enter it before `guided`.

    Raises:
        ValueError: the scheduler is deterministic and eta is None; or eta is given and the scheduler adds noise itself
            or evaluates the model more than once in a step.
    """
    scheduler = pipe.scheduler
    adapter_for(scheduler)
    if eta is None:
        _check_draws_noise(scheduler)
        yield None
        return
    _check_can_be_made_stochastic(scheduler, eta)
    step = AncestralStep(scheduler, eta)
    with replaced(scheduler, "step", step):
        yield step


def _check_draws_noise(scheduler: Any) -> None:
    if not draws_noise(scheduler):
        raise ValueError(
            f"{type(scheduler).__name__} is deterministic: all copies of one particle would become the same picture."
            " Give eta=1.0, which makes its steps ancestral, or choose a scheduler"
            " that adds noise, such as EulerAncestralDiscreteScheduler."
        )


def _check_can_be_made_stochastic(scheduler: Any, eta: float) -> None:
    name = type(scheduler).__name__
    if not 0 < eta <= 1:
        raise ValueError(f"eta is {eta}; expected more than 0 (deterministic) and at most 1 (ancestral).")
    if draws_noise(scheduler):
        raise ValueError(f"got eta={eta}, and {name} adds noise by itself; leave one of them out.")
    if any(hasattr(scheduler, attribute) for attribute in _SEVERAL_STAGES):
        raise ValueError(
            f"{name} has several stages in a step, which cannot be made ancestral; choose another one, such as"
            " DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
    if isinstance(vars(scheduler).get("step"), GuidedStep):
        raise ValueError("got eta inside guided(); expected it outside: give guidance=... in place of the with block.")


class AncestralStep:
    """Replaces `scheduler.step`, on this one object. `generators` are those of the samples of a batch."""

    def __init__(self, scheduler: Any, eta: float) -> None:
        self.generators: Sequence[torch.Generator] = ()
        self._scheduler, self._eta = scheduler, eta
        self._signature = inspect.signature(scheduler.step)
        functools.update_wrapper(self, scheduler.step, updated=())  # pipelines ask the signature for generator

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the scheduler's `step`; noise comes from `generators`."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        scheduler, sample = self._scheduler, arguments["sample"]
        if getattr(scheduler, "step_index", 0) is None:
            scheduler._init_step_index(arguments["timestep"])
        step = adapter_for(scheduler).coefficients(scheduler, arguments["timestep"])
        moved = self._move(sample.float(), arguments["model_output"].float(), step).to(sample.dtype)
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index += 1
        return SimpleNamespace(prev_sample=moved) if arguments.get("return_dict", True) else (moved,)

    def _move(self, sample: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
        output = output.split(sample.shape[1], dim=1)[0]  # some models put out their variance, too
        denoised = denoised_from_output(output, sample, step.alpha, step.sigma, step.prediction_type)
        noise = (sample - step.alpha * denoised) / step.sigma
        clipping = clipping_of(self._scheduler, denoised)
        if clipping is not None:
            denoised = clipping.apply(denoised)
            noise = noise if clipping.keeps_noise else (sample - step.alpha * denoised) / step.sigma
        end, ratio = step.stage.end, step.stage.ratio
        up = self._eta * end * math.sqrt(max(1 - (end / ratio) ** 2, 0.0))
        fresh = [torch.randn(sample.shape[1:], generator=g, dtype=torch.float32) for g in self.generators]
        kept = math.sqrt(max(end**2 - up**2, 0.0))
        return _alpha_at(step) * (denoised + kept * noise + up * torch.stack(fresh).to(sample.device))


def seeded(seeds: Sequence[int], step: AncestralStep | None) -> list[torch.Generator]:
    """Generators with these seeds for a batch of samples; the ancestral step, if there is one, uses them too."""
    generators = seeded_generators(seeds)
    if step is not None:
        step.generators = generators
    return generators


def _alpha_at(step: StepCoefficients) -> float:
    """The factor of the clean latent where the step ends, in the same family of schedules."""
    end = step.stage.end
    if step.prediction_type == "flow_prediction":
        return 1 / (1 + end)
    return 1.0 if step.alpha == 1.0 else 1 / math.hypot(1.0, end)  # exploding schedules say 1.0 to the bit
