"""What a guided run writes down about each evaluation of the diffusion model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .tensor_tree import join, split


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the diffusion model, guided or not."""

    index: int
    """Number of the evaluation in its run, from 0."""

    noise_level: float
    """Noise level at which the model was evaluated, in [0, 1]."""

    next_noise_level: float
    """Noise level that the step leads to, in [0, 1]."""

    skipped: str | None = None
    """Why nothing was changed; None if the prediction was changed."""

    weight: float = 0.0
    """The part of the window, in log(sigma / alpha), that this evaluation stands for; multiplies the scale."""

    score_before: tuple[float, ...] | None = None
    """Reward (its margin, where it has one) of the prediction, per sample; None where no gradient was taken."""

    score_after: tuple[float, ...] | None = None
    """Estimate of the reward after the change, score_before + <gradient, change>, per sample; None as above."""

    change: tuple[float, ...] = ()
    """Root mean square change of the denoised latent, per sample."""

    drift: tuple[float, ...] = ()
    """Root mean square of all changes of this run together, per sample."""

    bad_samples: tuple[int, ...] = ()
    """Samples left alone because their gradient was not finite."""


_PER_SAMPLE = ("score_before", "score_after", "change", "drift")


def split_log(log: Sequence[Evaluation], samples: int) -> list[list[Evaluation]]:
    """The log of a batch, for each of its samples (of as many frames each) separately."""
    trees = [split(_as_tree(entry), samples) for entry in log]
    return [
        [_from_tree(entry, tree[index]) for entry, tree in zip(log, trees, strict=True)] for index in range(samples)
    ]


def join_logs(logs: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """The log of a batch from those of its samples, which have as many entries each."""
    return [
        replace(_from_tree(entries[0], join(list(map(_as_tree, entries)))), skipped=_skipped(entries))
        for entries in zip(*logs, strict=True)
    ]


def _skipped(entries: Sequence[Evaluation]) -> str | None:
    """Why the batch was skipped: None if any sample was not."""
    return next((None for entry in entries if entry.skipped is None), entries[0].skipped)


def _as_tree(entry: Evaluation) -> dict[str, Tensor | None]:
    """What an entry says of each frame, as tensors."""
    values = {name: getattr(entry, name) for name in _PER_SAMPLE}
    bad = torch.zeros(max(len(value or ()) for value in values.values()), dtype=torch.bool)
    bad[list(entry.bad_samples)] = True
    tensors = {
        name: None if value is None else torch.tensor(value, dtype=torch.float64) for name, value in values.items()
    }
    return tensors | {"bad_samples": bad}


def _from_tree(entry: Evaluation, tree: dict[str, Tensor | None]) -> Evaluation:
    """An entry with the values of a tree."""
    values = {name: None if tree[name] is None else tuple(tree[name].tolist()) for name in _PER_SAMPLE}
    return replace(entry, bad_samples=tuple(tree["bad_samples"].nonzero().flatten().tolist()), **values)
