"""Guidance in real pipelines beyond the four families that everything is tested with: layout, units, no trace."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from more_tiny_pipelines import PIPELINES, another_tiny_pipeline
from test_families import broken, state_of, to_the_left
from tiny_pipelines import tiny_pipeline

from iqguide import RewardGuidance
from iqguide.guidance.diffusers import RewardGuidanceCallback, guided
from iqguide.guidance.diffusers.decoders import find_decoder

STEPS = 4
SEEDS = range(2)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=PIPELINES)
def name(request):
    """What `another_tiny_pipeline` is asked for."""
    return request.param


def draw(pipe, inputs, seed=0, output_type="pt", **changes):
    """Pictures of one call, (frames, 3, H, W); or the latents."""
    generator = torch.Generator().manual_seed(seed)
    result = pipe(**inputs | changes, generator=generator, output_type=output_type)
    made = result.frames if hasattr(result, "frames") else result.images
    return made[0] if made.ndim == 5 and output_type == "pt" else made


@pytest.fixture
def made(name):
    pipe, inputs = another_tiny_pipeline(name)
    return pipe, inputs | {"num_inference_steps": STEPS}


def test_decodes_as_the_pipeline_does(made):
    pipe, inputs = made
    decoder = find_decoder(pipe)
    with decoder.watch(pipe):
        pictures, latents = draw(pipe, inputs), draw(pipe, inputs, output_type="latent")
    decoded = decoder(latents)
    decoded = decoded[0] if decoded.ndim == 5 else decoded
    assert pictures.shape[1:] == (3, 32, 32)
    assert pictures.std() > 0.03  # a picture, not a constant
    torch.testing.assert_close(decoded, pictures, rtol=0, atol=2e-6)


def test_the_reward_rises(made):
    pipe, inputs = made
    plain = [to_the_left(draw(pipe, inputs, seed)).mean() for seed in SEEDS]
    with guided(pipe, RewardGuidance(to_the_left, scale=0.5, every=1)) as run:
        steered = [to_the_left(draw(pipe, inputs, seed)).mean() for seed in SEEDS]
    assert len(run.runs) == len(SEEDS)
    assert all(run.fired for run in run.runs)
    assert all(after > before for before, after in zip(plain, steered, strict=True)), (plain, steered)


def test_off_is_bit_identical_and_the_pipeline_is_left_as_found(made):
    pipe, inputs = made
    plain = draw(pipe, inputs)
    before = state_of(pipe)
    with guided(pipe, RewardGuidance(to_the_left, scale=0)):
        assert torch.equal(draw(pipe, inputs), plain)
    with pytest.raises(RuntimeError, match="reward broke"), guided(pipe, RewardGuidance(broken)):
        draw(pipe, inputs)
    with guided(pipe, RewardGuidance(to_the_left)):
        assert not torch.equal(draw(pipe, inputs), plain)
    assert state_of(pipe) == before
    assert torch.equal(draw(pipe, inputs), plain)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "pixart-sigma"], indirect=True)
def test_the_callback_guides_where_there_is_one(made):
    pipe, inputs = made
    callback = RewardGuidanceCallback(RewardGuidance(to_the_left, scale=0.5, every=1), pipe)
    steered = draw(pipe, inputs, callback_on_step_end=callback)
    assert to_the_left(steered).mean() > to_the_left(draw(pipe, inputs)).mean()
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_models_of_few_steps(steps):
    """As SDXL Turbo and Lightning are used: trailing timesteps, no classifier-free guidance."""
    pipe, inputs = tiny_pipeline("stable-diffusion-xl")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    inputs |= {"num_inference_steps": steps, "guidance_scale": 0.0}
    plain = draw(pipe, inputs)
    with guided(pipe, RewardGuidance(to_the_left, scale=0.5, every=1)) as run:
        steered = draw(pipe, inputs)
    assert len(run.log) == steps
    assert to_the_left(steered) > to_the_left(plain)
