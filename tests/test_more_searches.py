"""Every search on real pipelines beyond the four families: candidates are dropped, resampled, moved, and made again."""

from dataclasses import replace

import pytest
import torch
from more_tiny_pipelines import PIPELINES, another_tiny_pipeline

from iqguide import RewardGuidance, best_of_n, fk_steering, optimize_noise, redraw, zero_order_search
from iqguide.search.initial_noise import starts_from_noise

FROM_NOISE = [name for name in PIPELINES if "img2img" not in name and "inpaint" not in name and "refiner" not in name]


def brightness(images):
    return images.mean((1, 2, 3)) * 20


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pipeline(name):
    pipe, inputs = another_tiny_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs | {"num_inference_steps": 4}


def check(pipe, ranking, index):
    assert ranking.images.shape[-3:] == (3, 32, 32)
    torch.testing.assert_close(redraw(pipe, ranking, index), ranking.images[index], atol=1e-3, rtol=0)
    assert "step" not in vars(pipe.scheduler)
    assert "prepare_latents" not in vars(pipe)


@pytest.mark.parametrize("name", PIPELINES)
def test_halving(name):
    pipe, inputs = pipeline(name)
    size = 1 if "inpaint" in name else 2  # which draws for a whole batch from one generator
    ranking = best_of_n(pipe, brightness, n=4, halving=(0.5,), batch_size=size, **inputs)
    whole = best_of_n(pipe, brightness, n=4, batch_size=size, **inputs)
    assert len(ranking) == len(ranking.dropped) == 2
    assert ranking.nfe < whole.nfe
    torch.testing.assert_close(ranking.images, whole.images[list(ranking.seeds)], atol=1e-3, rtol=0)
    check(pipe, ranking, 1)


@pytest.mark.parametrize("name", PIPELINES)
def test_particles(name):
    pipe, inputs = pipeline(name)
    eta = None if name == "lcm" else 1.0
    how = {"particles": 3, "lambda_": 100.0, "resample_below": 1.0, "eta": eta, "checkpoints": (0.3, 0.6)}
    ranking = fk_steering(pipe, brightness, **how, **inputs)
    copies = [lane for lane, lineage in enumerate(ranking.lineages) if len(lineage) > 1]
    check(pipe, ranking, copies[-1] if copies else 0)
    assert torch.pdist(ranking.images.flatten(1), torch.inf).min() > 1e-6


@pytest.mark.parametrize("name", FROM_NOISE)
def test_noise(name):
    pipe, inputs = pipeline(name)
    assert starts_from_noise(pipe)
    ranking = zero_order_search(pipe, brightness, rounds=1, neighbours=2, batch_size=2, **inputs)
    check(pipe, ranking, 2)
    climbed = optimize_noise(pipe, brightness, iterations=2, clip=2.0, **inputs | {"num_inference_steps": 1})
    assert len(climbed.log) == 2
    check(pipe, climbed, len(climbed) - 1)


@pytest.mark.parametrize("name", PIPELINES)
def test_full_gradient(name):
    """It arrives; whether the reward rises is no property of random networks, whose Jacobian may turn it round."""
    pipe, inputs = pipeline(name)
    guidance = RewardGuidance(brightness, scale=0.5, gradient="full", every=1, noise=0.0, noise_window=(0.95, 0.02))
    guided = best_of_n(pipe, brightness, n=1, guidance=guidance, **inputs)
    usual = best_of_n(pipe, brightness, n=1, guidance=replace(guidance, gradient="denoised"), **inputs)
    assert (guided.images - usual.images).abs().max() > 1e-4
    check(pipe, guided, 0)
