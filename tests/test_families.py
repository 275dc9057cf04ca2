"""Guidance and best of N in a real pipeline of every family, at tiny size."""

import pytest
import torch
from tiny_pipelines import FAMILIES, tiny_pipeline, tiny_tae

from iqguide import RewardGuidance, best_of_n
from iqguide.guidance.diffusers import RewardGuidanceCallback, guided

STEPS = 8
SEEDS = range(6)


def brightness(images):
    """Something that a random decoder can express."""
    return images.mean((1, 2, 3))


def to_the_left(images):
    """A spatial wish: bright on the left, dark on the right; tells a right layout from a wrong one."""
    half = images.shape[-1] // 2
    return images[..., :half].mean((1, 2, 3)) - images[..., half:].mean((1, 2, 3))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def draw(pipe, inputs, seeds=(0,), **changes):
    """One picture for each seed, in one batch."""
    inputs = inputs | {"num_inference_steps": STEPS} | changes
    inputs = {k: v.repeat_interleave(len(seeds), 0) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**inputs, generator=generators, output_type="pt").images


def state_of(pipe):
    state = {"attributes": sorted(vars(pipe)), "parts": {name: id(part) for name, part in pipe.components.items()}}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            state[name] = [
                ([id(p) for p in part.parameters()], [p.requires_grad for p in part.parameters()]),
                [(m.training, getattr(m, "gradient_checkpointing", None), sorted(vars(m))) for m in part.modules()],
                [p.grad for p in part.parameters()],
            ]
    return state | {"config": dict(pipe.config), "scheduler": {k for k in vars(pipe.scheduler) if k == "step"}}


@pytest.mark.parametrize("reward", [brightness, to_the_left])
def test_the_reward_rises(family, reward):
    pipe, inputs = tiny_pipeline(family)
    plain = draw(pipe, inputs, SEEDS)
    with guided(pipe, RewardGuidance(reward, scale=0.5)) as run:
        steered = draw(pipe, inputs, SEEDS)
    assert any(entry.skipped is None for entry in run.log)
    rises = reward(steered) - reward(plain)
    assert (rises > 0).sum() >= 5, rises


def test_the_reward_rises_with_an_autoencoder_tiny(family):
    """An AutoencoderTiny that is the pipeline's own, so that what guides is also what is looked at."""
    pipe, inputs = tiny_pipeline(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipe.vae = tiny_tae(pipe.vae.config.latent_channels)
    with guided(pipe, RewardGuidance(brightness, scale=0.5)):
        steered = draw(pipe, inputs, SEEDS)
    rises = brightness(steered) - brightness(draw(pipe, inputs, SEEDS))
    assert (rises > 0).sum() >= 5, rises


def test_every_call_is_a_run_of_its_own(family):
    """Nothing of one call (moving averages, pushes so far) reaches the next."""
    pipe, inputs = tiny_pipeline(family)
    with guided(pipe, RewardGuidance(brightness, scale=0.5, max_drift=0.2)) as run:
        pictures = [draw(pipe, inputs) for _ in range(2)]
    assert torch.equal(*pictures)
    assert [len(one.log) for one in run.runs] == [STEPS, STEPS]


def test_off_is_bit_identical(family):
    pipe, inputs = tiny_pipeline(family)
    plain = draw(pipe, inputs)
    with guided(pipe, RewardGuidance(brightness, scale=0)):
        assert torch.equal(draw(pipe, inputs), plain)
    assert torch.equal(draw(pipe, inputs), plain)


def test_the_pipeline_is_left_as_found(family):
    pipe, inputs = tiny_pipeline(family)
    pipe.vae.decoder.train()
    plain = draw(pipe, inputs)
    before = state_of(pipe)
    with guided(pipe, RewardGuidance(brightness)):
        draw(pipe, inputs)
    assert state_of(pipe) == before
    with pytest.raises(RuntimeError, match="reward broke"), guided(pipe, RewardGuidance(broken)):
        draw(pipe, inputs)
    assert state_of(pipe) == before
    assert torch.equal(draw(pipe, inputs), plain)


def broken(images):
    raise RuntimeError("reward broke")


def test_the_callback_guides_every_family(family):
    pipe, inputs = tiny_pipeline(family)
    plain = draw(pipe, inputs)
    before = state_of(pipe)
    callback = RewardGuidanceCallback(RewardGuidance(to_the_left, scale=0.5), pipe)
    steered = draw(pipe, inputs, callback_on_step_end=callback)
    assert to_the_left(steered) > to_the_left(plain)
    assert "step" not in vars(pipe.scheduler)
    assert state_of(pipe) == before


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32)])
def test_pictures_that_are_not_square(family, height, width):
    pipe, inputs = tiny_pipeline(family)
    size = {"height": height, "width": width}
    with guided(pipe, RewardGuidance(to_the_left, scale=0.5)):
        steered = draw(pipe, inputs, **size)
    assert to_the_left(steered) > to_the_left(draw(pipe, inputs, **size))


def test_best_of_n_draws_guided_candidates(family):
    pipe, inputs = tiny_pipeline(family)
    inputs["num_inference_steps"] = STEPS
    with guided(pipe, RewardGuidance(brightness, scale=0.5)) as run:
        ranking = best_of_n(pipe, brightness, n=3, batch_size=2, **inputs)
        alone = best_of_n(pipe, brightness, n=1, seeds=[1], **ranking.settings)
        assert len(run.runs) == 3  # pipeline calls
        assert torch.equal(alone.images[0], ranking.images[1])
        torch.testing.assert_close(draw(pipe, inputs, [2])[0], ranking.images[2], rtol=0, atol=1e-3)
    plain = best_of_n(pipe, brightness, n=3, batch_size=2, **inputs)
    assert ranking.scores.mean() > plain.scores.mean()
