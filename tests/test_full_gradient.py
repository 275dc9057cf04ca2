"""gradient="full": back through the diffusion model of real pipelines, against finite differences."""

import math

import pytest
import torch
from diffusers import HeunDiscreteScheduler, StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler
from tiny_pipelines import FAMILIES, tiny_pipeline

from iqguide import RewardGuidance, best_of_n
from iqguide.guidance.diffusers import RewardGuidanceCallback, guided
from iqguide.guidance.diffusers.full_gradient import FullGradient

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDE = {"scale": 0.5, "noise": 0.0, "every": 1, "noise_window": (0.95, 0.05)}


def warmth(images):
    return (images[:, 0] - images[:, 2]).mean((1, 2)) * 20


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads; and whatever a test does, gradients stay switched on outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    on, _ = torch.is_grad_enabled(), torch.set_grad_enabled(True)
    assert on


def draw(pipe, inputs, seed=0):
    return pipe(**inputs, generator=torch.Generator().manual_seed(seed), output_type="pt").images


def network(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def test_the_direction_is_that_of_the_reward_of_the_prediction_from_the_noisy_latent(monkeypatch):
    """Central differences in double precision of reward(decode(x0(x))), up to the factor that is normalised away."""
    pipe, inputs = tiny_pipeline("stable-diffusion")
    pipe.to(torch.float64)
    inputs = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    decode = lambda z: (z[:, :3] @ z[:, 1:].mT).sigmoid()
    seen, original = [], FullGradient.pull_back

    def noted(self, denoised, sample, output):
        back = original(self, denoised, sample, output)

        def pull(gradient):
            seen.append((sample.detach().clone(), back(gradient)))
            return seen[-1][1]

        return pull

    monkeypatch.setattr(FullGradient, "pull_back", noted)
    with guided(pipe, RewardGuidance(warmth, gradient="full", decoder=decode, **WIDE)) as run:
        draw(pipe, inputs)
    timesteps = [t for t, entry in zip(pipe.scheduler.timesteps, run.log, strict=True) if entry.skipped is None]
    assert len(seen) == len(timesteps) >= 2
    prompts = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])

    def value(x, t):
        with torch.no_grad():
            free, given = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=prompts).sample.chunk(2)
            square = float(pipe.scheduler.alphas_cumprod[t])
            return warmth(
                decode((x - math.sqrt(1 - square) * (free + 7.5 * (given - free))) / math.sqrt(square))
            ).item()

    for t, (x, gradient) in zip(timesteps, seen, strict=True):
        directions = [
            torch.randn(x.shape, generator=torch.Generator().manual_seed(k), dtype=x.dtype) for k in range(12)
        ]
        exact = torch.tensor([(value(x + 1e-4 * d, t) - value(x - 1e-4 * d, t)) / 2e-4 for d in directions])
        ours = torch.tensor([(gradient.double() * d).sum().item() for d in directions])
        assert torch.nn.functional.cosine_similarity(exact, ours, dim=0) > 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    pipe, inputs = tiny_pipeline(family)
    plain = draw(pipe, inputs)
    pictures = {}
    for gradient in ("denoised", "full"):
        guidance = RewardGuidance(warmth, gradient=gradient, decoder=pipe.vae, **WIDE)
        with guided(pipe, guidance) as run, torch.no_grad():
            pictures[gradient] = draw(pipe, inputs)
            assert not torch.is_grad_enabled()
        assert run.runs[-1].fired
        assert warmth(pictures[gradient]) > warmth(plain)
    assert not torch.equal(pictures["denoised"], pictures["full"])
    assert not pictures["full"].requires_grad
    assert torch.is_grad_enabled()
    assert not network(pipe).is_gradient_checkpointing
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network(pipe).parameters())
    assert "prepare_latents" not in vars(pipe)
    assert torch.equal(draw(pipe, inputs), plain)
    with guided(pipe, RewardGuidance(warmth, gradient="full", scale=0)):
        assert torch.equal(draw(pipe, inputs), plain)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, UniPCMultistepScheduler])
def test_nothing_that_a_solver_stores_keeps_a_graph(scheduler):
    pipe, inputs = tiny_pipeline("stable-diffusion")
    pipe.scheduler = scheduler(**BETAS)
    plain = draw(pipe, inputs)
    with guided(pipe, RewardGuidance(warmth, gradient="full", decoder=pipe.vae, **WIDE)):
        assert warmth(draw(pipe, inputs)) > warmth(plain)
    stored = [getattr(pipe.scheduler, name, None) for name in ("sample", "last_sample", "prev_derivative")]
    stored += getattr(pipe.scheduler, "model_outputs", [])
    assert not any(tensor.requires_grad for tensor in stored if tensor is not None)


def test_a_pipeline_that_starts_from_a_picture_and_given_latents():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    guidance = RewardGuidance(warmth, gradient="full", decoder=pipe.vae, **WIDE)
    latents = torch.randn(1, 4, 16, 16)
    with guided(pipe, guidance) as run:
        draw(pipe, inputs | {"latents": latents})
    assert run.runs[-1].fired
    assert not latents.requires_grad
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    inputs = {name: x for name, x in inputs.items() if name not in ("height", "width")}
    inputs |= {"image": torch.rand(1, 3, 32, 32), "strength": 0.5, "num_inference_steps": 8}
    with guided(other, guidance) as run:
        draw(other, inputs)
    assert run.log[0].skipped is None  # the first evaluation, too


def test_an_exception_leaves_nothing_switched_on():
    pipe, inputs = tiny_pipeline("stable-diffusion")

    def broken(images):
        raise RuntimeError("broken")

    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="broken"),
        guided(pipe, RewardGuidance(broken, gradient="full", decoder=pipe.vae, **WIDE)),
    ):
        draw(pipe, inputs)
    assert torch.is_grad_enabled()
    assert not pipe.unet.is_gradient_checkpointing
    assert "step" not in vars(pipe.scheduler)


def test_what_has_no_graph_is_refused():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    guidance = RewardGuidance(warmth, gradient="full", decoder=pipe.vae, **WIDE)
    with pytest.raises(ValueError, match=r"keep their graph.*halving"):
        best_of_n(pipe, warmth, n=2, halving=(0.5,), guidance=guidance, **inputs)
    with pytest.raises(ValueError, match="keep their graph"):
        draw(pipe, inputs | {"callback_on_step_end": RewardGuidanceCallback(guidance)})
    with pytest.raises(ValueError, match="only guided"):
        guidance.start(lambda z: z[:, :3].sigmoid())(torch.randn(1, 4, 8, 8), noise_level=0.5, next_noise_level=0.3)
    with pytest.raises(ValueError, match="expected 'denoised' or 'full'"):
        RewardGuidance(warmth, gradient="x0")
