"""Best of N: draw several pictures with one pipeline and rank them by a reward. No gradient is needed."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.diffusers.decoders import Decoder, find_decoder
from ..guidance.diffusers.denoiser import counted_rows, denoisers_of
from ..guidance.reward_guidance import RewardGuidance
from ..rerank import best_first
from .calls import call_arguments, check_count, chunks, guided_calls, progress_bar, seeded_generators, size_of
from .candidates import Candidate, draw, result_of, score_candidates
from .halving import HALVING, check_shares
from .result import Dropped, SearchResult, check_some_left, dropped_failures
from .resume import resume, run_until
from .sampler_state import SamplerState, join_states


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
) -> SearchResult:
    """Draw `n` candidates of one prompt and rank them by a reward.

    Each candidate has a CPU generator with its own seed, and a place in the batch that follows from its seed, so it
    depends on its seed, `pipe_kwargs` and `batch_size` alone, not on which others are drawn with it:
    `best_of_n(pipe, reward, n=1, seeds=[seed], **result.settings)` draws a candidate again, bit for bit on the same
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
        The candidates in the order of their seeds: `images` (N, 3, H, W) float32 in [0, 1] on the CPU, as the pipeline
        decodes them, not rounded; `latents` the initial noise as `latents=` takes it (None where the pipeline starts
        from a picture); `settings` are `pipe_kwargs`, `batch_size` and `guidance` if given; `nfe` the rows that went
        through the denoiser. With `halving` only the candidates that were finished, and the others are `dropped`; drawn
        again they may differ in the last digits, since batches have shrunk (with batch_size=1 they do not). Candidates
        that cannot be used are left out; they are in `dropped`, and `failed` names them alone.

    Raises:
        ValueError: a bad argument; more than one prompt; no candidate can be used; `halving` with a pipeline or
            scheduler that cannot be stopped and resumed.
    """
    seeds = _checked_seeds(n, seeds, batch_size, top_k)
    shares = _checked_shares(halving, pipe_kwargs)
    keep = n if top_k is None else top_k
    states: dict[int, SamplerState] = {}
    finished: list[Candidate] = []
    dropped: list[Dropped] = []
    with guided_calls(pipe, guidance, pipe_kwargs), counted_rows(pipe) as rows:
        if shares and n > (top_k or 1):
            states, dropped = _halve(pipe, reward, seeds, shares, top_k or 1, batch_size, decoder, pipe_kwargs)
        batches = chunks(list(states), batch_size) if states else _batches(seeds, batch_size)
        for batch_seeds in progress_bar(pipe)(batches, desc=f"best of {n}"):
            call = call_arguments(pipe_kwargs, len(batch_seeds))
            run = pipe
            if states:
                run = functools.partial(resume, pipe, state=join_states([states[seed] for seed in batch_seeds]))
            drawn = draw(pipe, reward, batch_seeds, call, run)
            finished = _best(sorted([*finished, *drawn], key=lambda candidate: seeds.index(candidate.seed)), keep)
    return result_of(
        finished,
        dropped,
        settings={**pipe_kwargs, "batch_size": batch_size} | ({} if guidance is None else {"guidance": guidance}),
        nfe=sum(rows) if denoisers_of(pipe) else None,
    )


def _halve(
    pipe: Any,
    reward: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    shares: Sequence[float],
    least: int,
    batch_size: int,
    decoder: Decoder | nn.Module | None,
    pipe_kwargs: dict[str, Any],
) -> tuple[dict[int, SamplerState], list[Dropped]]:
    """The states of the candidates that are left after all checkpoints, by seed; and those that were dropped."""
    look = find_decoder(pipe, decoder, **size_of(pipe_kwargs))
    states: dict[int, SamplerState] = {}
    dropped: list[Dropped] = []
    alive = list(seeds)
    for share in shares:
        keep = max(math.ceil(len(alive) / 2), least)
        if keep >= len(alive):
            break
        reached: dict[int, SamplerState] = {}
        scores: list[float] = []
        failures: list[str | None] = []
        for batch_seeds in progress_bar(pipe)(chunks(alive, batch_size), desc=f"to {share:.0%}"):
            state = join_states([states[seed] for seed in batch_seeds]) if states else None
            state, images = predict_at(pipe, share, seeded_generators(batch_seeds), state, look, pipe_kwargs)
            reached |= {seed: state.select([index]) for index, seed in enumerate(batch_seeds)}
            batch_scores, batch_failures = score_candidates(images, reward)
            scores += batch_scores
            failures += batch_failures
        lost = dropped_failures(alive, share, failures)
        check_some_left(len(alive) - len(lost), [*dropped, *lost])
        order = best_first(torch.tensor(scores)).tolist()[: len(alive) - len(lost)]
        dropped += [Dropped(alive[index], share, scores[index]) for index in order[keep:]] + lost
        alive = [alive[index] for index in sorted(order[:keep])]
        states = {seed: reached[seed] for seed in alive}
    return states, dropped


def predict_at(
    pipe: Any,
    share: float,
    generators: Sequence[torch.Generator],
    state: SamplerState | None,
    decoder: Decoder,
    pipe_kwargs: dict[str, Any],
) -> tuple[SamplerState, Tensor]:
    """Run some candidates until a share of their evaluations has been made.

    Args:
        pipe: a diffusers pipeline.
        share: of the evaluations, in (0, 1).
        generators: one for each candidate, as seeded for the beginning of the run.
        state: from where they continue; None to begin.
        decoder: of their predictions.
        pipe_kwargs: what the pipeline is called with.

    Returns:
        Their state there, and the pictures (N, 3, H, W) of their denoised predictions.
    """
    call = call_arguments(pipe_kwargs, len(generators))
    with decoder.watch(pipe) if hasattr(decoder, "watch") else nullcontext():
        state, denoised = run_until(pipe, share, generators, state, **call)
    check_count(len(denoised), len(generators))
    with torch.no_grad():
        return state, decoder(denoised)


def _best(candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
    """The `keep` best candidates and those that cannot be used, in the order in which they are."""
    usable = [index for index, candidate in enumerate(candidates) if candidate.failure is None]
    if len(usable) <= keep:
        return list(candidates)
    order = best_first(torch.tensor([candidates[index].score for index in usable])).tolist()
    worse = {usable[index] for index in order[keep:]}
    return [candidate for index, candidate in enumerate(candidates) if index not in worse]


def _checked_shares(halving: Sequence[float] | float | bool, pipe_kwargs: dict[str, Any]) -> tuple[float, ...]:
    if isinstance(halving, bool):
        halving = HALVING if halving else ()
    shares = check_shares("halving", (halving,) if isinstance(halving, (int, float)) else halving)
    for name in ("callback_on_step_end", "callback"):
        if shares and pipe_kwargs.get(name) is not None:
            raise ValueError(
                f"got {name}= and halving; a callback would be called for steps that are not made: use `with"
                " guided(...)` for guidance, or halving=()."
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
