"""Guidance on every scheduler of the table: units of the prediction, and a strength that no step count changes.

No network is needed here: the "model" is a formula, so the clean latent is known exactly.
"""

import inspect
import math
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import diffusers
import pytest
import torch

from iqguide.guidance import RewardGuidance
from iqguide.guidance.diffusers import guided
from iqguide.guidance.diffusers.schedulers import SCHEDULERS, adapter_for
from iqguide.guidance.prediction import denoised_from_output

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
TOTAL = math.log(1.5 / (0.05 / 0.95))  # length of the default window, 0.6 to 0.05, in log(sigma / alpha)

DETERMINISTIC = {
    "DDIM": ("DDIMScheduler", SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "DDIM zero terminal SNR": (
        "DDIMScheduler",
        SD
        | {
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    "DDIM sample": ("DDIMScheduler", SD | {"clip_sample": False, "prediction_type": "sample"}),
    "Euler": ("EulerDiscreteScheduler", SD),
    "Euler v Karras": (
        "EulerDiscreteScheduler",
        SD | {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ),
    "Heun": ("HeunDiscreteScheduler", SD),
    "Heun v Karras": ("HeunDiscreteScheduler", SD | {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    "LMS": ("LMSDiscreteScheduler", SD),
    "LMS Karras": ("LMSDiscreteScheduler", SD | {"use_karras_sigmas": True}),
    "KDPM2": ("KDPM2DiscreteScheduler", SD),
    "KDPM2 Karras": ("KDPM2DiscreteScheduler", SD | {"use_karras_sigmas": True}),
    "PNDM": ("PNDMScheduler", SD | {"skip_prk_steps": True, "steps_offset": 1}),
    "PNDM Runge-Kutta": ("PNDMScheduler", SD | {"skip_prk_steps": False, "steps_offset": 1}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", SD),
    "DPM++ 2M Karras v": (
        "DPMSolverMultistepScheduler",
        SD | {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ),
    "DPM++ 2M Heun": ("DPMSolverMultistepScheduler", SD | {"solver_type": "heun"}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", SD | {"solver_order": 3}),
    "DPM++ 2M flow": ("DPMSolverMultistepScheduler", FLOW),
    "DPM 2M noise": (
        "DPMSolverMultistepScheduler",
        SD | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", SD),
    "DPM++ 3S": ("DPMSolverSinglestepScheduler", SD | {"solver_order": 3}),
    "DEIS": ("DEISMultistepScheduler", SD),
    "DEIS 3 Karras": ("DEISMultistepScheduler", SD | {"solver_order": 3, "use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", SD),
    "UniPC Karras": ("UniPCMultistepScheduler", SD | {"use_karras_sigmas": True}),
    "UniPC flow": ("UniPCMultistepScheduler", FLOW),
    "UniPC noise": ("UniPCMultistepScheduler", SD | {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    "SA-Solver ODE": ("SASolverScheduler", SD | {"tau_func": lambda timestep: 0}),
    "TCD eta 0": ("TCDScheduler", {}),
    "Flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Flow Euler shift 3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "Flow map": ("FlowMapEulerDiscreteScheduler", {"shift": 3.0}),
    "Flow Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
}
STOCHASTIC = {
    "Euler a": ("EulerAncestralDiscreteScheduler", SD),
    "DDPM": ("DDPMScheduler", SD | {"clip_sample": False}),
    "DDIM eta 1": ("DDIMScheduler", SD | {"clip_sample": False}),
    "KDPM2 a": ("KDPM2AncestralDiscreteScheduler", SD),
    "DPM++ SDE": ("DPMSolverSDEScheduler", SD | {"noise_sampler_seed": 0}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", SD | {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S SDE": ("DPMSolverSinglestepScheduler", SD | {"algorithm_type": "sde-dpmsolver++"}),
    "SA-Solver": ("SASolverScheduler", SD),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "Flow Euler stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "Flow LTX ancestral": ("LTXEulerAncestralRFScheduler", {}),
    "Flow LCM": ("FlowMatchLCMScheduler", {}),
}
ETA = {"DDIM eta 1": 1.0, "TCD eta 0": 0.0}
CLEAN, NOISE = 0.5, 0.3
SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def spacings_of(name):
    return SPACINGS if "timestep_spacing" in options_of(name) else ()


def options_of(name):
    """What the scheduler of a case can be told; nothing where diffusers is too old to have it."""
    return inspect.signature(getattr(diffusers, (DETERMINISTIC | STOCHASTIC)[name][0], object)).parameters


ONE_EACH = {cls: name for name, (cls, _) in reversed((DETERMINISTIC | STOCHASTIC).items())}.values()  # of each class
SPACED = [(name, s) for name in (*ONE_EACH, "PNDM Runge-Kutta", "DDIM eta 1") for s in spacings_of(name)]
WITH_SIGMAS = [(name, sigmas) for name in ONE_EACH for sigmas in SIGMAS if sigmas in options_of(name)]


def mean(images):
    return images.mean((1, 2, 3))


def as_is(latents):
    return latents


def guidance(**settings):
    return RewardGuidance(mean, **{"decoder": as_is, "noise": 0.0, "max_drift": None, "scale": 0.1} | settings)


@pytest.fixture
def make(monkeypatch):
    """A scheduler from its class name and settings; DPMSolverSDE with a source of noise that needs no extra package."""

    def still(t0, t1, size, **_):
        return lambda ta, tb: torch.zeros(size)

    def factory(name, config):
        if not hasattr(diffusers, name):
            pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
        if name != "DPMSolverSDEScheduler":
            return getattr(diffusers, name)(**config)
        torchsde = ModuleType("torchsde")
        torchsde.BrownianInterval = still
        monkeypatch.setitem(sys.modules, "torchsde", torchsde)
        from diffusers.schedulers import scheduling_dpmsolver_sde

        monkeypatch.setattr(scheduling_dpmsolver_sde, "torchsde", torchsde)  # the real one may be there already
        return scheduling_dpmsolver_sde.DPMSolverSDEScheduler(**config)

    return factory


def set_timesteps(scheduler, count):
    extra = {"original_inference_steps": 1000} if type(scheduler).__name__ in ("LCMScheduler", "TCDScheduler") else {}
    scheduler.set_timesteps(count, **extra)


def units_now(scheduler, timestep):
    """The table's units, without leaving a trace in the scheduler."""
    fresh = getattr(scheduler, "step_index", 0) is None
    if fresh:
        scheduler._init_step_index(timestep)
    units = adapter_for(scheduler).coefficients(scheduler, timestep)
    if fresh:
        scheduler._step_index = None
    return units


def output_of(units, clean, noise):
    """What a model with this prediction of both would put out."""
    norm = math.hypot(units.alpha, units.sigma)
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": (units.alpha * noise - units.sigma * clean) / norm,
        "flow_prediction": noise - clean,
    }[units.prediction_type]


def known_noise(sample, units):
    """A model that knows that there is no noise: a latent that has moved stays where it has been moved to."""
    noise = torch.zeros_like(sample)
    return sample / units.alpha if units.alpha > 1e-6 else noise, noise


def gaussian(sample, units):
    """The exact model of latents that are standard normal: it takes back what leaves the data."""
    power = units.alpha**2 + units.sigma**2
    return units.alpha * sample / power, units.sigma * sample / power


def sampled(scheduler, model, count, settings, eta=None, begin=0, start=(0.0, 0.0)):
    """The clean latent at the end of a run that starts from a clean latent and noise, and the run."""
    torch.manual_seed(0)  # older schedulers draw from it without asking for a generator
    set_timesteps(scheduler, count)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    options = {"generator": torch.Generator().manual_seed(0), "eta": eta}
    names = inspect.signature(scheduler.step).parameters
    options = {name: value for name, value in options.items() if name in names and value is not None}
    sample = None
    with guided(SimpleNamespace(scheduler=scheduler), settings) as run:
        for timestep in scheduler.timesteps[begin:]:
            units = units_now(scheduler, timestep)
            if sample is None:
                sample = torch.full((1, 3, 2, 2), units.alpha * start[0] + units.sigma * start[1])
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(output_of(units, *model(sample, units)), timestep, sample, **options).prev_sample
    return (sample / last_alpha(scheduler, units)).double().mean().item(), run


def last_alpha(scheduler, units):
    """Factor of the clean latent in what the last step returns."""
    if units.prediction_type == "flow_prediction":
        return 1 / (1 + units.stage.end)
    if units.alpha == 1.0 and hasattr(scheduler, "sigmas"):
        return 1.0
    return 1 / math.hypot(1, units.stage.end)


def test_the_cases_cover_the_table():
    assert {name for name, _ in [*DETERMINISTIC.values(), *STOCHASTIC.values()]} == set(SCHEDULERS)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_push_is_the_scale_times_the_window_for_any_step_count(make, name):
    """Exactly, where the model follows: there is no noise, so nothing but guidance moves the clean latent off 0."""
    for count in (10, 20, 50, 100):
        push, run = sampled(make(*DETERMINISTIC[name]), known_noise, count, guidance(), ETA.get(name))
        assert sum(entry.weight for entry in run.log) == pytest.approx(TOTAL, rel=1e-4)
        assert push / 0.1 == pytest.approx(TOTAL, rel=3e-3)


def check_push(make, name, count, **options):
    """Shares that add up to the window, none of them rounding, and a push of as much."""
    cls, config = (DETERMINISTIC | STOCHASTIC)[name]
    scheduler, plain = make(cls, config | options), 0.0
    if name in STOCHASTIC:
        plain, _ = sampled(scheduler, known_noise, count, guidance(scale=0.0), ETA.get(name))
    push, run = sampled(scheduler, known_noise, count, guidance(), ETA.get(name))
    shares = [entry.weight for entry in run.log if entry.skipped is None]
    assert sum(shares) == pytest.approx(TOTAL, rel=1e-4)
    assert min(shares) > 1e-4  # a gradient is worth more than rounding
    # DDIM and PNDM step by 1000 // count, not to their next timestep: there every latent shrinks or grows a little
    own_steps = cls in ("DDIMScheduler", "PNDMScheduler") and options.get("timestep_spacing") != "leading"
    assert (push - plain) / 0.1 == pytest.approx(TOTAL, rel=(0.03 if count >= 10 else 0.04) if own_steps else 3e-3)


@pytest.mark.parametrize("count", [5, 13, 300])
@pytest.mark.parametrize(("name", "spacing"), SPACED)
def test_the_push_is_the_same_for_every_spacing_of_the_timesteps(make, name, spacing, count):
    check_push(make, name, count, timestep_spacing=spacing)


@pytest.mark.parametrize("count", [5, *(pytest.param(count, marks=pytest.mark.slow) for count in (10, 13, 50, 300))])
@pytest.mark.parametrize(("name", "sigmas"), WITH_SIGMAS)
def test_the_push_is_the_same_for_every_choice_of_sigmas(make, name, sigmas, count):
    for spacing in spacings_of(name):
        check_push(make, name, count, timestep_spacing=spacing, **{sigmas: True})
    if not spacings_of(name):
        check_push(make, name, count, **{sigmas: True})


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_push_hardly_depends_on_the_step_count_where_the_model_pulls_back(make, name):
    """Standard normal data: the continuous limit is the integral of ds / (s sqrt(1 + s^2)) over the window."""
    limit = math.asinh(0.95 / 0.05) - math.asinh(0.4 / 0.6)
    case, eta = DETERMINISTIC[name], ETA.get(name)
    found = [sampled(make(*case), gaussian, count, guidance(), eta)[0] / 0.1 for count in (10, 20, 50, 100)]
    assert found == pytest.approx([sum(found) / 4] * 4, rel=0.05)
    assert found[-1] == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndm_with_v_loses_no_more_of_the_push_than_of_a_still_latent(make, skip_prk_steps):
    """It mixes v of several timesteps, so without guidance, too, a clean latent that stays where it is shrinks."""
    config = SD | {"prediction_type": "v_prediction", "steps_offset": 1, "skip_prk_steps": skip_prk_steps}
    found = []
    for count in (10, 20, 50, 100):
        kept, _ = sampled(make("PNDMScheduler", config), known_noise, count, guidance(scale=0.0), start=(1.0, 0.0))
        push, _ = sampled(make("PNDMScheduler", config), known_noise, count, guidance())
        found.append(push / 0.1 / TOTAL)
        assert kept < found[-1] < 1
    assert found == pytest.approx([sum(found) / 4] * 4, rel=0.05)
    assert found[-1] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_push_as_far_where_the_model_follows(make, name):
    case, eta = STOCHASTIC[name], ETA.get(name)
    for count in (10, 40):
        plain, moved = (sampled(make(*case), known_noise, count, guidance(scale=scale), eta)[0] for scale in (0.0, 0.1))
        assert (moved - plain) / 0.1 == pytest.approx(TOTAL, rel=3e-3)


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not name.startswith("PNDM")])
def test_a_run_that_begins_in_the_middle_gets_the_rest_of_the_window(make, name):
    """As image-to-image does. (PNDM counts on the first timestep being there twice, which it is not then.)"""
    case = DETERMINISTIC[name]
    begin = 15 * make(*case).order
    push, run = sampled(make(*case), known_noise, 20, guidance(), ETA.get(name), begin)
    weights = sum(entry.weight for entry in run.log)
    assert 0 < weights < TOTAL
    assert push / 0.1 == pytest.approx(weights, rel=3e-3)


@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC])
def test_denoised_is_the_schedulers_own(make, name):
    """Against `pred_original_sample` where the scheduler returns it, against the stored x0 where it keeps that."""
    scheduler = make(*(DETERMINISTIC | STOCHASTIC)[name])
    set_timesteps(scheduler, 12)
    sample, checked = torch.randn(2, 3, 4, 4), 0
    for timestep in scheduler.timesteps:
        units, output = units_now(scheduler, timestep), torch.randn(2, 3, 4, 4)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        ours = denoised_from_output(output, sample, units.alpha, units.sigma, units.prediction_type)
        result = scheduler.step(output, timestep, sample)
        theirs = getattr(result, "pred_original_sample", None)
        if theirs is None and hasattr(scheduler, "model_outputs"):
            stored = scheduler.model_outputs[-1]
            keeps_noise = name in ("DPM 2M noise", "UniPC noise") or name.startswith("DEIS")
            theirs = (sample - units.sigma * stored) / units.alpha if keeps_noise else stored
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * float(theirs.abs().max()))
            checked += 1
        sample = torch.randn(2, 3, 4, 4)
    has_none = ("PNDM", "LCM", "TCD", "Flow")
    assert checked == (0 if name.startswith(has_none) else len(scheduler.timesteps))


@pytest.mark.parametrize("name", ["PNDM", "PNDM Runge-Kutta", "LCM", "TCD", "TCD eta 0"])
def test_units_of_schedulers_without_own_prediction_are_those_of_their_timestep(make, name):
    scheduler = make(*(DETERMINISTIC | STOCHASTIC)[name])
    set_timesteps(scheduler, 12)
    for timestep in scheduler.timesteps:
        units, here = units_now(scheduler, timestep), scheduler.alphas_cumprod[timestep]
        assert (units.alpha, units.sigma) == pytest.approx((float(here) ** 0.5, float(1 - here) ** 0.5))
        scheduler.step(torch.zeros(1, 3, 2, 2), timestep, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("name", ["Flow Euler", "Flow Heun", "Flow map", "Flow LTX ancestral", "Flow LCM"])
def test_flow_units_are_those_of_the_timestep(make, name):
    scheduler = make(*(DETERMINISTIC | STOCHASTIC)[name])
    set_timesteps(scheduler, 12)
    for timestep in scheduler.timesteps:
        units, sigma = units_now(scheduler, timestep), float(timestep) / 1000
        assert (units.alpha, units.sigma) == pytest.approx((1 - sigma, sigma))
        scheduler.step(torch.zeros(1, 3, 2, 2), timestep, torch.zeros(1, 3, 2, 2))


def middle_rounding(scheduler):
    """Relative error of the middle of a KDPM2 ancestral step, which is its end but for rounding.

    In float32, with u = 2**-24 and end = q * start: sigma_down^2 = end^2 - sigma_up^2 = q^2 end^2, and the terms of the
    difference carry up to 10 u of end^2 (nine roundings in sigma_up^2, one in end^2). So sigma_down^2 is known to
    10 u / q^2, sigma_down to half of that, and sqrt(start * sigma_down) to a quarter; its logarithms and exp add 10 u.
    """
    start, end = (float(sigma) for sigma in scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1])
    return 2**-24 * (10 + 2.5 * (start / end) ** 2)


@pytest.mark.parametrize("name", ["Heun", "KDPM2", "KDPM2 a", "DPM++ SDE", "Flow Heun"])
def test_second_stages_are_read_at_their_own_noise(make, name):
    """The model sees a latent built at the noise that the timestep of the second stage stands for."""
    scheduler = make(*(DETERMINISTIC | STOCHASTIC)[name])
    set_timesteps(scheduler, 8)
    levels, rounding = [], []
    for timestep in scheduler.timesteps:
        units = units_now(scheduler, timestep)
        levels.append(units.stage.ratio)
        second = name == "KDPM2 a" and not scheduler.state_in_first_order
        rounding.append(middle_rounding(scheduler) if second else 1e-6)
        assert not second or units.stage.share_of((0.999, 0.001)) == 0  # what is at the end of a step covers none of it
        assert units.alpha == 0 or units.stage.ratio == pytest.approx(units.sigma / units.alpha)
        sample = torch.full((1, 3, 2, 2), units.alpha * CLEAN + units.sigma * NOISE)
        output = output_of(units, torch.full_like(sample, CLEAN), torch.full_like(sample, NOISE))
        after = scheduler.step(output, timestep, sample).prev_sample
        arrived = units_now(scheduler, timestep).stage if len(levels) < len(scheduler.timesteps) else None
        if arrived is not None and name in ("Heun", "KDPM2"):  # the next evaluation is where this step says it is
            torch.testing.assert_close(after, torch.full_like(after, CLEAN + arrived.ratio * NOISE))
    assert all(b <= a * (1 + error) for (a, b), error in zip(pairwise(levels), rounding[:-1], strict=True))


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "LCM", "Heun"])
def test_nothing_moves_where_the_scheduler_clips(make, name):
    class_name, config = (DETERMINISTIC | STOCHASTIC)[name]
    config = config | {"clip_sample": True, "clip_sample_range": 1.0}
    inside, near, outside = 0.2, 0.99, 1.3
    results = []
    for scale in (0.0, 1.0):
        scheduler = make(class_name, config)
        set_timesteps(scheduler, 10)
        timestep = scheduler.timesteps[7 if name != "Heun" else 13]
        scheduler._step_index = None
        units = units_now(scheduler, timestep)
        clean = torch.tensor([inside, near, outside, -outside]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
        noise = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        sample, output = units.alpha * clean + units.sigma * noise, output_of(units, clean, noise)
        options = {} if name in ("Heun", "DDIM") else {"generator": torch.Generator().manual_seed(0)}
        pipe = SimpleNamespace(scheduler=scheduler)
        with guided(pipe, guidance(scale=scale)) as run:
            results.append(scheduler.step(output, timestep, sample, **options))
    plain, moved = (result.prev_sample[0, 0].flatten() for result in results)
    push = run.log[0].change[0]
    following = units.stage.end
    alpha = 1.0 if name == "Heun" else 1 / math.hypot(1, following)
    change = (moved - plain) / alpha
    assert push > 0.05
    assert change[0].item() == pytest.approx(push, rel=2e-2)
    assert change[1].item() == pytest.approx(1 - near, rel=2e-2)  # as far as the clipping lets it
    assert change[2:].abs().max().item() < 1e-6


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "DPM++ 2M", "DPM++ 2S", "DEIS", "UniPC", "SA-Solver ODE", "LCM"])
def test_thresholding_passes_the_push_in_full(make, name):
    """Dynamic thresholding divides the prediction; guidance acts after it and moves the result by its push."""
    class_name, config = (DETERMINISTIC | STOCHASTIC)[name]
    config = config | {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 4.0}
    clean, noise = 2 * torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    results = []
    for scale in (0.0, 0.01):
        scheduler = make(class_name, config)
        set_timesteps(scheduler, 10)
        timestep = scheduler.timesteps[6]
        units = units_now(scheduler, timestep)
        sample, output = units.alpha * clean + units.sigma * noise, output_of(units, clean, noise)
        names = inspect.signature(scheduler.step).parameters
        options = {"generator": torch.Generator().manual_seed(0)} if "generator" in names and name != "DDIM" else {}
        with guided(SimpleNamespace(scheduler=scheduler), guidance(scale=scale)) as run:
            results.append(scheduler.step(output, timestep, sample, **options).prev_sample)
    change = (results[1] - results[0]) * math.hypot(1, units.stage.end)
    limit = torch.quantile(clean.abs(), 0.9)
    assert limit > 1.5
    free = clean.abs() < 0.97 * limit
    assert change[free].mean().item() == pytest.approx(run.log[0].change[0], rel=0.05)
    assert change[clean.abs() > limit].abs().max() < 1e-3


def test_an_unknown_scheduler_names_the_known_ones():
    pipe = SimpleNamespace(scheduler=diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match=r"EDMEulerScheduler.*expected one of DDIMScheduler"):
        guided(pipe, guidance()).__enter__()
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM"])
def test_a_timestep_that_is_not_in_the_list_is_refused(make, name):
    scheduler = make(*(DETERMINISTIC | STOCHASTIC)[name])
    set_timesteps(scheduler, 4)
    zero = torch.zeros(1, 3, 2, 2)
    with (
        pytest.raises(ValueError, match=r"timestep 123 is not in the scheduler's list \["),
        guided(SimpleNamespace(scheduler=scheduler), guidance()),
    ):
        scheduler.step(zero, 123, zero)


def test_inverted_sigmas_are_refused():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(4)
    zero = torch.zeros(1, 3, 2, 2)
    with (
        pytest.raises(ValueError, match="invert_sigmas=True"),
        guided(SimpleNamespace(scheduler=scheduler), guidance()),
    ):
        scheduler.step(zero, scheduler.timesteps[0], zero)
    assert "step" not in vars(scheduler)
