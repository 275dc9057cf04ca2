"""What a guided run writes down about each evaluation of the diffusion model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


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
    """The log of a batch, for each of its samples (of as many frames each) apart."""
    return [[_of_sample(entry, samples, lane) for entry in log] for lane in range(samples)]


def joined_logs(logs: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """The log of a batch from those of its samples, which have come equally far."""
    return [_of_batch(entries) for entries in zip(*logs, strict=True)]


def _of_sample(entry: Evaluation, samples: int, lane: int) -> Evaluation:
    values = {name: getattr(entry, name) for name in _PER_SAMPLE}
    frames = max(len(value or ()) for value in values.values()) // samples
    first, end = lane * frames, (lane + 1) * frames
    bad = tuple(index - first for index in entry.bad_samples if first <= index < end)
    return replace(entry, bad_samples=bad, **{name: value and value[first:end] for name, value in values.items()})


def _of_batch(entries: Sequence[Evaluation]) -> Evaluation:
    values = {name: [getattr(entry, name) for entry in entries] for name in _PER_SAMPLE}
    frames = max(len(value or ()) for value in values["change"])
    bad = tuple(lane * frames + index for lane, entry in enumerate(entries) for index in entry.bad_samples)
    skipped = next((None for entry in entries if entry.skipped is None), entries[0].skipped)
    together = {name: None if parts[0] is None else sum(parts, ()) for name, parts in values.items()}
    return replace(entries[0], bad_samples=bad, skipped=skipped, **together)
