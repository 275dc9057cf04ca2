"""Leaving a real pipeline in the middle and entering again: every family, every scheduler that a pipeline can run."""

import diffusers
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from tiny_pipelines import FAMILIES, tiny_pipeline

from iqguide import RewardGuidance
from iqguide.guidance.diffusers import guided
from iqguide.guidance.diffusers.denoiser import counted_rows
from iqguide.guidance.diffusers.schedulers import SCHEDULERS
from iqguide.search.resume import resume, run_until
from iqguide.search.sampler_state import SamplerState, join_states

STEPS = 7
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
NO_CLIP = SD | {"clip_sample": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}

IN_STABLE_DIFFUSION = {
    "DDIM": ("DDIMScheduler", NO_CLIP),
    "DDIM that clips": ("DDIMScheduler", SD | {"clip_sample": True}),
    "DDPM": ("DDPMScheduler", {k: v for k, v in NO_CLIP.items() if k != "steps_offset"}),
    "DEIS 3": ("DEISMultistepScheduler", SD | {"solver_order": 3}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", SD),
    "DPM++ 3M Karras": ("DPMSolverMultistepScheduler", SD | {"solver_order": 3, "use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", SD | SDE),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {k: v for k, v in SD.items() if k != "steps_offset"}),
    "DPM++ 3S SDE": (
        "DPMSolverSinglestepScheduler",
        {k: v for k, v in SD.items() if k != "steps_offset"} | SDE | {"solver_order": 3},
    ),
    "Euler": ("EulerDiscreteScheduler", SD),
    "Euler v": ("EulerDiscreteScheduler", SD | {"prediction_type": "v_prediction"}),
    "Euler a": ("EulerAncestralDiscreteScheduler", SD),
    "Heun": ("HeunDiscreteScheduler", SD),
    "KDPM2": ("KDPM2DiscreteScheduler", SD),
    "KDPM2 a": ("KDPM2AncestralDiscreteScheduler", SD),
    "LCM": ("LCMScheduler", {"original_inference_steps": 50}),
    "LMS": ("LMSDiscreteScheduler", SD),
    "PNDM": ("PNDMScheduler", SD | {"skip_prk_steps": True}),
    "PNDM Runge-Kutta": ("PNDMScheduler", SD | {"skip_prk_steps": False}),
    "SA-Solver": ("SASolverScheduler", SD),
    "TCD": ("TCDScheduler", {"original_inference_steps": 50}),
    "UniPC": ("UniPCMultistepScheduler", SD),
    "UniPC 3": ("UniPCMultistepScheduler", SD | {"solver_order": 3}),
}
IN_SD3 = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow map": ("FlowMapEulerDiscreteScheduler", {"shift": 3.0}),
    "flow DPM++ 2M": ("DPMSolverMultistepScheduler", FLOW),
    "flow UniPC": ("UniPCMultistepScheduler", FLOW),
    "flow LTX without noise": ("LTXEulerAncestralRFScheduler", {"eta": 0.0}),
}
REFUSED = {
    "DPM++ SDE": ("stable-diffusion", "DPMSolverSDEScheduler", SD, "noise for a whole batch at once"),
    "flow LCM": ("stable-diffusion-3", "FlowMatchLCMScheduler", {}, "no generator for the noise"),
    "flow LTX ancestral": ("stable-diffusion-3", "LTXEulerAncestralRFScheduler", {}, "no generator for the noise"),
    "flow Euler stochastic": (
        "stable-diffusion-3",
        "FlowMatchEulerDiscreteScheduler",
        {"stochastic_sampling": True},
        "no generator for the noise",
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def brightness(images):
    return images.mean((1, 2, 3))


def call_of(inputs, samples):
    """Arguments for a batch of one prompt."""
    return {
        name: value.repeat_interleave(samples, 0) if "prompt" in name else value for name, value in inputs.items()
    } | {"output_type": "pt"}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pipeline(family, scheduler=None, config=None):
    pipe, inputs = tiny_pipeline(family)
    if scheduler is not None:
        if not hasattr(diffusers, scheduler):
            pytest.skip(f"diffusers {diffusers.__version__} has no {scheduler}")
        pipe.scheduler = getattr(diffusers, scheduler)(**config)
    return pipe, inputs | {"num_inference_steps": STEPS}


def check(pipe, inputs, shares=(0.3, 0.6)):
    """Entering again gives what the uninterrupted run gives, through several places, and evaluates nothing twice."""
    with counted_rows(pipe) as plain_rows:
        plain = pipe(**call_of(inputs, 3), generator=generators(4, 5, 6)).images
    for share in (0.01, *shares):
        with counted_rows(pipe) as rows:
            state, denoised = run_until(pipe, share, generators(4, 5, 6), **call_of(inputs, 3))
            again = resume(pipe, generators(4, 5, 6), state, **call_of(inputs, 3)).images
        assert torch.equal(again, plain)
        assert sum(rows) == sum(plain_rows)
        assert denoised.shape == state.latents.shape
    early, _ = run_until(pipe, shares[0], generators(4, 5, 6), **call_of(inputs, 3))
    late, _ = run_until(pipe, shares[1], generators(6, 4), early.select([2, 0]), **call_of(inputs, 2))
    assert early.position < late.position
    for lane, (seed, index) in enumerate([(6, 2), (4, 0)]):
        alone = resume(pipe, generators(seed), late.select([lane]), **call_of(inputs, 1)).images[0]
        torch.testing.assert_close(alone, plain[index], rtol=0, atol=1e-3)
    other, _ = run_until(pipe, shares[1], generators(5), early.select([1]), **call_of(inputs, 1))
    together = resume(pipe, generators(5, 6, 4), join_states([other, late]), **call_of(inputs, 3)).images
    torch.testing.assert_close(together, plain[[1, 2, 0]], rtol=0, atol=1e-3)
    assert (plain[0] - plain[1]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    check(*pipeline(family))


@pytest.mark.parametrize("name", IN_STABLE_DIFFUSION)
def test_every_scheduler_of_stable_diffusion(name):
    check(*pipeline("stable-diffusion", *IN_STABLE_DIFFUSION[name]))


@pytest.mark.parametrize("name", IN_SD3)
def test_every_scheduler_of_flow_models(name):
    check(*pipeline("stable-diffusion-3", *IN_SD3[name]))


def test_every_scheduler_of_the_table_is_here():
    everything = [*IN_STABLE_DIFFUSION.values(), *IN_SD3.values(), *(row[1:3] for row in REFUSED.values())]
    assert {name for name, _ in everything} == set(SCHEDULERS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_entered_again_is_refused(name):
    family, scheduler, config, message = REFUSED[name]
    pipe, inputs = tiny_pipeline(family)
    module = diffusers.schedulers
    if scheduler == "DPMSolverSDEScheduler":
        module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_sde")
    if not hasattr(module, scheduler):
        pytest.skip(f"diffusers {diffusers.__version__} has no {scheduler}")
    try:
        pipe.scheduler = getattr(module, scheduler)(**config)
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match=message):
        run_until(pipe, 0.5, generators(1), **call_of(inputs, 1))
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheduler", ["own", "other"])
def test_guided_runs(family, scheduler):
    """The moving average, the pushes so far and the views go on, too."""
    pipe, inputs = pipeline(family)
    if scheduler == "other" and "diffusion-3" not in family and family != "flux":
        pipe.scheduler = diffusers.UniPCMultistepScheduler(**SD)
    elif scheduler == "other":
        pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
        if family == "flux":
            pytest.skip("Flux gives sigmas, which this scheduler does not take")
    with guided(pipe, RewardGuidance(brightness, scale=0.5, ema=1.0, max_drift=0.3, shift=2)):
        check(pipe, inputs, (0.5, 0.7))
    assert "step" not in vars(pipe.scheduler)


def test_a_pipeline_that_starts_from_a_picture():
    pipe, inputs = pipeline("stable-diffusion")
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    del inputs["height"], inputs["width"]
    check(pipe, inputs | {"image": torch.rand(1, 3, 32, 32), "strength": 0.8})


def test_inpainting_one_by_one():
    """It blends after each step; and it encodes the picture with the first generator of the batch, for all of it."""
    pipe, inputs = pipeline("stable-diffusion")
    pipe = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    inputs |= {"image": torch.rand(1, 3, 32, 32), "mask_image": torch.ones(1, 1, 32, 32).tril(), "strength": 0.8}
    plain = pipe(**call_of(inputs, 1), generator=generators(3)).images
    state, _ = run_until(pipe, 0.5, generators(3), **call_of(inputs, 1))
    assert torch.equal(resume(pipe, generators(3), state, **call_of(inputs, 1)).images, plain)
    both, _ = run_until(pipe, 0.5, generators(3, 4), **call_of(inputs, 2))
    with pytest.raises(ValueError, match="then use batch_size=1"):
        resume(pipe, generators(4), both.select([1]), **call_of(inputs, 1))


def test_a_state_can_be_written_and_read(tmp_path):
    pipe, inputs = pipeline("stable-diffusion", "UniPCMultistepScheduler", SD)
    with guided(pipe, RewardGuidance(brightness, scale=0.5)):
        state, _ = run_until(pipe, 0.6, generators(1, 2), **call_of(inputs, 2))
        torch.save(vars(state), tmp_path / "state.pt")
        read = SamplerState(**torch.load(tmp_path / "state.pt", weights_only=True))
        first, second = (resume(pipe, generators(1, 2), which, **call_of(inputs, 2)).images for which in (state, read))
    assert torch.equal(first, second)


def test_a_state_of_another_run_is_refused():
    pipe, inputs = pipeline("stable-diffusion")
    state, _ = run_until(pipe, 0.5, generators(1), **call_of(inputs, 1))
    for changes, message in (({"num_inference_steps": 12}, "of the first call"), ({"height": 64}, "not prepared")):
        with pytest.raises(ValueError, match=message):
            resume(pipe, generators(1), state, **call_of(inputs | changes, 1))
    with pytest.raises(ValueError, match="the generators are others"):
        resume(pipe, generators(2), state, **call_of(inputs, 1))
    with pytest.raises(ValueError, match="expected more than 3"):
        resume(pipe, generators(1), state, **call_of(inputs | {"num_inference_steps": 2}, 1))
    later, _ = run_until(pipe, 0.8, generators(1), **call_of(inputs, 1))
    with pytest.raises(ValueError, match="expected one position"):
        join_states([state, later])


def test_the_pipeline_is_left_as_found_after_an_exception():
    pipe, inputs = pipeline("stable-diffusion")
    before = sorted(vars(pipe.scheduler)), sorted(vars(pipe.unet))
    state, _ = run_until(pipe, 0.5, generators(1), **call_of(inputs, 1))
    pipe.scheduler.set_timesteps(STEPS)
    after = sorted(vars(pipe.scheduler)), sorted(vars(pipe.unet))
    assert set(after[0]) - set(before[0]) <= {"num_inference_steps"}
    assert after[1] == before[1]
    with pytest.raises(ValueError, match="resume with the arguments"):
        resume(pipe, generators(1), state, **call_of(inputs | {"num_inference_steps": 12}, 1))
    assert (sorted(vars(pipe.scheduler)), sorted(vars(pipe.unet))) == after
