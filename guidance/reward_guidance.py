"""Reward guidance: push the denoised prediction uphill in a reward while a diffusion model samples. Host-free."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from .augmentation import draw_views
from .evaluation import Evaluation
from .freeze import modules_of
from .gradient import Decoder, Reward, reward_gradient
from .noise_level import Stage, noise_level_of, ratio_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardGuidance:
    """How a reward steers sampling. Settings only: a run keeps its state in a `GuidanceRun` (see `start`).

    At each evaluation of the diffusion model inside the window

        denoised' = denoised + scale * weight * direction

    where `direction` is the reward's gradient with respect to the denoised latent, of root mean square 1 per sample,
    and `weight` is the part of the window, in log(sigma / alpha), that the evaluation stands for. The noise in the
    latent stays what it is, so what is seen of it moves along: x' = x + alpha * scale * weight * direction. All pushes
    together then come to scale * log(high / low) for any number of steps and any solver.

    Source:
        He et al. (2024), "Manifold Preserving Guided Diffusion" (gradient at the prediction only),
        https://arxiv.org/abs/2311.16424; Shen et al. (2024), "Understanding and Improving Training-free Loss-based
        Diffusion Guidance" (averaging over augmentations against adversarial gradients),
        https://arxiv.org/abs/2403.12404. The step-count invariant weight is this package's own.
    """

    reward: Reward
    """Images (N, 3, H, W) in [0, 1] -> (N,), higher is better, differentiable; if it has a `margin`, that is used."""

    scale: float = 0.1
    """Strength: root mean square push of the latent per unit of log(sigma / alpha). 0 changes nothing, to the bit."""

    noise_window: tuple[float, float] = (0.6, 0.05)
    """Noise levels, sigma / (alpha + sigma) in (0, 1), between which guidance acts: (start, stop), start > stop."""

    every: int = 2
    """A gradient at each k-th evaluation inside the window; the evaluations between reuse the last direction. 2 halves
    the cost; a sampler of a few steps may want 1."""

    gradient: Literal["denoised", "full"] = "denoised"
    """With respect to the denoised prediction, without touching the diffusion model; or, "full", to the noisy latent,
    back through the diffusion model: about three times the cost of an evaluation; in diffusers only."""

    ema: float = 0.5
    """Half-life of the direction's moving average, in units of log(sigma / alpha); 0 for none."""

    samples: int = 1
    """Views (noisy, shifted, cropped) over which one gradient is averaged."""

    noise: float = 0.05
    """Standard deviation of the noise of a view, in latent units."""

    shift: int = 0
    """Up to how many pixels a view shifts the picture under the reward, against patterns tied to its pixel grid."""

    crop: int | None = None
    """Side, in latent cells, of the random square a view decodes (saves time and memory); None for everything."""

    chunk: int | None = None
    """Samples decoded and differentiated at once; None for all (less memory, slower, the same result)."""

    clip: float = 3.0
    """Largest size of an element of the direction, whose root mean square is 1."""

    target: float | None = None
    """Margin at which the push has faded out, per sample; None to push on for ever."""

    target_width: float = 1.0
    """Below target - target_width the push is whole; between, it fades linearly."""

    max_drift: float | None = 0.5
    """Trust region: largest root mean square of all pushes of a run together, in latent units; None for no limit."""

    decoder: Decoder | None = None
    """Latents as the diffusion model has them -> images (N, 3, H, W) in [0, 1]; None: the host's adapter finds one.

    The diffusers adapter also takes an autoencoder for the pipeline's latents, such as an AutoencoderTiny.
    """

    seed: int = 0
    """Seed of the views; the sampler's own randomness is never touched."""

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(
                f"reward is {self.reward!r}; expected a function or a model, from images (N, 3, H, W) to scores (N,):"
                " for example iqguide.create_model('tiny')."
            )
        if not _is_window(self.noise_window):
            raise ValueError(
                f"noise_window is {self.noise_window!r}; expected (start, stop) with 1 > start > stop > 0, for example"
                f" {RewardGuidance.noise_window}: guidance acts while the noise level falls from start to stop. At 1"
                " all is noise."
            )
        if self.gradient not in ("denoised", "full"):
            raise ValueError(f"gradient is {self.gradient!r}; expected 'denoised' or 'full'.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}; expected a finite number, or 0 to switch guidance off.")
        if self.target is not None and math.isnan(self.target):
            raise ValueError("target is nan; expected a number, or None to push on for ever.")
        for name in ("every", "samples", "crop", "chunk"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        for name in ("clip", "target_width", "max_drift"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        for name in ("ema", "noise", "shift"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")

    @property
    def needs_graph(self) -> bool:
        """Whether the diffusion model's evaluations have to keep what a backward pass through them needs."""
        return self.gradient == "full" and self.scale != 0

    def start(self, decoder: Decoder | None = None) -> "GuidanceRun":
        """Begin a run, that is the sampling of one batch.

        Args:
            decoder: used instead of the guidance's own, which may still be an autoencoder; None for that one.

        Raises:
            ValueError: if there is no decoder at all.
        """
        return GuidanceRun(self, self.decoder if decoder is None else decoder)


def _is_window(window: object) -> bool:
    numbers = isinstance(window, (tuple, list)) and all(isinstance(level, Real) for level in window)
    return numbers and len(window) == 2 and 1 > window[0] > window[1] > 0


_PER_SAMPLE = ("_average", "_drift", "_scores", "_finite")


class GuidanceRun:
    """State of one guided run: moving average of the direction, pushes so far, log."""

    def __init__(self, guidance: RewardGuidance, decoder: Decoder | None) -> None:
        if decoder is None and guidance.scale != 0:
            raise ValueError("guidance has no decoder; give it one: RewardGuidance(reward, decoder=...).")
        self.guidance = guidance
        self.decoder = decoder
        self.log: list[Evaluation] = []
        self._modules = modules_of(guidance.reward, decoder)
        self._generator = torch.Generator().manual_seed(guidance.seed)
        self._forget()

    def _forget(self) -> None:
        self._average: Tensor | None = None  # moving average of the unit gradient, like the latent
        self._position = 0.0  # log(sigma / alpha) at the last gradient
        self._drift: Tensor | None = None  # all pushes so far, in x / alpha, like the latent
        self._scores: Tensor | None = None  # (N,) at the last gradient
        self._finite: Tensor | None = None  # (N,) whether the last gradient was
        self._in_window = 0  # evaluations inside the window so far

    def stored(self) -> dict[str, Any]:
        """All but the log, for a run that goes on elsewhere: tensors (N, ...) on the CPU, numbers and bytes."""
        tensors = {name: getattr(self, name) for name in _PER_SAMPLE}
        stored = {name: None if value is None else value.to("cpu", copy=True) for name, value in tensors.items()}
        generator = bytes(self._generator.get_state().tolist())
        return stored | {"_position": self._position, "_in_window": self._in_window, "generator": generator}

    def put_back(self, stored: dict[str, Any], device: torch.device) -> None:
        """Go on with what another run has `stored`, with all or some of its samples."""
        for name in _PER_SAMPLE:
            setattr(self, name, None if stored[name] is None else stored[name].to(device, copy=True))
        self._position, self._in_window = stored["_position"], stored["_in_window"]
        self._generator.set_state(torch.tensor(list(stored["generator"]), dtype=torch.uint8))

    @property
    def fired(self) -> bool:
        """Whether any evaluation has been changed."""
        return any(entry.skipped is None for entry in self.log)

    def __call__(self, denoised: Tensor, *, noise_level: float, next_noise_level: float) -> Tensor:
        """Guide one evaluation of a sampler that makes one first-order step per evaluation.

        Args:
            denoised: (N, ...) the model's prediction of the clean latent, any floating dtype.
            noise_level: where the model was evaluated, sigma / (alpha + sigma).
            next_noise_level: where the sampler goes next.

        Returns:
            The guided prediction, float32; or `denoised` itself, the very same object, where nothing is to be done.

        Raises:
            ValueError: where reward, decoder and latent do not fit together (see `reward_gradient`).
        """
        ratio, end = ratio_of(noise_level), ratio_of(next_noise_level)
        stage = Stage(ratio, ratio, end)
        push = None if self.skips(stage) else self.push(denoised, stage)
        if push is None:
            return denoised
        return denoised.float() + push / (1.0 if math.isinf(ratio) else 1.0 - end / ratio)

    def skips(self, stage: Stage) -> bool:
        """Whether nothing is to be done at this stage of the sampler; if so, says why in the log."""
        reason = self._reason_to_skip(stage)
        if reason is not None:
            self.log.append(replace(self._entry(stage), skipped=reason))
        return reason is not None

    def push(
        self, denoised: Tensor, stage: Stage, pull_back: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor | None:
        """How far the latent is to be moved at a stage that `skips` has let through.

        Args:
            denoised: (N, ...) the model's prediction of the clean latent, any floating dtype.
            stage: where the evaluation stands in the sampler's step.
            pull_back: for gradient="full": gradient with respect to `denoised` -> with respect to the noisy latent.

        Returns:
            Like `denoised`, float32: what is to be added to the prediction and, times alpha, to the noisy latent (its
            noise stays); None for nothing.
        """
        if self._drift is not None and self._drift.shape != denoised.shape:
            self._forget()  # the sampler has changed the size of its latents
        gradient = self._update(denoised, stage.ratio, pull_back)
        share = stage.share_of(self.guidance.noise_window)
        before = self._drift if self._drift is not None else torch.zeros_like(denoised, dtype=torch.float32)
        self._drift = self._tether(before + self._direction() * (self.guidance.scale * share))
        entry = replace(self._entry(stage), weight=share, score_before=_tuple(self._scores))
        return self._record(entry, self._drift - before, gradient)

    def _entry(self, stage: Stage) -> Evaluation:
        return Evaluation(len(self.log), noise_level_of(stage.ratio), noise_level_of(stage.end))

    def _reason_to_skip(self, stage: Stage) -> str | None:
        if self.guidance.scale == 0:
            return "the scale is 0"
        return "outside the noise window" if stage.share_of(self.guidance.noise_window) == 0 else None

    def _update(self, denoised: Tensor, ratio: float, pull_back: Callable[[Tensor], Tensor] | None) -> Tensor | None:
        """Take a new gradient into the moving average, at each `every`-th call; returns it."""
        settings = self.guidance
        self._in_window += 1
        if (self._in_window - 1) % settings.every:
            return None
        views = draw_views(
            denoised,
            samples=settings.samples,
            noise=settings.noise,
            crop=settings.crop,
            shift=settings.shift,
            generator=self._generator,
        )
        self._scores, gradient = reward_gradient(
            settings.reward, self.decoder, denoised, views=views, modules=self._modules, chunk=settings.chunk
        )
        self._finite = gradient.flatten(1).isfinite().all(1)
        unit = self._unit(gradient)
        if settings.gradient == "full":
            pulled = _required(pull_back)(unit)
            self._finite = self._finite & pulled.flatten(1).isfinite().all(1)
            unit = self._unit(pulled)
        self._average = self._blend(unit, ratio)
        return gradient

    def _unit(self, gradient: Tensor) -> Tensor:
        return unit_rms(torch.where(_per_sample(self._finite, gradient), gradient, 0.0))

    def _blend(self, unit: Tensor, ratio: float) -> Tensor:
        position = math.log(min(ratio, ratio_of(self.guidance.noise_window[0])))
        passed, self._position = self._position - position, position
        if self._average is None or self.guidance.ema == 0:
            return unit
        keep = 0.5 ** (max(passed, 0.0) / self.guidance.ema)
        blended = keep * self._average + (1 - keep) * unit
        return torch.where(_per_sample(self._finite, unit), blended, self._average)

    def _direction(self) -> Tensor:
        """What to push along, at most RMS 1 per sample: clipped, faded towards the target, 0 for bad samples."""
        settings = self.guidance
        direction = unit_rms(self._average).clamp(-settings.clip, settings.clip)
        strength = self._finite.float()
        if settings.target is not None:
            fade = ((settings.target - self._scores) / settings.target_width).clamp(0, 1)
            strength = torch.where(self._finite, fade, 0.0)
        return direction * _per_sample(strength, direction)

    def _tether(self, drift: Tensor) -> Tensor:
        if self.guidance.max_drift is None:
            return drift
        shrink = (self.guidance.max_drift / rms(drift).clamp_min(1e-12)).clamp(max=1.0)
        return drift * _per_sample(shrink, drift)

    def _record(self, entry: Evaluation, change: Tensor, gradient: Tensor | None) -> Tensor | None:
        bad = tuple(index for index, fine in enumerate(self._finite.tolist()) if not fine)
        if bad and not any(earlier.bad_samples for earlier in self.log):
            logger.warning(
                "The reward's gradient is not finite for samples %s at noise level %.3f; they are not pushed there.",
                bad,
                entry.noise_level,
            )
        entry = replace(entry, bad_samples=bad, change=_tuple(rms(change)), drift=_tuple(rms(self._drift)))
        if gradient is not None:
            gain = torch.nan_to_num(gradient * change, 0.0, 0.0, 0.0).flatten(1).sum(1)
            entry = replace(entry, score_after=_tuple(self._scores + gain))
        if not any(entry.change):
            reason = "the gradient is not finite" if len(bad) == len(change) else "the push is 0"
            self.log.append(replace(entry, skipped=reason))
            return None
        self.log.append(entry)
        return change


def _required(pull_back: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    if pull_back is None:
        raise ValueError(
            "gradient='full' goes back through the diffusion model, which only guided() of diffusers does."
        )
    return pull_back


def unit_rms(tensor: Tensor) -> Tensor:
    """Each sample of (N, ...) scaled to root mean square 1; a sample that is 0 everywhere stays so."""
    largest = tensor.flatten(1).abs().amax(1)
    tensor = tensor / _per_sample(largest.clamp_min(torch.finfo(tensor.dtype).tiny), tensor)  # squares must not vanish
    return tensor / _per_sample(rms(tensor).clamp_min(1e-12), tensor)


def rms(tensor: Tensor) -> Tensor:
    """Root mean square of each sample of (N, ...); (N,)."""
    return tensor.flatten(1).square().mean(1).sqrt()


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _tuple(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
