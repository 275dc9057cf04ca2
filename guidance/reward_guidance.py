"""Reward guidance: push the denoised prediction uphill in a reward while a diffusion model samples. Host-free."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..rewards import Reward
from .augmentation import draw_augmentations
from .check_settings import check_settings
from .direction import all_finite, fade, moving_average, per_sample, rms, unit_rms, within_trust_region, zero_unless
from .evaluation import Evaluation
from .freeze import modules_of
from .gradient import Decoder, reward_gradient
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
    """Augmentations (noise, shift, crop) over which one gradient is averaged."""

    noise: float = 0.05
    """Standard deviation of the noise of an augmentation, in latent units."""

    shift: int = 0
    """Up to how many pixels an augmentation shifts the picture, against patterns tied to the reward's pixel grid."""

    crop: int | None = None
    """Side, in latent cells, of the random square that is decoded (saves time and memory); None for everything."""

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
    """Seed of the augmentations; the sampler's own randomness is never touched."""

    def __post_init__(self) -> None:
        check_settings(self)

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
        decoder = self.decoder if decoder is None else decoder
        if decoder is None and self.scale != 0:
            raise ValueError("guidance has no decoder; give it one: RewardGuidance(reward, decoder=...).")
        state = RunState(torch.Generator().manual_seed(self.seed))
        return GuidanceRun(self, decoder, state, modules_of(self.reward, decoder))


@dataclass
class RunState:
    """What a guided run carries from one evaluation to the next. Tensors have one row a sample."""

    generator: torch.Generator
    """Draws the augmentations."""
    average: Tensor | None = None
    """(N, ...) moving average of the unit gradient."""
    position: float = 0.0
    """log(sigma / alpha) at the last gradient."""
    drift: Tensor | None = None
    """(N, ...) all pushes so far, in units of the clean latent."""
    scores: Tensor | None = None
    """(N,) at the last gradient."""
    finite: Tensor | None = None
    """(N,) whether score and gradient were finite there."""
    evaluations: int = 0
    """Evaluations inside the window so far."""

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a run that goes on elsewhere: tensors (N, ...) on the CPU, numbers and text."""
        values = {name: value for name, value in vars(self).items() if name != "generator"}
        copies = {n: v.to("cpu", copy=True) if isinstance(v, Tensor) else v for n, v in values.items()}
        return copies | {"generator": bytes(self.generator.get_state().tolist()).hex()}  # no tensor: it has no samples

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with the `state_dict` of another run, with all or some of its samples."""
        for name, value in state.items():
            if name != "generator":
                setattr(self, name, value.to(device, copy=True) if isinstance(value, Tensor) else value)
        self.generator.set_state(torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8))

    def forget(self) -> None:
        """Let go of all tensors, as at the beginning of a run; the generator goes on."""
        self.average = self.drift = self.scores = self.finite = None
        self.position, self.evaluations = 0.0, 0


@dataclass
class GuidanceRun:
    """The guidance of one batch from noise to picture: settings, state and log. Made by `RewardGuidance.start`."""

    guidance: RewardGuidance
    decoder: Decoder | None
    state: RunState
    modules: list[nn.Module]
    """The networks inside reward and decoder."""
    log: list[Evaluation] = field(default_factory=list)

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
        reason = None
        if self.guidance.scale == 0:
            reason = "the scale is 0"
        elif stage.share_of(self.guidance.noise_window) == 0:
            reason = "outside the noise window"
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
        settings, state, gradient = self.guidance, self.state, None
        if state.drift is not None and state.drift.shape != denoised.shape:
            state.forget()  # the sampler has changed the size of its latents
        if state.evaluations % settings.every == 0:
            # augment and differentiate
            state.scores, gradient = self._gradient(denoised)
            # normalise
            state.finite = state.scores.isfinite() & all_finite(gradient)
            unit = unit_rms(zero_unless(state.finite, gradient))
            if settings.gradient == "full":
                pulled = _required(pull_back)(unit)
                state.finite = state.finite & all_finite(pulled)
                unit = unit_rms(zero_unless(state.finite, pulled))
            # average
            position = math.log(min(stage.ratio, ratio_of(settings.noise_window[0])))
            if state.average is not None:
                blended = moving_average(state.average, unit, state.position - position, settings.ema)
                unit = torch.where(per_sample(state.finite, unit), blended, state.average)
            state.average, state.position = unit, position
        state.evaluations += 1
        # clip, and scale by the share of the window
        direction = unit_rms(state.average).clamp(-settings.clip, settings.clip)
        strength = zero_unless(state.finite, fade(state.scores, settings.target, settings.target_width))
        share = stage.share_of(settings.noise_window)
        # trust region
        before = torch.zeros_like(denoised, dtype=torch.float32) if state.drift is None else state.drift
        wanted = before + direction * per_sample(strength, direction) * (settings.scale * share)
        state.drift = within_trust_region(wanted, settings.max_drift)
        return self._logged(replace(self._entry(stage), weight=share), state.drift - before, gradient)

    def _gradient(self, denoised: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.guidance
        augmentations = draw_augmentations(
            denoised,
            self.state.generator,
            samples=settings.samples,
            noise=settings.noise,
            crop=settings.crop,
            shift=settings.shift,
        )
        return reward_gradient(
            settings.reward,
            self.decoder,
            denoised,
            augmentations=augmentations,
            modules=self.modules,
            chunk=settings.chunk,
        )

    def _entry(self, stage: Stage) -> Evaluation:
        return Evaluation(len(self.log), noise_level_of(stage.ratio), noise_level_of(stage.end))

    def _logged(self, entry: Evaluation, change: Tensor, gradient: Tensor | None) -> Tensor | None:
        """Write the change down; None for a change that is 0 everywhere."""
        scores = self.state.scores
        bad = tuple(index for index, fine in enumerate(self.state.finite.tolist()) if not fine)
        if bad and not any(earlier.bad_samples for earlier in self.log):
            logger.warning(
                "Reward or gradient of samples %s are not finite at noise level %.3f; they are not pushed there.",
                bad,
                entry.noise_level,
            )
        drift = tuple(rms(self.state.drift).tolist())
        change_size = tuple(rms(change).tolist())
        entry = replace(entry, score_before=tuple(scores.tolist()), bad_samples=bad, change=change_size, drift=drift)
        if gradient is not None:
            gain = torch.nan_to_num(gradient * change, 0.0, 0.0, 0.0).flatten(1).sum(1)
            entry = replace(entry, score_after=tuple((scores + gain).tolist()))
        if not any(change_size):
            reason = "the reward or its gradient is not finite" if len(bad) == len(change) else "the push is 0"
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
