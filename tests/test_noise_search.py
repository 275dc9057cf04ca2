"""Searches in the initial noise, on real pipelines: gradients against finite differences, pictures made again."""

import math

import pytest
import scipy.stats
import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline
from tiny_pipelines import FAMILIES, tiny_pipeline

from iqguide import RewardGuidance, best_of_n
from iqguide.guidance.diffusers.denoiser import checkpointed, counted_rows
from iqguide.search.initial_noise import initial_noise
from iqguide.search.noise import _norm_gradient, noise_gradient, optimize_noise, zero_order_search
from iqguide.search.redraw import redraw

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few_steps(family, steps=2):
    pipe, inputs = tiny_pipeline(family)
    return pipe, inputs | {"num_inference_steps": steps}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_noise_is_that_of_the_seed(family):
    pipe, inputs = few_steps(family)
    ranking = best_of_n(pipe, brightness, n=1, seeds=[5], **inputs)
    with counted_rows(pipe) as rows:
        torch.testing.assert_close(initial_noise(pipe, 5, inputs), ranking.latents)
    assert rows == []
    assert "prepare_latents" not in vars(pipe)


def test_redraw_makes_a_guided_candidate_again():
    pipe, inputs = few_steps("stable-diffusion")
    guidance = RewardGuidance(brightness, scale=0.5, decoder=pipe.vae)
    ranking = best_of_n(pipe, brightness, n=3, guidance=guidance, halving=(0.5,), **inputs)
    for index in range(len(ranking)):
        assert torch.equal(redraw(pipe, ranking, index), ranking.images[index])
    noisy = best_of_n(pipe, brightness, n=1, eta=1.0, **inputs)  # an argument of the pipeline
    assert torch.equal(redraw(pipe, noisy, 0), noisy.images[0])
    plain = best_of_n(pipe, brightness, n=1, seeds=ranking.seeds[:1], **inputs)
    assert (plain.images[0] - ranking.images[0]).abs().max() > 1e-3


# --- zero-order ---


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux"])
def test_zero_order_search_climbs(family):
    pipe, inputs = few_steps(family)
    ranking = zero_order_search(pipe, brightness, rounds=3, neighbours=2, batch_size=2, **inputs)
    rows = 1 if family == "flux" else 2
    assert len(ranking) == 1 + 3 * 2
    assert ranking.nfe == 7 * 2 * rows
    assert ranking.scores.max() > ranking.scores[0]
    best = 0  # each round's neighbours have the asked correlation with the best noise before it
    for first in (1, 3, 5):
        centre = ranking.latents[best].flatten()
        for index in (first, first + 1):
            correlation = torch.corrcoef(torch.stack([centre, ranking.latents[index].flatten()]))[0, 1]
            assert correlation == pytest.approx(0.95, abs=0.02)
        best = int(ranking.scores[: first + 2].argmax())
    assert ranking.latents[1:].std() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(redraw(pipe, ranking, 4), ranking.images[4], atol=1e-3, rtol=0)


def test_zero_order_pictures_can_be_made_again_with_noise_on_the_way():
    pipe, inputs = few_steps("stable-diffusion", 3)
    pipe.scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    guidance = RewardGuidance(brightness, scale=0.5, decoder=pipe.vae)
    ranking = zero_order_search(pipe, brightness, rounds=1, neighbours=2, seed=7, guidance=guidance, **inputs)
    plain = zero_order_search(pipe, brightness, rounds=1, neighbours=2, seed=7, **inputs)
    for index in range(3):
        assert torch.equal(redraw(pipe, ranking, index), ranking.images[index])
        alone = pipe(**inputs, latents=plain.latents[index][None], generator=torch.Generator().manual_seed(7))
        assert (
            torch.tensor(plain.images[index].permute(1, 2, 0).mul(255).round().numpy() - alone.images[0])
        ).abs().max() <= 1
    assert (ranking.images[0] - plain.images[0]).abs().max() > 1e-3
    assert torch.equal(ranking.latents[0], plain.latents[0])


# --- noise optimisation ---


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_through_the_whole_pipeline(family):
    """Against central differences in double precision, along random directions."""
    pipe, inputs = few_steps(family)
    pipe.to(torch.float64)
    inputs = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    how = {
        "seed": 0,
        "decoder": lambda z: z.mean((-1, -2) if z.ndim == 4 else 1)[:, :3, None, None].sigmoid(),
        "pipe_kwargs": inputs,
    }
    weigh = lambda images: (images * torch.tensor([1.0, 0.5, -2.0], dtype=images.dtype).view(3, 1, 1)).sum((1, 2, 3))
    noise = initial_noise(pipe, 0, inputs).double()
    _, gradient = noise_gradient(pipe, weigh, noise, **how)
    for seed in range(3):
        direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        above, below = (noise_gradient(pipe, weigh, noise + sign * 1e-3 * direction, **how)[0] for sign in (1, -1))
        assert (gradient.double() * direction).sum() == pytest.approx((above - below) / 2e-3, rel=0.02, abs=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_optimisation_raises_the_reward(family):
    pipe, inputs = few_steps(family)
    ranking = optimize_noise(pipe, brightness, iterations=4, clip=2.0, **inputs)
    start, best = ranking.scores.tolist()
    assert best > start + 2e-5  # random networks are nearly flat
    assert len(ranking.log) == 4
    assert ranking.log[0] == pytest.approx(start, abs=1e-4)
    assert max(ranking.log) == pytest.approx(best, abs=1e-4)
    assert ranking.nfe == (1 if family == "flux" else 2) * 2 * (4 + 2)
    assert torch.equal(redraw(pipe, ranking, 1), ranking.images[1])
    network = getattr(pipe, "unet", None) or pipe.transformer
    assert not network.is_gradient_checkpointing
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_noise_optimisation_of_a_consistency_model_inside_guidance():
    pipe, inputs = few_steps("stable-diffusion", 4)
    pipe.scheduler = LCMScheduler(original_inference_steps=50)
    guidance = RewardGuidance(brightness, scale=0.5, decoder=pipe.vae)
    ranking = optimize_noise(pipe, brightness, iterations=3, clip=2.0, seed=3, guidance=guidance, **inputs)
    assert ranking.scores[-1] > ranking.scores[0]
    assert torch.equal(redraw(pipe, ranking, 0), ranking.images[0])
    plain = pipe(**inputs, latents=ranking.latents[:1], generator=torch.Generator().manual_seed(3), output_type="pt")
    assert (plain.images[0] - ranking.images[0]).abs().max() > 1e-3


def test_a_reward_that_cannot_rise_leaves_the_first_picture():
    pipe, inputs = few_steps("stable-diffusion", 1)
    ranking = optimize_noise(pipe, lambda images: images.mean((1, 2, 3)) * 0, iterations=3, **inputs)
    assert len(ranking) == 1


def test_the_regulariser_is_the_density_of_the_norm():
    noise = torch.randn(500, dtype=torch.float64)
    noise.requires_grad_()
    norm = noise.norm()
    value = norm**2 / 2 - (len(noise) - 1) * norm.log()
    other = noise.detach() * 1.1
    change = other.norm() ** 2 / 2 - (len(noise) - 1) * other.norm().log() - value
    density = scipy.stats.chi(df=len(noise)).logpdf
    assert change.item() == pytest.approx(density(norm.item()) - density(other.norm().item()), rel=1e-6)
    torch.testing.assert_close(_norm_gradient(noise.detach()), torch.autograd.grad(value, noise)[0])
    settled = noise.detach() / norm.detach() * math.sqrt(len(noise) - 1)
    assert _norm_gradient(settled).abs().max() < 1e-12


def test_checkpointing_is_put_back():
    pipe, _ = few_steps("stable-diffusion")
    with checkpointed(pipe):
        assert pipe.unet.is_gradient_checkpointing
    assert not pipe.unet.is_gradient_checkpointing
    pipe.unet.enable_gradient_checkpointing()
    with checkpointed(pipe):
        pass
    assert pipe.unet.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("search", "changes", "message"),
    [
        (zero_order_search, {"rounds": 0}, "rounds is 0"),
        (zero_order_search, {"correlation": 1.0}, "correlation is 1.0"),
        (zero_order_search, {"latents": torch.zeros(1)}, "got latents="),
        (optimize_noise, {"iterations": 0}, "iterations is 0"),
        (optimize_noise, {"learning_rate": math.nan}, "learning_rate is nan; expected a finite number above 0"),
        (optimize_noise, {"learning_rate": math.inf}, "learning_rate is inf"),
        (optimize_noise, {"momentum": math.nan}, "momentum is nan; expected at least 0 and less than 1"),
        (optimize_noise, {"clip": math.nan}, "clip is nan; expected a number above 0"),
        (optimize_noise, {"regularisation": math.nan}, "regularisation is nan; expected a finite number"),
        (optimize_noise, {"prompt": ["a", "b"]}, "prompt is a list of 2"),
        (optimize_noise, {"guidance": RewardGuidance(brightness, gradient="full")}, "uses up the graph"),
    ],
)
def test_bad_arguments(search, changes, message):
    pipe, inputs = few_steps("stable-diffusion")
    with pytest.raises(ValueError, match=message):
        search(pipe, brightness, **(inputs | changes))


@pytest.mark.parametrize("broken", [1, 2])
def test_a_broken_neighbour_is_left_out(broken):
    """The first picture, or the first neighbour, has no score: the others are found all the same."""
    pipe, inputs = few_steps("stable-diffusion")
    calls = []

    def reward(images):
        calls.append(len(images))
        return brightness(images) * (torch.nan if len(calls) == broken else 1)

    ranking = zero_order_search(pipe, reward, rounds=2, neighbours=2, **inputs)
    assert len(ranking) == 4
    assert len(ranking.failed) == 1
    assert ranking.scores.isfinite().all()
    assert torch.equal(redraw(pipe, ranking, 3), ranking.images[3])
    with pytest.raises(ValueError, match=r"score is not a finite number \(3 of them\)"):
        zero_order_search(pipe, lambda i: brightness(i) * torch.nan, rounds=1, neighbours=2, **inputs)


def test_a_gradient_that_is_not_finite_ends_the_search(caplog):
    """The margins of `rooted` are finite and its gradients are not; those of `falls` are NaN from the third on."""
    pipe, inputs = few_steps("stable-diffusion", 1)
    calls = []

    def rooted(images):
        calls.append(1)
        return brightness(images) + (images - images).square().sum((1, 2, 3)).sqrt()  # 0, whose derivative is NaN

    with pytest.raises(ValueError, match=r"iteration 1 of 9 is 0\.\d+, .* gradient are \d\d+;"):
        optimize_noise(pipe, rooted, iterations=9, **inputs)
    assert len(calls) == 1

    def falls(images):
        calls.append(1)
        return brightness(images) * (torch.nan if len(calls) == 4 else 1)

    kept = optimize_noise(pipe, falls, iterations=9, **inputs)
    assert len(kept.log) == 2
    assert len(calls) == 4 + len(kept)
    assert kept.scores.max() >= kept.scores[0]
    assert "margin of iteration 3 of 9 is nan" in caplog.text
    assert not pipe.unet.is_gradient_checkpointing


def test_a_clip_of_infinity_is_none():
    pipe, inputs = few_steps("stable-diffusion", 1)
    ranking = optimize_noise(pipe, brightness, iterations=2, clip=math.inf, **inputs)
    assert all(math.isfinite(margin) for margin in ranking.log)


def test_what_has_no_noise_or_no_gradient_is_refused():
    pipe, inputs = few_steps("stable-diffusion")
    with pytest.raises(ValueError, match="no gradient arrives at the noise"):
        optimize_noise(pipe, lambda images: images.detach().mean((1, 2, 3)), **inputs)
    constant = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient arrives at the noise"):
        optimize_noise(pipe, lambda images: 2 * constant, **inputs)
    assert not pipe.unet.is_gradient_checkpointing
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="takes no latents= to start from"):
        zero_order_search(other, brightness, image=torch.rand(1, 3, 32, 32), **inputs)
