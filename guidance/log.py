"""What a guided run writes down about each evaluation of the diffusion model."""

from dataclasses import dataclass


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
