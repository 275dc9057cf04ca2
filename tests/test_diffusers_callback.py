"""`RewardGuidanceCallback` as a plain `callback_on_step_end`: what it sees, what it cannot, how it cleans up."""

import json
import logging

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from tiny_pipelines import tiny_pipeline

from iqguide.guidance import RewardGuidance
from iqguide.guidance.diffusers import RewardGuidanceCallback, guided

LOGGER = "iqguide.guidance.diffusers"


def mean(images):
    return images.mean((1, 2, 3))


def guidance(**settings):
    return RewardGuidance(**{"reward": mean, "scale": 0.3, "noise_window": (0.99, 0.05)} | settings)


@pytest.fixture
def pipe():
    return tiny_pipeline("stable-diffusion")[0]


def draw(pipe, callback=None, **kwargs):
    inputs = tiny_pipeline("stable-diffusion")[1] | {"output_type": "latent"} | kwargs
    return pipe(**inputs, generator=torch.Generator().manual_seed(0), callback_on_step_end=callback).images


def wrapped(pipe):
    return "step" in vars(pipe.scheduler)


def test_with_the_pipeline_it_does_what_guided_does(pipe):
    with guided(pipe, guidance()) as run:
        expected = draw(pipe)
    callback = RewardGuidanceCallback(guidance(), pipe)
    assert wrapped(pipe)
    assert draw(pipe, callback).equal(expected)
    assert callback.log == run.log
    assert not wrapped(pipe)


def test_without_the_pipeline_it_guides_from_the_second_evaluation_and_says_so(pipe, caplog):
    latents = {}

    def keep(name):
        def callback(_, index, timestep, tensors):
            latents.setdefault(name, []).append(tensors["latents"].clone())
            return tensors

        return callback

    draw(pipe, keep("plain"))
    callback = RewardGuidanceCallback(guidance())
    with caplog.at_level(logging.WARNING, LOGGER):
        draw(pipe, lambda *args: keep("guided")(*args[:3], callback(*args)))
    (record,) = caplog.records
    assert "guides after evaluation 1 of 4 only" in record.message
    assert latents["guided"][0].equal(latents["plain"][0])
    assert not latents["guided"][1].equal(latents["plain"][1])
    assert len(callback.log) == 3
    assert not wrapped(pipe)


def test_one_callback_can_serve_again(pipe, caplog):
    callback = RewardGuidanceCallback(guidance(), pipe)
    first = draw(pipe, callback)
    with caplog.at_level(logging.WARNING, LOGGER):
        late = draw(pipe, callback)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert not late.equal(first)
    callback.arm(pipe)
    assert draw(pipe, callback).equal(first)
    assert not wrapped(pipe)


def test_scale_zero_is_bit_identical_and_silent(pipe, caplog):
    plain = draw(pipe)
    with caplog.at_level(logging.INFO, LOGGER):
        assert draw(pipe, RewardGuidanceCallback(guidance(scale=0.0), pipe)).equal(plain)
        assert draw(pipe, RewardGuidanceCallback(guidance(scale=0.0))).equal(plain)
    assert not caplog.records
    assert not wrapped(pipe)


def test_an_interrupt_leaves_the_wrapper_until_the_next_run_begins(pipe):
    plain = draw(pipe)
    callback = RewardGuidanceCallback(guidance(), pipe)

    def stop(pipeline, index, timestep, tensors):
        pipeline._interrupt = index == 1
        return callback(pipeline, index, timestep, tensors)

    draw(pipe, stop)
    assert wrapped(pipe)  # nobody told the callback
    assert draw(pipe).equal(plain)
    assert not wrapped(pipe)


def test_an_exception_in_the_denoiser_leaves_the_wrapper_until_the_next_run_begins(pipe):
    plain = draw(pipe)
    callback = RewardGuidanceCallback(guidance(), pipe)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    hook = pipe.unet.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(pipe, callback)
    hook.remove()
    assert wrapped(pipe)
    assert draw(pipe).equal(plain)
    assert not wrapped(pipe)


def test_remove_cleans_up_at_once(pipe):
    callback = RewardGuidanceCallback(guidance(), pipe)
    callback.remove()
    assert not wrapped(pipe)
    callback.remove()


def test_an_exception_in_its_own_step_removes_it(pipe):
    plain = draw(pipe)

    def broken(images):
        raise KeyError("reward")

    with pytest.raises(KeyError, match="reward"):
        draw(pipe, RewardGuidanceCallback(guidance(reward=broken), pipe))
    assert not wrapped(pipe)
    assert draw(pipe).equal(plain)


def test_a_run_of_one_step_is_over_before_an_unarmed_callback_comes(pipe):
    plain = draw(pipe, num_inference_steps=1)
    with pytest.warns(UserWarning, match="Guidance changed nothing"):
        assert draw(pipe, RewardGuidanceCallback(guidance()), num_inference_steps=1).equal(plain)
    assert not wrapped(pipe)


def test_image_to_image_with_few_steps(pipe):
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    inputs = {name: value for name, value in tiny_pipeline("stable-diffusion")[1].items() if "embeds" in name}
    inputs |= {"image": torch.rand(1, 3, 32, 32), "strength": 0.75, "num_inference_steps": 4, "output_type": "latent"}
    plain = img2img(**inputs, generator=torch.Generator().manual_seed(0)).images
    for callback, evaluations in (
        (RewardGuidanceCallback(guidance(), img2img), 3),
        (RewardGuidanceCallback(guidance()), 2),
    ):
        latents = img2img(**inputs, generator=torch.Generator().manual_seed(0), callback_on_step_end=callback).images
        assert not latents.equal(plain)
        assert len(callback.log) == evaluations
        assert not wrapped(pipe)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
def test_it_goes_at_the_last_evaluation_of_any_solver(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    callback = RewardGuidanceCallback(guidance(), pipe)
    draw(pipe, callback)
    assert len(callback.log) == len(pipe.scheduler.timesteps)
    assert not wrapped(pipe)


def test_a_scheduler_exchanged_before_the_run_is_followed_from_the_second_evaluation(pipe):
    old = pipe.scheduler
    callback = RewardGuidanceCallback(guidance(), pipe)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(old.config)
    draw(pipe, callback)
    assert len(callback.log) == 3
    assert "step" not in vars(old)
    assert not wrapped(pipe)


def test_it_works_beside_other_callbacks(pipe):
    callback = RewardGuidanceCallback(guidance(), pipe)
    both = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5), callback])
    inputs = tiny_pipeline("stable-diffusion")[1] | {"output_type": "latent"}
    pipe(**inputs, callback_on_step_end=both)
    assert len(callback.log) == 4
    assert not wrapped(pipe)


def test_its_configuration_can_be_saved(pipe, tmp_path):
    callback = RewardGuidanceCallback(guidance(), pipe)
    callback.save_config(tmp_path)
    callback.remove()
    saved = json.loads((tmp_path / callback.config_name).read_text("utf-8"))
    assert {name for name in saved if not name.startswith("_")} == set()


@pytest.mark.parametrize("size", [{"height": 32, "width": 64}, {}])
def test_packed_latents_that_it_cannot_see_being_made_need_a_size(size):
    """Without the pipeline it comes after the latents were made: 32 x 64 pixels have as many patches as 64 x 32."""
    flux, inputs = tiny_pipeline("flux")
    inputs |= {"height": 32, "width": 64, "output_type": "latent", "num_inference_steps": 8}
    callback = RewardGuidanceCallback(guidance(), **size)
    if not size:
        with pytest.raises(ValueError, match=r"do not tell their height and width.*height= and width="):
            flux(**inputs, callback_on_step_end=callback)
    else:
        flux(**inputs, callback_on_step_end=callback)
        assert len(callback.log) == 7
        assert any(entry.skipped is None for entry in callback.log)
    assert "step" not in vars(flux.scheduler)
    assert json.loads(callback.to_json_string()).keys().isdisjoint({"height", "width"})


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_denoiser_that_fails_disarms_it_at_once(pipe, fails_at):
    expected = draw(pipe)
    callback = RewardGuidanceCallback(guidance(), pipe)
    calls = iter(range(10))

    def fail(module, args):
        if next(calls) == fails_at:
            raise RuntimeError("out of memory")

    hook = pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(pipe, callback)
    hook.remove()
    assert not wrapped(pipe)
    assert not pipe.unet._forward_hooks
    assert draw(pipe).equal(expected)
