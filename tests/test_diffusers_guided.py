"""`guided(pipe, guidance)` around real pipelines: what it changes, what it leaves as it was, what it survives."""

import copy
import inspect
import math
import warnings
from types import SimpleNamespace

import diffusers
import pytest
import torch
from tiny_pipelines import FAMILIES, tiny_pipeline, tiny_tae

from iqguide.guidance import RewardGuidance
from iqguide.guidance.diffusers import guided
from iqguide.guidance.diffusers.decoders import find_decoder

SEEDS = 6
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def mean(images):
    return images.mean((1, 2, 3))


def contrast(images):
    return images.std((1, 2, 3))


def guidance(**settings):
    return RewardGuidance(**{"reward": mean, "scale": 0.3, "every": 1} | settings)


def log_length(start, stop):
    """Between two noise levels, in log(sigma / alpha)."""
    return math.log(start / (1 - start)) - math.log(stop / (1 - stop))


def toy_guidance(**settings):
    """Latents that are their own pictures."""
    return guidance(**{"decoder": lambda latents: latents, "noise": 0.0, "max_drift": None} | settings)


@pytest.fixture
def pipe():
    return tiny_pipeline("stable-diffusion")[0]


def draw(pipe, *, family="stable-diffusion", seeds=(0,), **kwargs):
    """Latents or pictures of some seeds, as one batch."""
    inputs = tiny_pipeline(family)[1] | {"output_type": "latent"} | kwargs
    inputs |= {name: value.expand(len(seeds), *value.shape[1:]) for name, value in inputs.items() if "embeds" in name}
    return pipe(**inputs, generator=[torch.Generator().manual_seed(seed) for seed in seeds]).images


def with_scheduler(pipe, name, **config):
    config |= {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    return pipe


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reward", [mean, contrast])
def test_it_raises_a_reward_that_the_decoder_can_express(family, reward):
    pipe, _ = tiny_pipeline(family)
    settings = {"family": family, "seeds": range(SEEDS), "output_type": "pt", "num_inference_steps": 8}
    before = reward(draw(pipe, **settings))
    with guided(pipe, guidance(reward=reward, noise=0.0)) as run:
        after = reward(draw(pipe, **settings))
    assert (after > before).sum() >= SEEDS - 1
    assert len(run.log) == 8
    assert all(entry.score_after > entry.score_before for entry in run.log if entry.skipped is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_bit_identical_and_leaves_no_trace(family):
    pipe, _ = tiny_pipeline(family)
    plain = draw(pipe, family=family)
    attributes = set(vars(pipe.scheduler))
    with guided(pipe, guidance(scale=0.0)) as run:
        assert draw(pipe, family=family).equal(plain)
    assert len(run.log) == 4
    assert not any(entry.skipped is None for entry in run.log)
    assert set(vars(pipe.scheduler)) == attributes
    assert "step" not in attributes
    assert draw(pipe, family=family).equal(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipeline_is_unchanged_after_guidance(family):
    pipe, _ = tiny_pipeline(family)
    plain = draw(pipe, family=family)
    flags = [parameter.requires_grad for parameter in pipe.vae.parameters()]
    attributes = set(vars(pipe))
    with guided(pipe, guidance()):
        guided_latents = draw(pipe, family=family)
    assert not guided_latents.equal(plain)
    assert "step" not in vars(pipe.scheduler)
    assert set(vars(pipe)) == attributes
    assert [parameter.requires_grad for parameter in pipe.vae.parameters()] == flags
    assert all(parameter.grad is None for parameter in pipe.vae.parameters())
    assert draw(pipe, family=family).equal(plain)


def test_an_autoencoder_can_be_the_decoder(pipe):
    autoencoder = tiny_tae()
    with guided(pipe, guidance(decoder=autoencoder)) as run:
        found = draw(pipe)
    with guided(pipe, guidance(decoder=find_decoder(pipe, autoencoder))):
        assert draw(pipe).equal(found)
    assert any(entry.skipped is None for entry in run.log)


def test_only_evaluations_inside_the_window_change_the_latents(pipe):
    seen = {}

    def keep(name):
        def callback(_, index, timestep, tensors):
            seen.setdefault(name, []).append(tensors["latents"].clone())
            return tensors

        return callback

    draw(pipe, num_inference_steps=12, callback_on_step_end=keep("plain"))
    with guided(pipe, guidance(noise_window=(0.6, 0.3))) as run:
        draw(pipe, num_inference_steps=12, callback_on_step_end=keep("guided"))
    first = next(entry.index for entry in run.log if entry.skipped is None)
    assert first > 0
    assert all(a.equal(b) for a, b in zip(seen["plain"][:first], seen["guided"][:first], strict=True))
    assert not seen["plain"][first].equal(seen["guided"][first])
    active = [entry for entry in run.log if entry.skipped is None]
    assert all(entry.noise_level > 0.3 and entry.next_noise_level < 0.6 for entry in active)


def test_every_call_in_a_block_is_a_run_of_its_own(pipe):
    with guided(pipe, guidance(noise=0.1)) as run:
        first, second = draw(pipe), draw(pipe)
        other = draw(pipe, seeds=(0, 1), num_inference_steps=6)
    assert first.equal(second)
    assert [len(one.log) for one in run.runs] == [4, 4, 6]
    assert run.runs[0].log == run.runs[1].log
    assert run.log is run.runs[-1].log
    alone, _ = draw_guided(pipe, seeds=(1,), num_inference_steps=6)
    torch.testing.assert_close(alone, other[1:], rtol=1e-3, atol=1e-3)


def draw_guided(pipe, **kwargs):
    with guided(pipe, guidance(noise=0.1)) as run:
        return draw(pipe, **kwargs), run.log


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DDPMScheduler"])
def test_runs_are_told_apart_for_schedulers_with_and_without_a_step_index(pipe, name):
    with_scheduler(pipe, name)
    with guided(pipe, guidance()) as run:
        for steps in (1, 1, 3):
            draw(pipe, num_inference_steps=steps)
    assert len(run.runs) == 3


def test_it_restores_after_an_exception_in_the_denoiser(pipe):
    plain = draw(pipe)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    hook = pipe.unet.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), guided(pipe, guidance()) as run:
        draw(pipe)
    hook.remove()
    assert len(run.log) == 2
    assert "step" not in vars(pipe.scheduler)
    assert draw(pipe).equal(plain)


def test_it_restores_after_an_exception_in_the_reward(pipe):
    def broken(images):
        raise KeyError("reward")

    with pytest.raises(KeyError, match="reward"), guided(pipe, guidance(reward=broken)):
        draw(pipe)
    assert "step" not in vars(pipe.scheduler)


def test_it_restores_after_an_interrupt(pipe):
    plain = draw(pipe)

    def stop(pipeline, index, timestep, tensors):
        pipeline._interrupt = index == 1
        return tensors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with guided(pipe, guidance()) as run:
            draw(pipe, callback_on_step_end=stop)
    assert len(run.log) == 2
    assert "step" not in vars(pipe.scheduler)
    assert draw(pipe).equal(plain)


def test_blocks_nest_and_a_foreign_wrapper_is_put_back(pipe):
    original = pipe.scheduler.step
    foreign = lambda *args, **kwargs: original(*args, **kwargs)
    foreign.__signature__ = inspect.signature(original)
    pipe.scheduler.step = foreign
    with guided(pipe, guidance()) as outer, guided(pipe, guidance(reward=contrast)) as inner:
        draw(pipe)
    assert outer.log[2].skipped is inner.log[2].skipped is None
    assert pipe.scheduler.step is foreign


def test_a_wrapper_put_on_inside_the_block_stays_and_guidance_stops(pipe):
    plain = draw(pipe)
    with guided(pipe, guidance()):
        guided_latents = draw(pipe)
        wrapped = pipe.scheduler.step
        pipe.scheduler.step = lambda *args, **kwargs: wrapped(*args, **kwargs)
    assert not guided_latents.equal(plain)
    assert draw(pipe).equal(plain)


def test_pipelines_still_see_eta_and_generator(pipe):
    with guided(pipe, guidance()):
        assert {"eta", "generator"} <= set(inspect.signature(pipe.scheduler.step).parameters)
        assert pipe.scheduler.step.__name__ == "step"
        first, second = draw(pipe, eta=1.0), draw(pipe, eta=0.0)
    assert not first.equal(second)


@pytest.mark.parametrize("form", ["positional", "keyword"])
def test_step_takes_and_returns_what_the_scheduler_does(form):
    results = []
    for return_dict in (True, False):
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(10)
        timestep = scheduler.timesteps[6]
        scheduler.scale_model_input(torch.zeros(1), timestep)
        output, sample = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
        with guided(SimpleNamespace(scheduler=scheduler), toy_guidance()) as run:
            if form == "positional":
                result = scheduler.step(output, timestep, sample, return_dict=return_dict)
            else:
                result = scheduler.step(sample=sample, model_output=output, timestep=timestep, return_dict=return_dict)
        push = run.log[0].change[0]
        results.append(tuple(result) if not return_dict else (result.prev_sample, result.pred_original_sample))
        assert push > 0
        torch.testing.assert_close(results[-1][1], sample + push)  # epsilon 0: the latent is the prediction
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


class CopyingPipeline(diffusers.StableDiffusionPipeline):
    """Works on a deep copy of its scheduler, as LTX2 and SkyReels do."""

    def __call__(self, *args, **kwargs):
        original, self.scheduler = self.scheduler, copy.deepcopy(self.scheduler)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.scheduler = original


def test_a_deep_copied_scheduler_has_its_own_step_and_a_warning_says_so(pipe):
    copying = CopyingPipeline(**pipe.components, requires_safety_checker=False)
    copying.set_progress_bar_config(disable=True)
    plain = draw(pipe)
    with pytest.warns(UserWarning, match=r"a copy of its scheduler"):
        latents, log = draw_guided(copying)
    assert latents.equal(plain)
    assert log == []


def test_a_deep_copy_steps_itself_and_not_the_original():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    zero = torch.zeros(1, 3, 4, 4)
    with guided(SimpleNamespace(scheduler=scheduler), toy_guidance(scale=0.0)):
        twin = copy.deepcopy(copy.deepcopy(scheduler))
        twin.scale_model_input(zero, twin.timesteps[0])
        twin.step(zero, twin.timesteps[0], zero)
    assert twin.step_index == 1
    assert scheduler.step_index is None


def draw_idle(pipe, exchange=None, **settings):
    with guided(pipe, guidance(**settings)):
        if exchange is not None:
            with_scheduler(pipe, exchange)
        draw(pipe)


def test_a_warning_says_why_nothing_happened(pipe):
    with pytest.warns(UserWarning, match="never called"), guided(pipe, guidance()):
        pass
    with pytest.warns(UserWarning, match="skipped: outside the noise window"):
        draw_idle(pipe, noise_window=(0.9999, 0.9998))
    with pytest.warns(UserWarning, match="the push is 0"):
        draw_idle(pipe, reward=lambda images: mean(images) * 0)
    with pytest.warns(UserWarning, match="never called"):
        draw_idle(pipe, exchange="DDIMScheduler")


def test_it_guides_under_inference_mode(pipe):
    with guided(pipe, guidance(noise=0.1)):
        expected = draw(pipe)
    with torch.inference_mode(), guided(pipe, guidance(noise=0.1)):
        assert draw(pipe).equal(expected)


def test_image_to_image_with_few_steps_gets_its_part_of_the_window(pipe):
    image = torch.rand(1, 3, 32, 32)
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    inputs = {name: value for name, value in tiny_pipeline("stable-diffusion")[1].items() if "embeds" in name}
    inputs |= {"image": image, "strength": 0.5, "num_inference_steps": 6, "output_type": "pt"}
    plain = img2img(**inputs, generator=torch.Generator().manual_seed(0)).images
    with guided(img2img, guidance()) as run:
        bright = img2img(**inputs, generator=torch.Generator().manual_seed(0)).images
    assert len(run.log) == 3
    assert bright.mean() > plain.mean()
    top = run.log[0].noise_level
    assert sum(entry.weight for entry in run.log) == pytest.approx(log_length(min(top, 0.6), 0.05))


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler"]
)
def test_pipelines_with_other_solvers_rise_too(pipe, name):
    with_scheduler(pipe, name)
    settings = {"output_type": "pt", "num_inference_steps": 8, "seeds": range(3)}
    before = mean(draw(pipe, **settings))
    with guided(pipe, guidance()) as run:
        after = mean(draw(pipe, **settings))
    assert (after > before).all()
    assert sum(entry.weight for entry in run.log) == pytest.approx(log_length(0.6, 0.05))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("DEISMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("SASolverScheduler", {"tau_func": lambda timestep: 0}),
        ("UniPCMultistepScheduler", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_keep_their_type_and_the_push(name, config, dtype):
    """No noise and a clean latent of 0: what is there at the end is the push, to within the rounding of the latents."""
    scheduler = getattr(diffusers, name)(**SD, **config)
    scheduler.set_timesteps(10)
    sample = torch.zeros(1, 3, 4, 4, dtype=dtype)
    with guided(SimpleNamespace(scheduler=scheduler), toy_guidance(scale=1.0)) as run:
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)[0]
            assert sample.dtype == dtype
    total = sum(entry.weight for entry in run.log)
    assert total > 2.8
    torch.testing.assert_close(sample.float(), torch.full((1, 3, 4, 4), total), rtol=0.02, atol=0.0)


def test_a_model_that_puts_out_its_variance_keeps_it():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(10)
    timestep, sample, output = scheduler.timesteps[7], torch.ones(1, 3, 4, 4), torch.zeros(1, 6, 4, 4)
    output[:, 3:] = 0.5
    ends = []
    for scale in (0.0, 0.1):
        with guided(SimpleNamespace(scheduler=scheduler), toy_guidance(scale=scale)) as run:
            generator = torch.Generator().manual_seed(0)
            ends.append(scheduler.step(output, timestep, sample, generator=generator).prev_sample)
    there = float(scheduler.alphas_cumprod[scheduler.timesteps[8]]) ** 0.5
    torch.testing.assert_close((ends[1] - ends[0]) / there, torch.full_like(sample, run.log[0].change[0]))


def test_steps_off_the_schedule_are_refused():
    if not hasattr(diffusers, "FlowMapEulerDiscreteScheduler"):
        pytest.skip(f"diffusers {diffusers.__version__} has no FlowMapEulerDiscreteScheduler")
    scheduler, zero = diffusers.FlowMapEulerDiscreteScheduler(), torch.zeros(1, 3, 4, 4)
    scheduler.set_timesteps(10)
    with (
        pytest.raises(ValueError, match="steps with r_timestep"),
        guided(SimpleNamespace(scheduler=scheduler), toy_guidance()),
    ):
        scheduler.step(zero, scheduler.timesteps[0], zero, r_timestep=scheduler.timesteps[5])


def test_guidance_inside_guidance_composes(pipe):
    """Two pushes of half the strength are one of the whole, when the gradient is the same everywhere."""
    settings = {"max_drift": None, "ema": 0.0, "clip": 100.0, "noise": 0.0, "noise_window": (0.9, 0.1)}
    settings |= {"reward": lambda images: images.sum((1, 2, 3)), "decoder": lambda z: z[:, :3]}
    with guided(pipe, guidance(scale=0.2, **settings)):
        expected = draw(pipe)
    with guided(pipe, guidance(scale=0.1, **settings)) as outer:
        step = pipe.scheduler.step
        with guided(pipe, guidance(scale=0.1, **settings)) as inner:
            both = draw(pipe)
        assert pipe.scheduler.step is step
        once = draw(pipe)
    assert "step" not in vars(pipe.scheduler)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-5)
    changes = [[entry.change[0] for entry in run.runs[0].log if entry.change] for run in (inner, outer)]
    assert changes[0] == pytest.approx(changes[1])
    assert len(inner.runs) == 1
    assert len(outer.runs) == 2
    assert not torch.allclose(once, both)


def test_a_finished_run_keeps_its_log_alone(pipe):
    with guided(pipe, guidance()) as run:
        draw(pipe)
        draw(pipe)
        assert run.runs[0].state.drift is None
        assert run.runs[0].log
    assert [each.state.average for each in run.runs] == [None, None]
    assert [len(each.log) for each in run.runs] == [4, 4]
