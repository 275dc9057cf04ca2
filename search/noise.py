"""Search for the noise that a sampler starts from: neighbours of the best (no gradient), or gradient ascent."""

import inspect
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import checkpointed, counted_rows
from ..guidance.freeze import frozen, modules_of
from ..guidance.reward_guidance import RewardGuidance
from .calls import call_arguments, guided_calls, pictures_of, progress_bar, seeded_generators, size_of
from .candidates import Candidate, draw, result_of
from .initial_noise import initial_noise
from .result import SearchResult

logger = logging.getLogger(__name__)


def zero_order_search(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    *,
    rounds: int = 4,
    neighbours: int = 4,
    correlation: float = 0.95,
    seed: int = 0,
    guidance: RewardGuidance | None = None,
    batch_size: int = 1,
    **pipe_kwargs: Any,
) -> SearchResult:
    """Hill climbing in the initial noise: each round draws neighbours of the best noise so far and keeps a better one.

    A neighbour is correlation * best + sqrt(1 - correlation^2) * fresh noise, which is standard normal again. Noise
    that the sampler adds in its steps is the same for all.

    Args:
        pipe: a diffusers text-to-image pipeline; any scheduler.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; need not be differentiable.
        rounds: at least 1.
        neighbours: new pictures in a round, at least 1; the search makes 1 + rounds * neighbours in all.
        correlation: of a neighbour with the best, in [0, 1); 0 is best of N.
        seed: of the first noise, of the neighbours and of the noise that the sampler adds.
        guidance: with which all are guided.
        batch_size: pictures per call of the pipeline; memory and speed.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        All pictures in the order in which they were made, with their `latents`; `redraw` makes one again, or
        `pipe(latents=result.latents[i][None], generator=torch.Generator().manual_seed(seed), ...)`. Pictures that
        cannot be used are left out and counted in `failed`.

    Raises:
        ValueError: a bad argument; more than one prompt; a pipeline that starts from a picture; no picture can be used.

    Source:
        Ma et al. (2025), "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps", section 3,
        https://arxiv.org/abs/2501.09732. Ours keeps the best so far as the centre even if a whole round is worse.
    """
    for name, value in (("rounds", rounds), ("neighbours", neighbours), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    if not 0 <= correlation < 1:
        raise ValueError(
            f"correlation is {correlation}; expected at least 0 and less than 1, which is the best itself."
        )
    fresh = _generator_beside(seed)
    with guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        first = initial_noise(pipe, seed, pipe_kwargs)
        candidates = _from_noise(pipe, reward, first, seed, batch_size, pipe_kwargs)
        for _ in progress_bar(pipe)(range(rounds), desc="zero-order search"):
            usable = [candidate for candidate in candidates if candidate.failure is None]
            best = max(usable or candidates[:1], key=lambda candidate: candidate.score).latents
            fresh_noise = torch.randn((neighbours, *best.shape), generator=fresh)
            near = (correlation * best.float() + math.sqrt(1 - correlation**2) * fresh_noise).to(first)
            candidates += _from_noise(pipe, reward, near, seed, batch_size, pipe_kwargs)
    settings = {**pipe_kwargs, "batch_size": batch_size} | ({} if guidance is None else {"guidance": guidance})
    return result_of(candidates, (), settings=settings, from_latents=True, nfe=sum(rows))


def optimize_noise(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    *,
    iterations: int = 50,
    learning_rate: float = 5.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    regularisation: float = 0.01,
    seed: int = 0,
    guidance: RewardGuidance | None = None,
    decoder: Decoder | nn.Module | None = None,
    **pipe_kwargs: Any,
) -> SearchResult:
    """Gradient ascent in the noise that a sampler of few steps starts from, through all of its steps.

    Minimises -margin(picture) + regularisation * (|z|^2 / 2 - (d - 1) * log|z|), whose second part is the negative log
    density of the norm of standard normal noise z in d dimensions, by gradient descent with Nesterov momentum and
    clipped gradients; of all iterates the one with the highest margin is kept.

    Expensive: each iteration is a forward and a backward pass through every step of the denoiser (whose activations are
    computed again, not kept), the decoder and the reward. Made for models of one to four steps.

    Args:
        pipe: a diffusers text-to-image pipeline whose steps are differentiable; weights in full or half precision.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), differentiable; its `margin` is used where it has one.
        iterations: at least 1.
        learning_rate: of the descent, above 0; times `clip` it is the length of one step without momentum.
        momentum: in [0, 1).
        clip: largest norm of a gradient; inf for none.
        regularisation: weight of the norm's log density.
        seed: of the first noise, and of the noise that the sampler adds, which stays the same.
        guidance: with which the pictures are guided; its pushes count as constants.
        decoder: through which the gradient goes; see `decoders.find_decoder`. The pipeline's own autoencoder by
            default, a tiny one is faster.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        The first picture and that of the best iterate (the first alone if none was better), made and scored as the
        pipeline decodes them, with their `latents`; `log` has the margin of every iterate; `nfe` counts forward passes.
        `redraw` makes one again. Where a margin or its gradient is not finite, the ascent ends with the best so far and
        a warning.

    Raises:
        ValueError: a bad argument; more than one prompt; a pipeline that starts from a picture; no gradient arrives,
            or the first one is not finite.

    Source:
        Eyring et al. (2024), "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization",
        https://arxiv.org/abs/2406.04312; values of its published code. Ours takes any reward and any pipeline.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; expected at least 1.")
    if guidance is not None and guidance.needs_graph:
        raise ValueError("got guidance with gradient='full', which uses up the graph; expected gradient='denoised'.")
    _check_descent(learning_rate, momentum, clip, regularisation)
    with guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        first = initial_noise(pipe, seed, pipe_kwargs)
        best, noise = first, first.float().clone().requires_grad_()
        descent = torch.optim.SGD([noise], learning_rate, momentum, nesterov=momentum > 0)
        margins: list[float] = []
        for iteration in progress_bar(pipe)(range(1, iterations + 1), desc="noise optimisation"):
            point = noise.detach().to(first)
            margin, gradient = noise_gradient(pipe, reward, point, seed=seed, decoder=decoder, pipe_kwargs=pipe_kwargs)
            if not (math.isfinite(margin) and gradient.isfinite().all()):
                _stop_at(iteration, iterations, margin, gradient)
                break
            if margin > max(margins, default=-math.inf):
                best = point.clone()
            margins.append(margin)
            noise.grad = regularisation * _norm_gradient(noise.detach()) - gradient
            nn.utils.clip_grad_norm_([noise], clip)
            descent.step()
        starts = first if torch.equal(best, first) else torch.cat([first, best])
        candidates = _from_noise(pipe, reward, starts, seed, 1, pipe_kwargs)
    settings = {**pipe_kwargs} | ({} if guidance is None else {"guidance": guidance})
    return result_of(candidates, (), settings=settings, from_latents=True, log=tuple(margins), nfe=sum(rows))


def _stop_at(iteration: int, iterations: int, margin: float, gradient: Tensor) -> None:
    """Say that an iteration has no finite margin or gradient; an error at the first one, which leaves no result."""
    message = (
        f"the margin of iteration {iteration} of {iterations} is {margin}, and NaN or infinite values in its gradient"
        f" are {int((~gradient.isfinite()).sum())}; expected finite numbers: look at the reward, run the pipeline in"
        " float32, or lower learning_rate."
    )
    if iteration == 1:
        raise ValueError(message)
    logger.warning("Noise optimisation ends early, with the best iterate so far: %s", message)


def noise_gradient(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    *,
    seed: int,
    decoder: Decoder | nn.Module | None,
    pipe_kwargs: dict[str, Any],
) -> tuple[float, Tensor]:
    """Margin of the picture that a pipeline makes from noise (1, ...), and its gradient, float32 of the same shape.

    Raises:
        ValueError: no gradient arrives.
    """
    margin = getattr(reward, "margin", reward)
    call = call_arguments(pipe_kwargs, 1) | {"output_type": "latent"}
    undecorated = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad
    look = find_decoder(pipe, decoder, **size_of(pipe_kwargs))
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(frozen(modules_of(reward, look, networks)))
        stack.enter_context(checkpointed(pipe))
        if hasattr(look, "watch"):
            stack.enter_context(look.watch(pipe))
        start = noise.detach().clone().requires_grad_()
        generators = seeded_generators([seed])
        latents = pictures_of(undecorated(pipe, **call, latents=start, generator=generators))
        value = margin(look(latents).flatten(0, -4)).float().mean()  # of a video, over its frames
        gradient = torch.autograd.grad(value, start, allow_unused=True)[0] if value.requires_grad else None
        if gradient is None:
            raise ValueError(
                "no gradient arrives at the noise; look for .detach(), no_grad or a conversion to NumPy in the reward"
                f" and the decoder, and for a step of {type(pipe.scheduler).__name__} that is not differentiable."
            )
    return value.item(), gradient.float()


def _check_descent(learning_rate: float, momentum: float, clip: float, regularisation: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; expected a finite number above 0.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; expected at least 0 and less than 1.")
    if not clip > 0:
        raise ValueError(f"clip is {clip}; expected a number above 0.")
    if not 0 <= regularisation < math.inf:
        raise ValueError(f"regularisation is {regularisation}; expected a finite number, at least 0.")


def _norm_gradient(noise: Tensor) -> Tensor:
    """Gradient of |z|^2 / 2 - (d - 1) * log|z|: 0 where |z|^2 = d - 1."""
    return noise * (1 - (noise.numel() - 1) / noise.square().sum())


def _generator_beside(seed: int) -> torch.Generator:
    """A generator whose numbers have nothing to do with those of the seed itself."""
    return torch.Generator("cpu").manual_seed(
        int(np.random.SeedSequence(seed % 2**64).generate_state(1, np.uint64)[0]) >> 1
    )


def _from_noise(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    seed: int,
    batch_size: int,
    pipe_kwargs: dict[str, Any],
) -> list[Candidate]:
    """The candidates that start from noise (N, ...)."""
    candidates: list[Candidate] = []
    for latents in noise.split(batch_size):
        call = call_arguments(pipe_kwargs, len(latents)) | {"latents": latents.to(pipe.device)}
        candidates += draw(pipe, reward, [seed] * len(latents), call, pipe, latents.cpu())
    return candidates
