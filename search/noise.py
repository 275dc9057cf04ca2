"""Search for the noise that a sampler starts from: neighbours of the best (no gradient), or gradient ascent."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import checkpointed, counted_rows
from ..guidance.freeze import frozen, modules_of
from ..guidance.reward_guidance import RewardGuidance
from ..rerank import Ranking, best_first
from .candidates import Candidate, call_arguments, chunks, drawn, guided_calls, initial_noise, pictures_of, size_of


def zero_order_search(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    *,
    rounds: int = 4,
    neighbours: int = 4,
    closeness: float = 0.95,
    seed: int = 0,
    guidance: RewardGuidance | None = None,
    batch_size: int = 1,
    **pipe_kwargs: Any,
) -> Ranking:
    """Climb from noise to noise: in each round draw neighbours of the best noise so far and keep what is better.

    A neighbour is closeness * best + sqrt(1 - closeness^2) * fresh noise, which is standard normal again and has the
    correlation `closeness` with the best. Noise that the sampler adds on the way is the same for all.

    Args:
        pipe: a diffusers text-to-image pipeline; any scheduler.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; need not be differentiable.
        rounds: at least 1.
        neighbours: new pictures in a round, at least 1; the search makes 1 + rounds * neighbours in all.
        closeness: correlation of a neighbour with the best, in [0, 1); 0 is best of N.
        seed: of the first noise, of the neighbours and of the noise that the sampler adds.
        guidance: with which all are guided.
        batch_size: pictures per call of the pipeline; memory and speed.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        A `Ranking` of all pictures in the order in which they were made, with their `latents`; `redraw` makes one
        again, or `pipe(latents=ranking.latents[i][None], generator=torch.Generator().manual_seed(seed), ...)`.

    Raises:
        ValueError: a bad argument; more than one prompt; a pipeline that starts from a picture.

    Source:
        Ma et al. (2025), "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps", section 3,
        https://arxiv.org/abs/2501.09732. Ours keeps the best so far as the centre even if a whole round is worse.
    """
    for name, value in (("rounds", rounds), ("neighbours", neighbours), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    if not 0 <= closeness < 1:
        raise ValueError(f"closeness is {closeness}; expected at least 0 and less than 1, which is the best itself.")
    fresh = _generator_beside(seed)
    with guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        noise = initial_noise(pipe, seed, pipe_kwargs)
        found = _from_noise(pipe, reward, noise, seed, batch_size, pipe_kwargs)
        for _ in _progress(pipe)(range(rounds), desc="zero-order search"):
            best = max(found, key=lambda candidate: candidate[2])[3].float()
            drawn_noise = torch.randn((neighbours, *best.shape), generator=fresh)
            near = (closeness * best + math.sqrt(1 - closeness**2) * drawn_noise).to(noise)
            found += _from_noise(pipe, reward, near, seed, batch_size, pipe_kwargs)
    return _ranking(found, {**pipe_kwargs, "batch_size": batch_size, "guidance": guidance}, (), sum(rows))


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
) -> Ranking:
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
        A `Ranking` of the first picture and that of the best iterate (the first alone if none was better), made and
        scored as the pipeline decodes them, with their `latents`; `log` has the margin of every iterate; `nfe` counts
        forward passes. `redraw` makes one again.

    Raises:
        ValueError: a bad argument; more than one prompt; a pipeline that starts from a picture; no gradient arrives,
            or one that is not finite.

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
        climb = functools.partial(noise_gradient, pipe, reward, seed=seed, decoder=decoder, given=pipe_kwargs)
        noise = first.float().clone().requires_grad_()
        descent = torch.optim.SGD([noise], learning_rate, momentum, nesterov=momentum > 0)
        margins: list[float] = []
        best = first
        for iteration in _progress(pipe)(range(1, iterations + 1), desc="noise optimisation"):
            margin, gradient = climb(noise.detach().to(first))
            if not (math.isfinite(margin) and gradient.isfinite().all()):
                raise ValueError(
                    f"the margin of iteration {iteration} of {iterations} is {margin}, and NaN or infinite values in"
                    f" its gradient are {int((~gradient.isfinite()).sum())}; expected finite numbers: look at the"
                    " reward, run the pipeline in float32, or lower learning_rate."
                )
            if not margins or margin > max(margins):
                best = noise.detach().to(first).clone()
            margins.append(margin)
            noise.grad = regularisation * _norm_gradient(noise.detach()) - gradient
            nn.utils.clip_grad_norm_([noise], clip)
            descent.step()
        starts = first if torch.equal(best, first) else torch.cat([first, best])
        found = _from_noise(pipe, reward, starts, seed, 1, pipe_kwargs)
    return _ranking(found, {**pipe_kwargs, "guidance": guidance}, tuple(margins), sum(rows))


def noise_gradient(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    *,
    seed: int,
    decoder: Decoder | nn.Module | None,
    given: dict[str, Any],
) -> tuple[float, Tensor]:
    """Margin of the picture that a pipeline makes from noise (1, ...), and its gradient, float32 of the same shape.

    Raises:
        ValueError: no gradient arrives.
    """
    margin = getattr(reward, "margin", reward)
    call = call_arguments(pipe, given, 1) | {"output_type": "latent"}
    undecorated = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad
    look = find_decoder(pipe, decoder, **size_of(given))
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(frozen(modules_of(reward, look, networks)))
        stack.enter_context(checkpointed(pipe))
        if hasattr(look, "watch"):
            stack.enter_context(look.watch(pipe))
        start = noise.detach().clone().requires_grad_()
        generator = [torch.Generator("cpu").manual_seed(seed)]
        latents = pictures_of(undecorated(pipe, **call, latents=start, generator=generator))
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
        int(np.random.SeedSequence(seed % 2**64).generate_state(1, np.uint64)[0] >> 1)
    )


def _progress(pipe: Any) -> Callable[..., Any]:
    quiet = getattr(pipe, "_progress_bar_config", {}).get("disable", False)
    return functools.partial(tqdm, disable=quiet or None)


def _from_noise(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    seed: int,
    batch_size: int,
    given: dict[str, Any],
) -> list[Candidate]:
    """The candidates that start from noise (N, ...)."""
    found: list[Candidate] = []
    for part in chunks(range(len(noise)), batch_size):
        latents = noise[part[0] : part[-1] + 1].to(pipe.device)
        call = call_arguments(pipe, given, len(part)) | {"latents": latents}
        made = drawn(pipe, reward, [seed] * len(part), call, pipe)
        found += [(*candidate[:3], start.cpu()) for candidate, start in zip(made, latents, strict=True)]
    return found


def _ranking(found: Sequence[Candidate], settings: dict[str, Any], log: tuple[float, ...], nfe: int) -> Ranking:
    seeds, images, scores, latents = zip(*found, strict=True)
    scores = torch.tensor(scores, dtype=torch.float32)
    return Ranking(
        images=torch.stack(images),
        scores=scores,
        order=best_first(scores),
        seeds=seeds,
        latents=torch.stack(latents),
        settings={name: value for name, value in settings.items() if name != "guidance" or value is not None},
        from_latents=True,
        log=log,
        nfe=nfe,
    )
