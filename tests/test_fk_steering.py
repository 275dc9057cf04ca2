"""Feynman-Kac steering: unbiased on a mixture with a known posterior; the same particles again on real pipelines."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from tiny_pipelines import tiny_pipeline

from iqguide import RewardGuidance
from iqguide.guidance.diffusers import guided
from iqguide.guidance.diffusers.denoiser import counted_rows
from iqguide.search.ancestral import ancestral
from iqguide.search.fk_steering import fk_steering
from iqguide.search.particles import effective_sample_size, systematic
from iqguide.search.redraw import redraw

MEANS, SPREAD, SHARES = torch.tensor([-1.0, 1.5]), 0.5, torch.tensor([0.7, 0.3])
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}


class ExactDenoiser(torch.nn.Module):
    """x0 = E[x0 | x] for x = alpha * x0 + sigma * noise and a mixture of two Gaussians, put out as noise."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def forward(self, x, timestep):
        alpha, sigma = self.levels(timestep)
        variance = (alpha * SPREAD) ** 2 + sigma**2
        away = x - alpha * MEANS.view(-1, 1, 1, 1, 1)  # (2, N, 1, 1, 1)
        belongs = (SHARES.log().view(-1, 1, 1, 1, 1) - away**2 / (2 * variance)).softmax(0)
        x0 = (belongs * (MEANS.view(-1, 1, 1, 1, 1) + alpha * SPREAD**2 / variance * away)).sum(0)
        noise = (x - alpha * x0) / sigma
        flow = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        return (noise - x0 if flow else noise,)

    def levels(self, timestep):
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            return 1 - float(timestep) / 1000, float(timestep) / 1000
        square = float(self.scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt(square), math.sqrt(1 - square)


class MixturePipe:
    """One number a sample, drawn with a real scheduler; shown as a grey picture."""

    def __init__(self, scheduler):
        self._progress_bar_config = {"disable": True}
        self.scheduler, self.unet = scheduler, ExactDenoiser(scheduler)

    def __call__(self, generator, num_images_per_prompt=1, num_inference_steps=10, output_type="pt", latents=None):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.stack([torch.randn(1, 1, 1, generator=one) for one in generator])
        for timestep in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, timestep)[0], timestep, x, return_dict=False)[0]
        return SimpleNamespace(images=as_images(x))


def as_images(x):
    return (0.5 + x / 40).expand(-1, 3, 8, 8)


def value(images):
    return (images.mean((1, 2, 3)) - 0.5) * 40


def ddim():
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")


def steered(particles, seeds=None, scheduler=None, **changes):
    given = {"eta": 1.0, "lambda_": 1.0, "decoder": as_images, "batch_size": particles} | changes
    pipe = MixturePipe(scheduler or ddim())
    return fk_steering(pipe, value, particles=particles, seeds=seeds, **given)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sd(scheduler=None, **config):
    pipe, inputs = tiny_pipeline("stable-diffusion")
    if scheduler is not None:
        pipe.scheduler = scheduler(**BETAS, **config)
    return pipe, inputs | {"num_inference_steps": 6}


def brightness(images):
    return images.mean((1, 2, 3)) * 20


# --- the distribution ---


@pytest.mark.parametrize("flow", [False, True])
def test_particles_follow_the_tilted_mixture(flow):
    """p(x) * exp(x) of a mixture is a mixture: means move up by the variance, shares by exp(mean + variance / 2)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0) if flow else ddim()
    ranking = steered(1000, scheduler=scheduler, num_inference_steps=80, checkpoints=(0.3, 0.6, 0.9))
    assert any(entry.ancestors for entry in ranking.log)
    weights, x = ranking.log_weights.softmax(0), ranking.scores.double()
    tilted = SHARES * (MEANS + SPREAD**2 / 2).exp()
    share = tilted[1] / tilted.sum()
    mean = (1 - share) * (MEANS[0] + SPREAD**2) + share * (MEANS[1] + SPREAD**2)
    assert (weights * (x > 0.35)).sum() == pytest.approx(share.item(), abs=0.04)
    assert (weights * x).sum() == pytest.approx(mean.item(), abs=0.15)
    assert ranking.log_weights.exp().mean() == pytest.approx(tilted.sum().item(), rel=0.12)
    assert abs((x > 0.35).float().mean() - 0.3) > 0.2  # the prior is elsewhere


@pytest.mark.parametrize("options", [{}, {"potential": "max"}])
def test_four_particles_are_unbiased(options):
    """Against many free samples of the same coarse sampler, so that only the particles can be at fault."""
    pipe, scheduler = MixturePipe(ddim()), {"num_inference_steps": 6}
    with ancestral(pipe, 1.0) as made:
        made.generators = [torch.Generator().manual_seed(10**6 + seed) for seed in range(8000)]
        x = value(pipe(generator=made.generators, **scheduler).images).double()
    runs = [
        steered(4, seeds=range(4 * run, 4 * run + 4), checkpoints=(0.4, 0.8), **options, **scheduler)
        for run in range(90)
    ]
    for function in (torch.ones_like, torch.sin):
        exact = (function(x) * x.exp()).mean()
        found = torch.stack([(run.log_weights.exp() * function(run.scores.double())).mean() for run in runs])
        assert abs(found.mean() - exact) < 3.5 * found.std() / math.sqrt(len(found)) + 0.03 * exact.abs()
    assert {entry.ancestors is None for run in runs for entry in run.log} == {False, True}


def test_the_margin_weighs_and_the_score_is_shown():
    class Reward:
        def __call__(self, images):
            return value(images).sigmoid()

        def margin(self, images):
            return value(images)

    how = {"particles": 3, "lambda_": 0.7, "eta": 1.0, "decoder": as_images, "batch_size": 2, "resample_below": 0.01}
    ranking = fk_steering(MixturePipe(ddim()), Reward(), **how)
    torch.testing.assert_close(ranking.log_weights, 0.7 * ranking.scores.double().logit(), atol=1e-4, rtol=1e-4)


class BreaksOnce(ExactDenoiser):
    """Answers NaN for the first particle at one evaluation, counted from 1."""

    def __init__(self, scheduler, evaluation):
        super().__init__(scheduler)
        self.left = evaluation

    def forward(self, x, timestep):
        (output,) = super().forward(x, timestep)
        self.left -= 1
        if self.left == 0:
            output[0] = math.nan
        return (output,)


def steered_with(denoiser, **changes):
    pipe = MixturePipe(denoiser.scheduler)
    pipe.unet = denoiser
    options = {"eta": 1.0, "lambda_": 1.0, "decoder": as_images, "particles": 6, "batch_size": 6, **changes}
    return fk_steering(pipe, value, **options)


def test_a_particle_that_turns_nan_is_replaced_at_the_next_checkpoint(caplog):
    result = steered_with(BreaksOnce(ddim(), 2), resample_below=0.01)
    first = result.log[0]
    assert math.isnan(first.margins[0])
    assert first.log_weights[0] == -math.inf
    assert 0 not in first.ancestors
    assert [(entry.seed, entry.share) for entry in result.failed] == [(0, 0.2)]
    assert len(result) == 6
    assert result.log_weights.isfinite().all()
    assert "seeds [0]" in caplog.text


def test_a_particle_that_ends_with_nan_counts_as_weight_zero():
    """So the mean of the weights of those that are left is that of all six, one of them 0."""
    options = {"checkpoints": (0.5,), "resample_below": 0.01}
    broken, sound = steered_with(BreaksOnce(ddim(), 10), **options), steered_with(ExactDenoiser(ddim()), **options)
    assert [entry.seed for entry in broken.failed] == [0]
    assert broken.seeds == sound.seeds[1:] == (1, 2, 3, 4, 5)
    assert torch.equal(broken.images, sound.images[1:])
    expected = sound.log_weights[1:].exp().sum() / 6
    torch.testing.assert_close(broken.log_weights.exp().mean(), expected)
    assert len(broken.lineages) == len(broken) == 5


def test_without_a_particle_the_search_says_why():
    pipe = MixturePipe(ddim())
    with pytest.raises(ValueError, match=r"score is not a finite number \(4 of them\); check the reward"):
        fk_steering(pipe, lambda images: value(images) * torch.nan, eta=1.0, decoder=as_images)


def test_no_checkpoint_is_importance_sampling():
    result = steered_with(ExactDenoiser(ddim()), checkpoints=())
    torch.testing.assert_close(result.log_weights, result.scores.double(), atol=1e-4, rtol=1e-4)


def test_effective_sample_size_and_systematic_resampling():
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert effective_sample_size(weights.log() + 300) == pytest.approx(1 / (weights**2).sum().item())
    assert effective_sample_size(torch.tensor([0.0, -1e4])) == pytest.approx(1)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.float64)
    for _ in range(2000):
        drawn = torch.bincount(torch.tensor(systematic(weights.log(), generator)), minlength=4)
        assert ((drawn >= (4 * weights).floor()) & (drawn <= (4 * weights).ceil())).all()
        counts += drawn
    torch.testing.assert_close(counts / 2000, 4 * weights, atol=0.05, rtol=0)
    assert systematic(torch.tensor([-math.inf, 0.0, -math.inf]), generator) == [1, 1, 1]


# --- ancestral steps ---


def test_ancestral_steps_are_those_of_ddim_with_eta():
    pipe, inputs = sd()
    with ancestral(pipe, 0.7) as made:
        made.generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        ours = pipe(**in_twos(inputs), generator=made.generators, output_type="pt").images
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    theirs = pipe(**in_twos(inputs), generator=generators, eta=0.7, output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    plain = pipe(**inputs, generator=torch.Generator().manual_seed(3), output_type="pt").images
    assert (plain[0] - ours[0]).abs().max() > 0.01


def test_ancestral_steps_are_those_of_ancestral_euler():
    pipe, inputs = sd(EulerDiscreteScheduler)
    generators = [torch.Generator().manual_seed(3)]
    with ancestral(pipe, 1.0) as made:
        made.generators = generators
        ours = pipe(**inputs, generator=generators, output_type="pt").images
    pipe.scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    theirs = pipe(**inputs, generator=torch.Generator().manual_seed(3), output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def in_twos(inputs):
    return {name: x.repeat_interleave(2, 0) if "prompt" in name else x for name, x in inputs.items()}


# --- real pipelines ---

STOCHASTIC = {
    "SDE-DPM++ 2M": ((DPMSolverMultistepScheduler, SDE), {}),
    "DPM++ 2M, made ancestral": ((DPMSolverMultistepScheduler, {}), {"eta": 1.0}),
    "Euler a": ((EulerAncestralDiscreteScheduler, {}), {}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_each_particle_can_be_made_again_alone(name):
    """Alone it never shares a batch, so a solver's history that stayed in another lane would show."""
    (scheduler, config), options = STOCHASTIC[name]
    pipe, inputs = sd(scheduler, **config)
    ranking = fk_steering(pipe, brightness, lambda_=50, resample_below=1.0, **options, **inputs)
    copies = [lane for lane, lineage in enumerate(ranking.lineages) if len(lineage) > 1]
    assert copies
    for lane in {0, copies[-1]}:
        assert torch.equal(redraw(pipe, ranking, lane), ranking.images[lane])
    assert ranking.nfe == 4 * 2 * 6
    apart = torch.pdist(ranking.images.flatten(1), torch.inf)
    assert apart.min() > 1e-4  # copies have gone their own ways
    assert "step" not in vars(pipe.scheduler)


def test_all_particles_can_be_made_again():
    pipe, inputs = sd(EulerAncestralDiscreteScheduler)
    ranking = fk_steering(pipe, brightness, lambda_=50, resample_below=1.0, checkpoints=(0.5,), **inputs)
    again = fk_steering(pipe, brightness, **ranking.settings)
    assert torch.equal(again.images, ranking.images)
    assert torch.equal(again.log_weights, ranking.log_weights)
    with counted_rows(pipe) as rows:
        batched = fk_steering(pipe, brightness, **(ranking.settings | {"batch_size": 3}))
    assert set(rows) == {2 * 3, 2 * 1}  # classifier-free guidance doubles a batch; four particles are three and one
    torch.testing.assert_close(batched.images, ranking.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["stable-diffusion-3", "flux"])
def test_flow_models_are_made_ancestral_and_can_be_guided(family):
    pipe, inputs = tiny_pipeline(family)
    inputs["num_inference_steps"] = 6
    guidance = RewardGuidance(brightness, scale=0.5, decoder=pipe.vae)
    how = {"eta": 1.0, "lambda_": 50, "resample_below": 1.0, "batch_size": 2}
    ranking = fk_steering(pipe, brightness, **how, guidance=guidance, **inputs)
    plain = fk_steering(pipe, brightness, **how, **inputs)
    assert (ranking.images - plain.images).abs().max() > 1e-3
    torch.testing.assert_close(redraw(pipe, ranking, 2), ranking.images[2], atol=1e-3, rtol=0)
    assert "step" not in vars(pipe.scheduler)


def test_steering_raises_the_reward():
    pipe, inputs = sd(EulerAncestralDiscreteScheduler)
    steered = fk_steering(pipe, brightness, particles=6, lambda_=100, resample_below=1.0, batch_size=6, **inputs)
    free = fk_steering(pipe, brightness, particles=6, lambda_=0, batch_size=6, **inputs)
    assert steered.scores.mean() > free.scores.mean()
    assert all(entry.ancestors is None for entry in free.log)
    assert len({lineage[0] for lineage in steered.lineages}) < 6


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        (DDIMScheduler, {}, "DDIMScheduler is deterministic: .* Give eta=1.0"),
        (EulerAncestralDiscreteScheduler, {"eta": 1.0}, "adds noise by itself"),
        (HeunDiscreteScheduler, {"eta": 1.0}, "several stages in a step"),
        (PNDMScheduler, {"eta": 1.0}, "several stages in a step"),
        (DDIMScheduler, {"eta": 1.5}, "at most 1"),
        (DDIMScheduler, {"eta": 1.0, "particles": 1}, "at least 2 particles"),
        (DDIMScheduler, {"eta": 1.0, "lambda_": float("nan")}, "lambda_ is nan; expected a finite number"),
        (DDIMScheduler, {"eta": 1.0, "lambda_": float("inf")}, "lambda_ is inf"),
        (DDIMScheduler, {"eta": 1.0, "checkpoints": (0.5, 0.2)}, "shares of the steps that rise"),
        (DDIMScheduler, {"eta": 1.0, "potential": "sum"}, "expected 'difference' or 'max'"),
        (DDIMScheduler, {"eta": 1.0, "resample_below": 0}, "resample_below is 0"),
    ],
)
def test_what_is_refused(scheduler, changes, message):
    pipe, inputs = sd(scheduler)
    with pytest.raises(ValueError, match=message):
        fk_steering(pipe, brightness, **changes, **inputs)
    assert "step" not in vars(pipe.scheduler)


def test_ancestral_steps_inside_guidance_are_refused():
    pipe, inputs = sd()
    with pytest.raises(ValueError, match="give guidance="), guided(pipe, RewardGuidance(brightness, scale=0)):
        fk_steering(pipe, brightness, eta=1.0, **inputs)
