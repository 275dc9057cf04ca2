"""What diffusers' schedulers mean by their numbers: the one table from class name to alpha, sigma and stored state.

Schedulers are read by what they have (`sigmas`, `alphas_cumprod`, `step_index`, `config`), so nothing is imported.
To support another one, write a function that gives its `StepCoefficients`, one that moves what it stores from earlier
steps if it stores anything, and add its adapter to `SCHEDULERS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..noise_level import Stage
from ..prediction import output_shift


@dataclass(frozen=True)
class StepCoefficients:
    """What one call of `scheduler.step` means: sample = alpha * x0 + sigma * noise."""

    alpha: float
    """Factor of the clean latent in `sample`."""

    sigma: float
    """Factor of the noise in `sample`."""

    stage: Stage
    """Where the evaluation stands in the sampler's step."""

    prediction_type: str
    """What the model puts out: "epsilon", "v_prediction", "sample" or "flow_prediction"."""


@dataclass(frozen=True)
class SchedulerAdapter:
    """How guidance deals with one kind of scheduler."""

    coefficients: Callable[[Any, Any], StepCoefficients]
    """(scheduler about to step, timestep) -> StepCoefficients."""

    move: Callable[[Any, Any, StepCoefficients, Tensor], None] | None = None
    """(scheduler, timestep, step, shift): move the clean part of what earlier evaluations have left by `shift`."""


def adapter_for(scheduler: Any) -> SchedulerAdapter:
    """The adapter of a scheduler.

    Raises:
        ValueError: for a scheduler that is not in the table.
    """
    for cls in type(scheduler).__mro__:
        if cls.__name__ in SCHEDULERS:
            return SCHEDULERS[cls.__name__]
    raise ValueError(
        f"the pipeline's scheduler is a {type(scheduler).__name__}, whose units are not known (schedulers with EDM"
        f" preconditioning are not supported); expected one of {', '.join(SCHEDULERS)}. Replace it:"
        " pipe.scheduler = <one of these>.from_config(pipe.scheduler.config)."
    )


# Variance exploding (k-diffusion): sample = x0 + s * noise.


def _exploding(scheduler: Any, stage: Stage) -> StepCoefficients:
    name = scheduler.config.prediction_type
    return StepCoefficients(1.0, stage.ratio, stage, "sample" if name == "original_sample" else name)


def _one_stage(scheduler: Any, timestep: Any) -> StepCoefficients:
    start, end = _sigmas(scheduler, scheduler.step_index)
    return _exploding(scheduler, Stage(start, start, end))


def _heun(scheduler: Any, timestep: Any) -> StepCoefficients:
    """Evaluations at both ends of a step: each stands for half of it."""
    first, start, end = _step_ends(scheduler)
    return _exploding(scheduler, _heun_stage(first, start, end))


def _heun_stage(first: bool, start: float, end: float) -> Stage:
    return Stage(start if first else end, start, end, 1.0 if end == 0 else 0.5)


def _midpoint(scheduler: Any, timestep: Any) -> StepCoefficients:
    """Evaluations at the beginning of a step and in its middle: each stands for what lies before the next one."""
    first, start, end = _step_ends(scheduler)
    if end == 0:
        return _exploding(scheduler, Stage(start, start, end))
    middle = math.sqrt(start * end)  # DPMSolverSDE
    if hasattr(scheduler, "sigmas_interpol"):
        middle = float(scheduler.sigmas_interpol[scheduler.step_index + int(first)])
    return _exploding(scheduler, Stage(start, start, middle) if first else Stage(middle, middle, end))


def _ancestral_midpoint(scheduler: Any, timestep: Any) -> StepCoefficients:
    """The middle of the way down to sigma_down = end^2 / start is sqrt(start * sigma_down) = end, where noise is added.

    So the first evaluation stands for the whole step and the second, at its end but for rounding, for nothing.
    """
    first, start, end = _step_ends(scheduler)
    if first or end == 0:
        return _exploding(scheduler, Stage(start, start, end))
    return _exploding(scheduler, Stage(float(scheduler.sigmas_interpol[scheduler.step_index - 1]), end, end))


def _sigmas(scheduler: Any, index: int) -> tuple[float, float]:
    return float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])


def _step_ends(scheduler: Any) -> tuple[bool, float, float]:
    """Whether this is the first of two stages, and sigma at both ends of the step."""
    first = scheduler.state_in_first_order
    return first, *_sigmas(scheduler, scheduler.step_index - (0 if first else 1))


def _move_start(scheduler: Any, timestep: Any, step: StepCoefficients, shift: Tensor) -> None:
    """The second stage starts again from the latent of the first; stored slopes are noise and stay."""
    if not scheduler.state_in_first_order:
        scheduler.sample = scheduler.sample + shift


# Variance preserving by timestep: sample = sqrt(abar_t) * x0 + sqrt(1 - abar_t) * noise.


def _preserving(scheduler: Any, timestep: Any, following: int | None, final_alpha_cumprod: Any) -> StepCoefficients:
    here = float(scheduler.alphas_cumprod[int(timestep)])
    ratio = _ratio(here)
    end = _ratio(float(final_alpha_cumprod if following is None else scheduler.alphas_cumprod[following]))
    return StepCoefficients(
        math.sqrt(here), math.sqrt(1 - here), Stage(ratio, ratio, end), scheduler.config.prediction_type
    )


def _ratio(alpha_cumprod: float) -> float:
    return math.inf if alpha_cumprod == 0 else math.sqrt((1 - alpha_cumprod) / alpha_cumprod)


def _following(scheduler: Any, timestep: int) -> int | None:
    """The timestep after this one: a step ends where the next evaluation is, whatever `step` computes.

    DDIM and PNDM go down by num_train_timesteps // steps, which is not how far their timesteps lie apart.
    """
    timesteps = scheduler.timesteps.tolist()
    if timestep not in timesteps:
        raise ValueError(
            f"timestep {timestep} is not in the scheduler's list {timesteps}; guidance does not support this pipeline."
        )
    last = len(timesteps) - 1 - timesteps[::-1].index(timestep)  # PNDM has one of them twice
    return timesteps[last + 1] if last + 1 < len(timesteps) else None


def _ddim(scheduler: Any, timestep: Any) -> StepCoefficients:
    return _preserving(scheduler, timestep, _following(scheduler, int(timestep)), scheduler.final_alpha_cumprod)


def _to_the_clean_end(scheduler: Any, timestep: Any) -> StepCoefficients:
    """The last step of DDPM and LCM returns the prediction itself."""
    return _preserving(scheduler, timestep, _following(scheduler, int(timestep)), 1.0)


def _tcd(scheduler: Any, timestep: Any) -> StepCoefficients:
    """The last step ends at the first timestep of the schedule."""
    return _preserving(scheduler, timestep, _following(scheduler, int(timestep)), scheduler.alphas_cumprod[0])


def _pndm(scheduler: Any, timestep: Any) -> StepCoefficients:
    start, end, portion = _pndm_step(scheduler, int(timestep))
    step = _preserving(scheduler, timestep, end, scheduler.final_alpha_cumprod)
    start_ratio = _ratio(float(scheduler.alphas_cumprod[start]))
    return replace(step, stage=replace(step.stage, start=start_ratio, portion=portion))


def _pndm_step(scheduler: Any, timestep: int) -> tuple[int, int | None, float]:
    """Timesteps at both ends of the step that this evaluation serves, None for the clean end, and its portion of it."""
    counter, runge_kutta = scheduler.counter, scheduler.prk_timesteps.tolist()
    if counter < len(runge_kutta):  # four evaluations a step, the last one at its end
        first = counter // 4 * 4
        return int(runge_kutta[first]), int(runge_kutta[first + 3]), 0.25
    if scheduler.config.skip_prk_steps and counter == 1:  # makes the first step again, from its other end
        timesteps = scheduler.timesteps.tolist()
        return timesteps[timesteps.index(timestep) - 1], timestep, 0.5
    return timestep, _following(scheduler, timestep), 0.5 if counter == 0 else 1.0


def _move_pndm(scheduler: Any, timestep: Any, step: StepCoefficients, shift: Tensor) -> None:
    """Stored model outputs, and the latent from which the first steps are made again."""
    change = output_shift(shift, step.alpha, step.sigma, step.prediction_type)
    scheduler.ets = [stored + change for stored in scheduler.ets]
    counter, runge_kutta = scheduler.counter, scheduler.prk_timesteps
    if counter < len(runge_kutta) and counter % 4:
        start = int(runge_kutta[counter // 4 * 4])
    elif scheduler.config.skip_prk_steps and counter == 1:  # what `step` takes for the other end
        start = int(timestep) + scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    else:
        return
    scheduler.cur_sample = scheduler.cur_sample + math.sqrt(float(scheduler.alphas_cumprod[start])) * shift


# Solvers with sigma / alpha, or flow sigmas, that convert them themselves.


def _solver(scheduler: Any, timestep: Any) -> StepCoefficients:
    index = scheduler.step_index
    alpha, sigma = _solver_alpha_sigma(scheduler, index)
    next_alpha, next_sigma = _solver_alpha_sigma(scheduler, index + 1)
    ratio = sigma / alpha if alpha > 0 else math.inf
    return StepCoefficients(
        alpha, sigma, Stage(ratio, ratio, next_sigma / next_alpha), scheduler.config.prediction_type
    )


def _solver_alpha_sigma(scheduler: Any, index: int) -> tuple[float, float]:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return float(alpha), float(sigma)


def _move_solver(scheduler: Any, timestep: Any, step: StepCoefficients, shift: Tensor) -> None:
    """Stored predictions of the clean latent, and the latent from which a step is made again."""
    index = scheduler.step_index
    if _keeps_denoised(scheduler):
        outputs = scheduler.model_outputs
        outputs[:] = [None if stored is None else stored + shift for stored in outputs]
    if getattr(scheduler, "last_sample", None) is not None:  # UniPC and SA correct the step before this one
        scheduler.last_sample = scheduler.last_sample + _solver_alpha_sigma(scheduler, index - 1)[0] * shift
    if hasattr(scheduler, "order_list") and scheduler.sample is not None:
        order = scheduler.order_list[index]
        while order > 1 and scheduler.model_outputs[1 - order] is None:  # a run that begins in the middle
            order -= 1
        scheduler.sample = scheduler.sample + _solver_alpha_sigma(scheduler, index - order + 1)[0] * shift


def _keeps_denoised(scheduler: Any) -> bool:
    """Whether stored outputs are clean latents; otherwise they are noise."""
    if hasattr(scheduler, "predict_x0"):  # UniPC, SA
        return scheduler.predict_x0
    return scheduler.config.algorithm_type.endswith("++")


# Flow matching: sample = (1 - s) * x0 + s * noise.


def _flowing(sigma: float, stage: Stage) -> StepCoefficients:
    return StepCoefficients(1 - sigma, sigma, stage, "flow_prediction")


def _flow_ratio(sigma: float) -> float:
    return math.inf if sigma >= 1 else sigma / (1 - sigma)


def _flow(scheduler: Any, timestep: Any) -> StepCoefficients:
    if getattr(scheduler.config, "invert_sigmas", False):
        raise ValueError(
            f"{type(scheduler).__name__} has invert_sigmas=True; expected sigmas that fall from noise to picture."
            " Guidance does not support this pipeline."
        )
    sigma, following = _sigmas(scheduler, scheduler.step_index)
    return _flowing(sigma, Stage(_flow_ratio(sigma), _flow_ratio(sigma), _flow_ratio(following)))


def _flow_heun(scheduler: Any, timestep: Any) -> StepCoefficients:
    first, sigma, following = _step_ends(scheduler)
    stage = _heun_stage(first, _flow_ratio(sigma), _flow_ratio(following))
    return _flowing(sigma if first else following, stage)


def _move_flow_heun(scheduler: Any, timestep: Any, step: StepCoefficients, shift: Tensor) -> None:
    first, sigma, _ = _step_ends(scheduler)
    if not first:
        scheduler.sample = scheduler.sample + (1 - sigma) * shift
        scheduler.prev_derivative = scheduler.prev_derivative - shift


SCHEDULERS: Mapping[str, SchedulerAdapter] = {
    "DDIMScheduler": SchedulerAdapter(_ddim),
    "DDPMScheduler": SchedulerAdapter(_to_the_clean_end),
    "DEISMultistepScheduler": SchedulerAdapter(_solver, _move_solver),
    "DPMSolverMultistepScheduler": SchedulerAdapter(_solver, _move_solver),
    "DPMSolverSDEScheduler": SchedulerAdapter(_midpoint, _move_start),
    "DPMSolverSinglestepScheduler": SchedulerAdapter(_solver, _move_solver),
    "EulerAncestralDiscreteScheduler": SchedulerAdapter(_one_stage),
    "EulerDiscreteScheduler": SchedulerAdapter(_one_stage),
    "FlowMapEulerDiscreteScheduler": SchedulerAdapter(_flow),
    "FlowMatchEulerDiscreteScheduler": SchedulerAdapter(_flow),
    "FlowMatchHeunDiscreteScheduler": SchedulerAdapter(_flow_heun, _move_flow_heun),
    "FlowMatchLCMScheduler": SchedulerAdapter(_flow),
    "HeunDiscreteScheduler": SchedulerAdapter(_heun, _move_start),
    "KDPM2AncestralDiscreteScheduler": SchedulerAdapter(_ancestral_midpoint, _move_start),
    "KDPM2DiscreteScheduler": SchedulerAdapter(_midpoint, _move_start),
    "LCMScheduler": SchedulerAdapter(_to_the_clean_end),
    "LMSDiscreteScheduler": SchedulerAdapter(_one_stage),
    "LTXEulerAncestralRFScheduler": SchedulerAdapter(_flow),
    "PNDMScheduler": SchedulerAdapter(_pndm, _move_pndm),
    "SASolverScheduler": SchedulerAdapter(_solver, _move_solver),
    "TCDScheduler": SchedulerAdapter(_tcd),
    "UniPCMultistepScheduler": SchedulerAdapter(_solver, _move_solver),
}
"""Class name -> adapter. Sub-classes of these are found too."""
