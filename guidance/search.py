"""Best of N: draw several pictures with one pipeline and rank them by a reward. No gradient is needed.

Nothing here knows a host: a pipeline is anything that is called like those of diffusers (`generator`, a list with one
per picture; `num_images_per_prompt`; `output_type="pt"`; a result with `.images`).
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..rerank import Ranking, best_first, rank
from .decoders import observed

_DECIDED_HERE = {
    "generator": "every candidate has a generator of its own: give seeds=[...]",
    "latents": "all candidates would start from the same noise: give seeds=[...]",
    "num_images_per_prompt": "it is set from batch_size",
    "output_type": "candidates are scored and returned as float tensors: convert ranking.best afterwards",
    "return_dict": "the result is a Ranking",
}

Candidate = tuple[int, Tensor, float, Tensor | None]
"""Seed, picture (3, H, W) on the CPU, score, initial noise (...) on the CPU where it is known."""


def best_of_n(
    pipe: Callable[..., Any],
    reward: Callable[[Tensor], Tensor],
    *,
    n: int,
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
    top_k: int | None = None,
    **pipe_kwargs: Any,
) -> Ranking:
    """Draw `n` candidates of one prompt and rank them by a reward.

    Each candidate has a CPU generator with its own seed, and a place in the batch that follows from its seed, so it
    depends on its seed, `pipe_kwargs` and `batch_size` alone, not on which others are drawn with it:
    `best_of_n(pipe, reward, n=1, seeds=[seed], **ranking.settings)` draws a candidate again, bit for bit on the same
    machine. With batch_size=1 so does `pipe(generator=torch.Generator().manual_seed(seed), ...)`. Across batch sizes
    the kernels differ, and with them the last digits. Inside `with guided(pipe, guidance):` the candidates are guided.

    Args:
        pipe: a diffusers pipeline.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; a module gets the images on its own
            device, a function where the pipeline leaves them.
        n: number of candidates, at least 1.
        seeds: one for each candidate, all different; 0 ... n-1 by default.
        batch_size: pictures per call of the pipeline; memory and speed. Every call has this many, empty places are
            filled up: no place stays empty if `n` is a multiple of it and the seeds follow each other.
        top_k: keep the `top_k` best only (pictures, scores, seeds), to save memory; None keeps all.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        A `Ranking` of the candidates in the order of their seeds: `images` (N, 3, H, W) float32 in [0, 1] on the CPU,
        as the pipeline decodes them, not rounded; `latents` the initial noise as `latents=` takes it (None where the
        pipeline starts from a picture); `settings` are `pipe_kwargs` and `batch_size`.

    Raises:
        ValueError: a bad argument; more than one prompt; a candidate or its score is not finite.
    """
    seeds = _checked_seeds(n, seeds, batch_size, top_k)
    call = _call_arguments(pipe, pipe_kwargs, batch_size)
    quiet = getattr(pipe, "_progress_bar_config", {}).get("disable", False)
    found: list[Candidate] = []
    for lanes in tqdm(_batches(seeds, batch_size), desc=f"best of {n}", disable=quiet or None):
        found += _draw(pipe, reward, lanes, call)
        found.sort(key=lambda candidate: seeds.index(candidate[0]))
        if top_k is not None:
            kept = best_first(torch.tensor([score for _, _, score, _ in found]))[:top_k]
            found = [found[i] for i in sorted(kept.tolist())]
    kept_seeds, images, scores, latents = zip(*found, strict=True)
    scores = torch.tensor(scores, dtype=torch.float32)
    return Ranking(
        images=torch.stack(images),
        scores=scores,
        order=best_first(scores),
        seeds=kept_seeds,
        latents=None if latents[0] is None else torch.stack(latents),
        settings={**pipe_kwargs, "batch_size": batch_size},
    )


def _checked_seeds(n: int, seeds: Sequence[int] | None, batch_size: int, top_k: int | None) -> tuple[int, ...]:
    for name, value in (("n", n), ("batch_size", batch_size), ("top_k", 1 if top_k is None else top_k)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    seeds = tuple(range(n)) if seeds is None else tuple(int(seed) for seed in seeds)
    if len(set(seeds)) != n:
        raise ValueError(
            f"got {len(seeds)} seeds, {len(set(seeds))} of them different, for n={n}; expected {n} different seeds."
        )
    return seeds


def _batches(seeds: Sequence[int], batch_size: int) -> list[list[int | None]]:
    """Distribute seeds over batches, each always in the same place; None for a place that stays empty.

    Kernels that share the work of a batch between threads may round differently at different places of it.
    """
    places = [[seed for seed in seeds if seed % batch_size == place] for place in range(batch_size)]
    return [list(batch) for batch in itertools.zip_longest(*places)]


def _call_arguments(pipe: Callable[..., Any], given: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What every call of the pipeline gets besides its generators.

    Pipelines repeat a prompt themselves, but only some of them repeat embeddings; so these are repeated here.
    """
    for name in _DECIDED_HERE.keys() & given.keys():
        raise ValueError(f"got {name}=; best_of_n decides it: {_DECIDED_HERE[name]}.")
    if isinstance(given.get("prompt"), (list, tuple)):
        raise ValueError(
            f"prompt is a list of {len(given['prompt'])}; expected one string: call best_of_n once for each prompt."
        )
    embeddings = {name: value for name, value in given.items() if "prompt" in name and isinstance(value, Tensor)}
    for name, value in embeddings.items():
        if len(value) != 1:
            raise ValueError(f"{name} holds {len(value)} prompts; expected one, of shape (1, ...).")
    call = given | {name: value.repeat_interleave(batch_size, 0) for name, value in embeddings.items()}
    if not embeddings and batch_size > 1:
        call["num_images_per_prompt"] = batch_size
    return call | {"output_type": "pt"}


def _draw(
    pipe: Callable[..., Any], reward: Callable[[Tensor], Tensor], lanes: Sequence[int | None], call: dict[str, Any]
) -> Iterator[Candidate]:
    """The candidates of one call of the pipeline; places of the batch that stay empty get some seed and are dropped."""
    used = [place for place, seed in enumerate(lanes) if seed is not None]
    seeds = [lanes[place] for place in used]
    generators = [torch.Generator("cpu").manual_seed(seeds[0] if seed is None else seed) for seed in lanes]
    noise: list[Tensor] = []
    with _noting_noise(pipe, noise):
        images = pipe(**call, generator=generators).images
    if len(images) != len(lanes):
        raise ValueError(f"the pipeline made {len(images)} images; expected {len(lanes)}: give one prompt or picture.")
    images = images[used].float()
    finite = images.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        bad = [seed for seed, good in zip(seeds, finite, strict=True) if not good]
        raise ValueError(f"the candidates with seeds {bad} hold NaN or infinite values; check dtype and guidance.")
    try:
        scores = rank(images, reward, batch_size=len(images)).scores
    except ValueError as error:
        raise ValueError(f"the candidates with seeds {seeds} cannot be ranked: {error}") from error
    start = _unscaled(pipe, noise[0])[used].cpu() if noise else [None] * len(used)
    return zip(seeds, images.cpu(), scores.tolist(), start, strict=True)


def _noting_noise(pipe: Callable[..., Any], noise: list[Tensor]) -> AbstractContextManager[None]:
    """Note the initial latents that a text-to-image pipeline prepares; those of others cannot be given back to it."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "latents" not in parameters or "strength" in parameters or not hasattr(pipe, "prepare_latents"):
        return nullcontext()

    def note(_: Any, result: Tensor | tuple[Tensor, ...]) -> None:
        noise.append(result if isinstance(result, Tensor) else result[0])  # packed latents come with their positions

    return observed(pipe, "prepare_latents", note)


def _unscaled(pipe: Any, latents: Tensor) -> Tensor:
    """Initial latents as the pipeline's `latents=` takes them, that is before it scales them for its scheduler."""
    return latents / getattr(pipe.scheduler, "init_noise_sigma", 1.0)
