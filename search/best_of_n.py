"""Best of N: draw several pictures with one pipeline and rank them by a reward. No gradient is needed.

Nothing here knows a host, see `candidates`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import counted_rows, denoisers_of
from ..guidance.reward_guidance import RewardGuidance
from ..rerank import Dropped, Ranking, best_first
from .candidates import Candidate, call_arguments, chunks, drawn, guided_calls, scored, size_of
from .halving import HALVING, check_shares
from .resume import run_on, run_to
from .sampler_state import SamplerState, joined


def best_of_n(
    pipe: Callable[..., Any],
    reward: Callable[[Tensor], Tensor],
    *,
    n: int,
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
    top_k: int | None = None,
    halving: Sequence[float] | float | bool = (),
    decoder: Decoder | nn.Module | None = None,
    guidance: RewardGuidance | None = None,
    **pipe_kwargs: Any,
) -> Ranking:
    """Draw `n` candidates of one prompt and rank them by a reward.

    Each candidate has a CPU generator with its own seed, and a place in the batch that follows from its seed, so it
    depends on its seed, `pipe_kwargs` and `batch_size` alone, not on which others are drawn with it:
    `best_of_n(pipe, reward, n=1, seeds=[seed], **ranking.settings)` draws a candidate again, bit for bit on the same
    machine. With batch_size=1 so does `pipe(generator=torch.Generator().manual_seed(seed), ...)`. Across batch sizes
    the kernels differ, and with them the last digits.

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
            dropped. What has been evaluated is never evaluated again. One number is one share, True is `HALVING`; none
            by default.
        decoder: with which predictions are looked at, see `decoders.find_decoder`; the pipeline's autoencoder by
            default, a tiny one is faster.
        guidance: with which the candidates are guided; `with guided(pipe, guidance):` around the call does the same.
        **pipe_kwargs: what the pipeline is called with: one `prompt` (or embeddings of one), steps, size, ...

    Returns:
        A `Ranking` of the candidates in the order of their seeds: `images` (N, 3, H, W) float32 in [0, 1] on the CPU,
        as the pipeline decodes them, not rounded; `latents` the initial noise as `latents=` takes it (None where the
        pipeline starts from a picture); `settings` are `pipe_kwargs`, `batch_size` and `guidance` if given; `nfe` the
        rows that went through the denoiser. With `halving` only the candidates that were finished, and the others are
        `dropped`; drawn again they may differ in the last digits, since batches have shrunk (with batch_size=1 they do
        not).

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
    with guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        if shares and n > (top_k or 1):
            look = functools.partial(find_decoder, pipe, decoder, **size_of(pipe_kwargs))
            states, dropped = _halve(pipe, reward, seeds, shares, top_k or 1, batch_size, look(), pipe_kwargs, progress)
            groups = chunks(list(states), batch_size)
        else:
            states, groups = {}, _batches(seeds, batch_size)
        for lanes in progress(groups, desc=f"best of {n}"):
            call = call_arguments(pipe, pipe_kwargs, len(lanes))
            run = functools.partial(run_on, pipe, state=joined([states[seed] for seed in lanes])) if states else pipe
            found += drawn(pipe, reward, lanes, call, run)
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
        settings={**pipe_kwargs, "batch_size": batch_size} | ({} if guidance is None else {"guidance": guidance}),
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
        for lanes in progress(chunks(alive, batch_size), desc=f"to {share:.0%}"):
            state = joined([states[seed] for seed in lanes]) if states else None
            call = call_arguments(pipe, given, len(lanes))
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
            scores += scored(images, reward, lanes)
        order = best_first(torch.tensor(scores)).tolist()
        dropped += [Dropped(alive[i], share, scores[i]) for i in order[keep:]]
        alive = [alive[i] for i in sorted(order[:keep])]
        states = {seed: reached[seed] for seed in alive}
    return states, dropped


def _checked_shares(halving: Sequence[float] | float | bool, given: dict[str, Any]) -> tuple[float, ...]:
    if isinstance(halving, bool):
        halving = HALVING if halving else ()
    shares = check_shares("halving", (halving,) if isinstance(halving, (int, float)) else halving)
    for name in ("callback_on_step_end", "callback"):
        if shares and given.get(name) is not None:
            raise ValueError(
                f"got {name}= and halving; a callback would see steps that are left out: use `with guided(...)` for"
                " guidance, or halving=()."
            )
    return shares


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
