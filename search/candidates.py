"""What all searches share: the call of a pipeline for some candidates, their pictures, scores and initial noise.

Nothing here knows a host: a pipeline is anything that is called like those of diffusers (`generator`, a list with one
per picture; `num_images_per_prompt`; `output_type="pt"`; a result with `.images`).
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..guidance.diffusers.guided import guided
from ..guidance.diffusers.replace import observed
from ..guidance.reward_guidance import RewardGuidance
from ..rerank import rank

_DECIDED_HERE = {
    "generator": "every candidate has a generator of its own: give seeds=[...]",
    "latents": "all candidates would start from the same noise: give seeds=[...]",
    "num_images_per_prompt": "it is set from batch_size",
    "output_type": "candidates are scored and returned as float tensors: convert ranking.best afterwards",
    "return_dict": "the result is a Ranking",
}

Candidate = tuple[int, Tensor, float, Tensor | None]
"""Seed, picture (3, H, W) on the CPU, score, initial noise (...) on the CPU where it is known."""


def chunks(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive parts of at most `size`."""
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def size_of(given: dict[str, Any]) -> dict[str, Any]:
    """Height and width of a call, where it names both."""
    size = {name: given.get(name) for name in ("height", "width")}
    return size if all(size.values()) else {}


def call_arguments(pipe: Callable[..., Any], given: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What every call of the pipeline gets besides its generators.

    Pipelines repeat a prompt themselves, but only some of them repeat embeddings; so these are repeated here.
    """
    for name in _DECIDED_HERE.keys() & given.keys():
        raise ValueError(f"got {name}=; the search decides it: {_DECIDED_HERE[name]}.")
    if isinstance(given.get("prompt"), (list, tuple)):
        raise ValueError(
            f"prompt is a list of {len(given['prompt'])}; expected one string: search once for each prompt."
        )
    embeddings = {name: value for name, value in given.items() if "prompt" in name and isinstance(value, Tensor)}
    for name, value in embeddings.items():
        if value.shape[_axis_of_prompts(name)] != 1:
            count = value.shape[_axis_of_prompts(name)]
            raise ValueError(f"{name} holds {count} prompts; expected one, of shape (1, ...).")
    repeated = {name: x.repeat_interleave(batch_size, _axis_of_prompts(name)) for name, x in embeddings.items()}
    call = given | repeated
    if not embeddings and batch_size > 1:
        call["num_images_per_prompt"] = batch_size
    return call | {"output_type": "pt"}


def _axis_of_prompts(name: str) -> int:
    """Those of HiDream's Llama come as (layers, N, ...)."""
    return 1 if name.endswith("llama3") else 0


def guided_calls(
    pipe: Callable[..., Any], guidance: RewardGuidance | None, call: Mapping[str, Any]
) -> AbstractContextManager[Any]:
    """`guided(pipe, guidance)` for calls with these arguments; for None a context that does nothing."""
    if guidance is None:
        return nullcontext()
    return guided(pipe, guidance, height=call.get("height"), width=call.get("width"))


def drawn(
    pipe: Callable[..., Any],
    reward: Callable[[Tensor], Tensor],
    lanes: Sequence[int | None],
    call: dict[str, Any],
    run: Callable[..., Any],
) -> Iterator[Candidate]:
    """The candidates of one run of the pipeline; places of the batch that stay empty get some seed and are dropped."""
    used = [place for place, seed in enumerate(lanes) if seed is not None]
    seeds = [lanes[place] for place in used]
    generators = [torch.Generator("cpu").manual_seed(seeds[0] if seed is None else seed) for seed in lanes]
    noise: list[Tensor] = []
    with noting_noise(pipe, noise):
        images = pictures_of(run(**call, generator=generators))
    if len(images) != len(lanes):
        raise ValueError(f"the pipeline made {len(images)} images; expected {len(lanes)}: give one prompt or picture.")
    images = images[used].float()
    finite = images.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        bad = [seed for seed, good in zip(seeds, finite, strict=True) if not good]
        raise ValueError(f"the candidates with seeds {bad} hold NaN or infinite values; check dtype and guidance.")
    scores = scored(images, reward, seeds)
    start = unscaled(pipe, noise[0])[used].cpu() if noise else [None] * len(used)
    return zip(seeds, images.cpu(), scores, start, strict=True)


def pictures_of(result: Any) -> Tensor:
    """What a pipeline has made: pictures (N, 3, H, W), or videos (N, F, 3, H, W)."""
    return result.frames if hasattr(result, "frames") else result.images


def scored(images: Tensor, reward: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> list[float]:
    """Scores of images (N, 3, H, W), or of videos (N, F, 3, H, W) the mean over frames; an error names the seeds."""
    frames = images.flatten(0, -4)
    try:
        return rank(frames, reward, batch_size=len(images)).scores.view(len(images), -1).mean(1).tolist()
    except ValueError as error:
        raise ValueError(f"the candidates with seeds {list(seeds)} cannot be ranked: {error}") from error


def noting_noise(pipe: Callable[..., Any], noise: list[Tensor]) -> AbstractContextManager[None]:
    """Note the initial latents that a text-to-image pipeline prepares; those of others cannot be given back to it."""
    if not starts_from_noise(pipe):
        return nullcontext()
    return observed(pipe, "prepare_latents", lambda given, result: noise.append(_as_taken(pipe, given, result)))


def starts_from_noise(pipe: Any) -> bool:
    """Whether the pipeline takes the noise from which it starts as `latents=`; not if it starts from a picture."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return "latents" in parameters and "strength" not in parameters and hasattr(pipe, "prepare_latents")


def initial_noise(pipe: Any, seed: int, given: dict[str, Any]) -> Tensor:
    """The noise from which a call would start with this seed; the call is left before the first evaluation.

    Args:
        pipe: a diffusers pipeline that makes pictures from noise.
        seed: of the generator.
        given: what the pipeline is called with.

    Returns:
        (1, ...) as `latents=` takes it, in the pipeline's own dtype and on its device.

    Raises:
        ValueError: the pipeline starts from a picture.
    """
    if not starts_from_noise(pipe):
        raise ValueError(
            f"got a {type(pipe).__name__}, which takes no latents= to start from; expected a text-to-image pipeline."
        )
    call = call_arguments(pipe, given, 1)
    try:
        with observed(pipe, "prepare_latents", functools.partial(_leave, pipe)):
            pipe(**call, generator=[torch.Generator("cpu").manual_seed(seed)])
    except _Prepared as prepared:
        getattr(pipe, "maybe_free_model_hooks", lambda: None)()
        noise = unscaled(pipe, prepared.latents)
    if len(noise) != 1:
        raise ValueError(f"the pipeline samples {len(noise)} pictures; expected 1: give one prompt.")
    return noise.detach()


class _Prepared(Exception):
    """Raised out of the pipeline when its latents are there."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


def _leave(pipe: Any, given: Mapping[str, Any], result: Any) -> None:
    raise _Prepared(_as_taken(pipe, given, result))


def _as_taken(pipe: Any, given: Mapping[str, Any], result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Latents in the layout that `latents=` has, from what `prepare_latents`, called with `given`, returns."""
    latents = result if isinstance(result, Tensor) else result[0]  # packed latents come with their positions
    if not any(cls.__name__.startswith("Flux2") for cls in type(pipe).__mro__):
        return latents
    rows = int(given["height"]) // (2 * pipe.vae_scale_factor)  # it packs the latents that it is given
    return latents.transpose(1, 2).unflatten(2, (rows, -1))


def unscaled(pipe: Any, latents: Tensor) -> Tensor:
    """Initial latents as the pipeline's `latents=` takes them, that is before it scales them for its scheduler."""
    return latents / getattr(pipe.scheduler, "init_noise_sigma", 1.0)
