"""Best of N: draw several pictures with one pipeline and rank them by a reward. No gradient is needed.

Nothing here knows a host: a pipeline is anything that is called like those of diffusers (`generator`, a list with one
per picture; `num_images_per_prompt`; `output_type="pt"`; a result with `.images`).
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..rerank import Dropped, Ranking, best_first, rank
from .decoders import Decoder, find_decoder, observed
from .denoiser import counted_rows, denoisers_of
from .reentry import run_on, run_to
from .sampler_state import SamplerState, joined

HALVING = (0.4, 0.7)
"""Shares of the steps after which `halving=True` drops half of the candidates."""

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
    halving: Sequence[float] | bool = (),
    decoder: Decoder | nn.Module | None = None,
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
        halving: shares of the evaluations of a run, rising in (0, 1). At each, the better half of the candidates still
            there (rounded up, at least `top_k`) goes on, by the score of its denoised prediction; the others are
            dropped. What has been evaluated is never evaluated again. True for `HALVING`; none by default.
        decoder: with which predictions are looked at, see `decoders.find_decoder`; the pipeline's autoencoder by
            default, a tiny one is faster.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        A `Ranking` of the candidates in the order of their seeds: `images` (N, 3, H, W) float32 in [0, 1] on the CPU,
        as the pipeline decodes them, not rounded; `latents` the initial noise as `latents=` takes it (None where the
        pipeline starts from a picture); `settings` are `pipe_kwargs` and `batch_size`; `nfe` the rows that went through
        the denoiser. With `halving` only the candidates that were finished, and the others are `dropped`; drawn again
        they may differ in the last digits, since batches have shrunk (with batch_size=1 they do not).

    Raises:
        ValueError: a bad argument; more than one prompt; a candidate or its score is not finite; `halving` with a
            pipeline or scheduler that cannot be left and entered again.
    """
    seeds = _checked_seeds(n, seeds, batch_size, top_k)
    shares = _checked_shares(halving, pipe_kwargs)
    quiet = getattr(pipe, "_progress_bar_config", {}).get("disable", False)
    progress = functools.partial(tqdm, disable=quiet or None)
    found: list[Candidate] = []
    dropped: list[Dropped] = []
    with counted_rows(pipe) as rows:
        if shares and n > (top_k or 1):
            look = functools.partial(find_decoder, pipe, decoder, **_size_of(pipe_kwargs))
            states, dropped = _halve(pipe, reward, seeds, shares, top_k or 1, batch_size, look(), pipe_kwargs, progress)
            groups = _chunks(list(states), batch_size)
        else:
            states, groups = {}, _batches(seeds, batch_size)
        for lanes in progress(groups, desc=f"best of {n}"):
            call = _call_arguments(pipe, pipe_kwargs, len(lanes))
            run = functools.partial(run_on, pipe, state=joined([states[seed] for seed in lanes])) if states else pipe
            found += _draw(pipe, reward, lanes, call, run)
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
        dropped=tuple(dropped),
        nfe=sum(rows) if denoisers_of(pipe) else None,
    )


def _halve(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    shares: Sequence[float],
    least: int,
    batch_size: int,
    decoder: Decoder,
    given: dict[str, Any],
    progress: Callable[..., Any],
) -> tuple[dict[int, SamplerState], list[Dropped]]:
    """The states of the candidates that are left after all checkpoints, by seed; and those that were dropped."""
    states: dict[int, SamplerState] = {}
    dropped: list[Dropped] = []
    alive = list(seeds)
    for share in shares:
        keep = max(math.ceil(len(alive) / 2), least)
        if keep >= len(alive):
            break
        scores: list[float] = []
        reached: dict[int, SamplerState] = {}
        for lanes in progress(_chunks(alive, batch_size), desc=f"to {share:.0%}"):
            state = joined([states[seed] for seed in lanes]) if states else None
            call = _call_arguments(pipe, given, len(lanes))
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in lanes]
            with decoder.watch(pipe) if hasattr(decoder, "watch") else nullcontext():
                state, denoised = run_to(pipe, share, generators, state, **call)
            if len(denoised) != len(lanes):
                raise ValueError(
                    f"the pipeline samples {len(denoised)} pictures; expected {len(lanes)}: give one prompt."
                )
            reached |= {seed: state.pick([lane]) for lane, seed in enumerate(lanes)}
            with torch.no_grad():
                images = decoder(denoised)
            scores += _scored(images, reward, lanes)
        order = best_first(torch.tensor(scores)).tolist()
        dropped += [Dropped(alive[i], share, scores[i]) for i in order[keep:]]
        alive = [alive[i] for i in sorted(order[:keep])]
        states = {seed: reached[seed] for seed in alive}
    return states, dropped


def _chunks(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def _checked_shares(halving: Sequence[float] | bool, given: dict[str, Any]) -> tuple[float, ...]:
    shares = (HALVING if halving else ()) if isinstance(halving, bool) else tuple(halving)
    if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"halving is {shares}; expected shares of the steps that rise, each between 0 and 1.")
    for name in ("callback_on_step_end", "callback"):
        if shares and given.get(name) is not None:
            raise ValueError(
                f"got {name}= and halving; a callback would see steps that are left out: use `with guided(...)` for"
                " guidance, or halving=()."
            )
    return shares


def _size_of(given: dict[str, Any]) -> dict[str, Any]:
    size = {name: given.get(name) for name in ("height", "width")}
    return size if all(size.values()) else {}


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
    with _noting_noise(pipe, noise):
        images = run(**call, generator=generators).images
    if len(images) != len(lanes):
        raise ValueError(f"the pipeline made {len(images)} images; expected {len(lanes)}: give one prompt or picture.")
    images = images[used].float()
    finite = images.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        bad = [seed for seed, good in zip(seeds, finite, strict=True) if not good]
        raise ValueError(f"the candidates with seeds {bad} hold NaN or infinite values; check dtype and guidance.")
    scores = _scored(images, reward, seeds)
    start = _unscaled(pipe, noise[0])[used].cpu() if noise else [None] * len(used)
    return zip(seeds, images.cpu(), scores, start, strict=True)


def _scored(images: Tensor, reward: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> list[float]:
    try:
        return rank(images, reward, batch_size=len(images)).scores.tolist()
    except ValueError as error:
        raise ValueError(f"the candidates with seeds {list(seeds)} cannot be ranked: {error}") from error


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
