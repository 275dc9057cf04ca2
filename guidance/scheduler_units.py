"""In which units each of diffusers' schedulers counts: the one table from class name to alpha, sigma and gain.

Schedulers are read by what they have (`sigmas`, `alphas_cumprod`, `step_index`, `config`); diffusers is not imported.
To support another scheduler, write a function like the ones below and add it to `SCHEDULERS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .schedule import Stage


@dataclass(frozen=True)
class Units:
    """What one call of `scheduler.step` means."""

    alpha: float
    """Factor of the clean latent in `sample`."""

    sigma: float
    """Factor of the noise in `sample`."""

    stage: Stage
    """Where the evaluation stands in the sampler's step."""

    prediction_type: str | None = None
    """What the model puts out, if the scheduler knows only one thing; None: see its configuration."""


Options = Mapping[str, Any]  # arguments of this call of `step` besides model_output, timestep and sample


def _ve(ratio: float, stage: Stage) -> Units:
    return Units(1.0, ratio, stage)


def _ratio(alpha_cumprod: Tensor | float) -> float:
    """sigma / alpha of a variance preserving schedule."""
    alpha_squared = float(alpha_cumprod)
    return math.inf if alpha_squared == 0 else math.sqrt((1 - alpha_squared) / alpha_squared)


def _vp(alpha_cumprod: Tensor | float, stage: Stage) -> Units:
    return Units(math.sqrt(float(alpha_cumprod)), math.sqrt(1 - float(alpha_cumprod)), stage)


def _sigmas(scheduler: Any) -> tuple[float, float]:
    index = scheduler.step_index
    return float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])


def _two_stage_sigmas(scheduler: Any) -> tuple[bool, float, float]:
    """Whether this is the first stage, and sigma at both ends of the step."""
    index = scheduler.step_index if scheduler.state_in_first_order else scheduler.step_index - 1
    return scheduler.state_in_first_order, float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])


def _ancestral(ratio: float, end: float) -> Stage:
    """Stochastic step to sigma_down = s'^2 / s plus fresh noise: gain 1 - (s' / s)^2."""
    return Stage(ratio, ratio, end, 1.0 if math.isinf(ratio) else 1 - (end / ratio) ** 2)


def _fresh(ratio: float, end: float) -> Stage:
    """x' = alpha' * denoised + sigma' * fresh noise: gain 1."""
    return Stage(ratio, ratio, end, 1.0)


def _euler(scheduler: Any, timestep: Any, options: Options) -> Units:
    ratio, end = _sigmas(scheduler)
    return _ve(ratio, Stage.first_order(ratio, end))


def _euler_ancestral(scheduler: Any, timestep: Any, options: Options) -> Units:
    ratio, end = _sigmas(scheduler)
    return _ve(ratio, _ancestral(ratio, end))


def _heun(scheduler: Any, timestep: Any, options: Options) -> Units:
    """Mean of the slopes at both ends: each of the two evaluations carries half of the push."""
    first, start, end = _two_stage_sigmas(scheduler)
    if end == 0:
        return _ve(start, Stage.first_order(start, end))
    if first:
        return _ve(start, Stage(start, start, end, 0.5 * (1 - end / start), 0.5))
    return _ve(end, Stage(end, start, end, 0.5 * (start / end - 1), 0.5))


def _kdpm2(scheduler: Any, timestep: Any, options: Options) -> Units:
    """Midpoint method: the slope at the middle alone makes the step, so the second stage carries the whole push."""
    first, start, end = _two_stage_sigmas(scheduler)
    if end == 0:
        return _ve(start, Stage.first_order(start, end))
    if first:
        return _ve(start, Stage(start, start, end, 1.0, 0.0))
    middle = float(scheduler.sigmas_interpol[scheduler.step_index])
    return _ve(middle, Stage(middle, start, end, (start - end) / middle))


def _kdpm2_ancestral(scheduler: Any, timestep: Any, options: Options) -> Units:
    first, start, end = _two_stage_sigmas(scheduler)
    if end == 0:
        return _ve(start, Stage.first_order(start, end))
    if first:
        return _ve(start, Stage(start, start, end, 1.0, 0.0))
    middle = float(scheduler.sigmas_interpol[scheduler.step_index - 1])
    down = float(scheduler.sigmas_down[scheduler.step_index - 1])
    return _ve(middle, Stage(middle, start, end, (start - down) / middle))


def _dpm_sde(scheduler: Any, timestep: Any, options: Options) -> Units:
    """Stochastic midpoint method in log sigma."""
    first, start, end = _two_stage_sigmas(scheduler)
    if end == 0:
        return _ve(start, Stage.first_order(start, end))
    if first:
        return _ve(start, Stage(start, start, end, 1.0, 0.0))
    middle = math.sqrt(start * end)
    return _ve(middle, Stage(middle, start, end, 1 - (end / start) ** 2))


def _ddim(scheduler: Any, timestep: Any, options: Options) -> Units:
    timestep = int(timestep)
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    here = scheduler.alphas_cumprod[timestep]
    there = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    ratio, end = _ratio(here), _ratio(there)
    kept = 1 - float(there) - options.get("eta", 0.0) ** 2 * float(scheduler._get_variance(timestep, previous))
    down = math.sqrt(max(kept, 0.0) / float(there))
    return _vp(here, Stage(ratio, ratio, end, Stage.first_order(ratio, down).gain))


def _ddpm(scheduler: Any, timestep: Any, options: Options) -> Units:
    timestep = int(timestep)
    previous = scheduler.previous_timestep(timestep)
    here = scheduler.alphas_cumprod[timestep]
    there = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.one
    return _vp(here, _ancestral(_ratio(here), _ratio(there)))


def _pndm(scheduler: Any, timestep: Any, options: Options) -> Units:
    timestep = int(timestep)
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    here = scheduler.alphas_cumprod[timestep]
    there = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    return _vp(here, Stage.first_order(_ratio(here), _ratio(there)))


def _next_on_list(scheduler: Any) -> Tensor | None:
    index = scheduler.step_index + 1
    return scheduler.timesteps[index] if index < len(scheduler.timesteps) else None


def _lcm(scheduler: Any, timestep: Any, options: Options) -> Units:
    following = _next_on_list(scheduler)
    end = 0.0 if following is None else _ratio(scheduler.alphas_cumprod[following])
    here = scheduler.alphas_cumprod[timestep]
    _, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
    ratio = _ratio(here)
    return _vp(here, Stage(ratio, ratio, end, float(c_out)))


def _tcd(scheduler: Any, timestep: Any, options: Options) -> Units:
    following = _next_on_list(scheduler)
    following = torch.tensor(0) if following is None else following
    down = torch.floor((1 - options.get("eta", 0.3)) * following).long()
    here = scheduler.alphas_cumprod[timestep]
    ratio, end = _ratio(here), _ratio(scheduler.alphas_cumprod[following])
    gain = Stage.first_order(ratio, _ratio(scheduler.alphas_cumprod[down])).gain
    return _vp(here, Stage(ratio, ratio, end, gain))


def _from_sigmas(scheduler: Any, timestep: Any, options: Options) -> Units:
    """The solvers that keep sigma / alpha, or flow sigmas, and convert them themselves."""
    alpha, sigma, ratio, end = _solver_levels(scheduler)
    stochastic = str(getattr(scheduler.config, "algorithm_type", "")).startswith("sde")
    stage = _ancestral(ratio, end) if stochastic else Stage.first_order(ratio, end)
    return Units(alpha, sigma, stage)


def _solver_levels(scheduler: Any) -> tuple[float, float, float, float]:
    index = scheduler.step_index
    alpha, sigma = (float(value) for value in scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index]))
    next_alpha, next_sigma = (float(value) for value in scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index + 1]))
    return alpha, sigma, sigma / alpha if alpha > 0 else math.inf, next_sigma / next_alpha


def _flow_ratio(sigma: float) -> float:
    return math.inf if sigma >= 1 else sigma / (1 - sigma)


def _flow(sigma: float, stage: Stage) -> Units:
    return Units(1 - sigma, sigma, stage, "flow_prediction")


def _flow_euler(scheduler: Any, timestep: Any, options: Options) -> Units:
    if scheduler.config.invert_sigmas or options.get("per_token_timesteps") is not None:
        raise ValueError(
            "FlowMatchEulerDiscreteScheduler runs with inverted sigmas or one timestep per token; expected one falling"
            " sigma for the whole latent. Guidance does not support this pipeline."
        )
    sigma, following = _sigmas(scheduler)
    stage = _fresh if scheduler.config.stochastic_sampling else Stage.first_order
    return _flow(sigma, stage(_flow_ratio(sigma), _flow_ratio(following)))


def _flow_heun(scheduler: Any, timestep: Any, options: Options) -> Units:
    """Heun's method in sigma; the first change also moves the latent at which the second slope is taken."""
    first, sigma, following = _two_stage_sigmas(scheduler)
    start, end = _flow_ratio(sigma), _flow_ratio(following)
    if following == 0:
        return _flow(sigma, Stage.first_order(start, end))
    step = sigma - following
    if first:
        gain = 0.5 * Stage.first_order(start, end).gain * (1 + step)
        return _flow(sigma, Stage(start, start, end, gain, 0.5))
    return _flow(following, Stage(end, start, end, 0.5 * step / (following * (1 - following)), 0.5))


def _flow_lcm(scheduler: Any, timestep: Any, options: Options) -> Units:
    sigma, following = _sigmas(scheduler)
    return _flow(sigma, _fresh(_flow_ratio(sigma), _flow_ratio(following)))


SCHEDULERS: Mapping[str, Callable[[Any, Any, Options], Units]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DEISMultistepScheduler": _from_sigmas,
    "DPMSolverMultistepScheduler": _from_sigmas,
    "DPMSolverSDEScheduler": _dpm_sde,
    "DPMSolverSinglestepScheduler": _from_sigmas,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "EulerDiscreteScheduler": _euler,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
    "FlowMatchLCMScheduler": _flow_lcm,
    "HeunDiscreteScheduler": _heun,
    "KDPM2AncestralDiscreteScheduler": _kdpm2_ancestral,
    "KDPM2DiscreteScheduler": _kdpm2,
    "LCMScheduler": _lcm,
    "LMSDiscreteScheduler": _euler,
    "PNDMScheduler": _pndm,
    "SASolverScheduler": _from_sigmas,
    "TCDScheduler": _tcd,
    "UniPCMultistepScheduler": _from_sigmas,
}
"""Class name -> function(scheduler, timestep, options of step) -> Units. Sub-classes are found too."""


def units_for(scheduler: Any) -> Callable[[Any, Any, Options], Units]:
    """The row of the table for a scheduler.

    Raises:
        ValueError: for a scheduler that is not in the table.
    """
    for cls in type(scheduler).__mro__:
        if cls.__name__ in SCHEDULERS:
            return SCHEDULERS[cls.__name__]
    raise ValueError(
        f"the pipeline's scheduler is a {type(scheduler).__name__}, whose units are not known (those with EDM"
        f" preconditioning are not supported); expected one of {', '.join(SCHEDULERS)}. Replace it:"
        " pipe.scheduler = <one of these>.from_config(pipe.scheduler.config)."
    )


def prediction_type_of(scheduler: Any, units: Units) -> str:
    """What the model puts out: "epsilon", "v_prediction", "sample" or "flow_prediction"."""
    name = units.prediction_type or scheduler.config.prediction_type
    return "sample" if name == "original_sample" else name
