"""Best of N in ComfyUI: many candidates begin, the worse half is dropped at some steps, the others are finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from tqdm.auto import tqdm

from ..rerank import best_first
from .comfy_resume import PartialSampler, Recording, samples_alone
from .halving import position_of, survivors
from .result import NO_SCORE, Dropped, check_some_left, dropped_failures

_CACHES = ("easycache", "lazycache")


@dataclass(frozen=True)
class Sampling:
    """The settings of ComfyUI's KSampler, without the seed."""

    model: ModelPatcher
    positive: Any
    negative: Any
    latent: dict[str, Any]
    """A LATENT of one sample: empty, or a picture to start from, perhaps with a noise mask."""
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0


@dataclass(frozen=True)
class Finished:
    """The candidates that were not dropped, in the order of their seeds, and the others."""

    seeds: list[int]
    latents: Tensor
    """(N, ...) as KSampler gives them."""
    dropped: list[Dropped]


def best_of_n(
    sampling: Sampling,
    seeds: Sequence[int],
    score: Callable[[Tensor], Tensor],
    *,
    keep: int = 1,
    shares: Sequence[float] = (),
    batch_size: int = 0,
) -> Finished:
    """Sample candidates, of which the worse half is dropped at some steps.

    A candidate is what KSampler makes of its seed in a batch of one, up to rounding in other batch sizes; with any
    sampler, scheduler and guidance. ComfyUI loads and frees models before each chunk as for any sampling.

    Args:
        sampling: settings.
        seeds: of the candidates, all different.
        score: latents (N, ...) as KSampler gives them, here predictions of the finished ones -> scores (N,). Candidates
            whose score is not finite are dropped.
        keep: the fewest that are finished, if there are as many.
        shares: of the steps after which the worse half is dropped, rising in (0, 1).
        batch_size: candidates sampled at once; 0 for as many as fit into memory. Always 1 where `samples_alone`.

    Raises:
        ValueError: the latents are not those of one picture or video; the MODEL keeps a cache from step to step; no
            candidate can be used.
    """
    latent = _checked(sampling, shares)
    steps = comfy.samplers.KSampler(
        sampling.model,
        sampling.steps,
        sampling.model.load_device,
        sampling.sampler,
        sampling.scheduler,
        sampling.denoise,
        sampling.model.model_options,
    )
    alone = samples_alone(sampling.sampler, sampling.latent.get("noise_mask") is not None)
    size = 1 if alone else batch_size or fitting(sampling, latent, len(seeds))
    run = _Run(sampling, latent, steps.sigmas, size, alone or size == 1, seeds[0])
    places = [position_of(share, len(steps.sigmas) - 1) for share in shares]
    numbers = survivors(len(seeds), keep, len(places))
    alive, dropped = [Recording(seed) for seed in seeds], []
    with _Progress(sampling.model, _work(len(steps.sigmas) - 1, places, numbers)) as progress:
        scores, scored_at = torch.empty(0), -1
        for share, place, number in zip(shares, places, numbers[1:], strict=True):
            if number >= len(alive):
                continue
            if place != scored_at:  # with few steps two shares may fall on one of them
                scores, scored_at = score(run.all(alive, float(steps.sigmas[place]), progress)), place
            kept, gone = _halve([recording.seed for recording in alive], scores, share, number)
            dropped += gone
            check_some_left(len(kept), dropped)
            alive, scores = [alive[index] for index in kept], scores[kept]
        latents = run.all(alive, None, progress)
        progress.finish()
    return Finished([recording.seed for recording in alive], latents, dropped)


def _halve(seeds: Sequence[int], scores: Tensor, share: float, number: int) -> tuple[list[int], list[Dropped]]:
    """The indices of the `number` best candidates, or of all that can be used if they are fewer; and the others."""
    failures = [None if finite else NO_SCORE for finite in scores.isfinite().tolist()]
    lost = dropped_failures(seeds, share, failures)
    if len(lost) == len(seeds):
        return [], lost
    order = best_first(scores).tolist()[: len(seeds) - len(lost)]
    worse = [Dropped(seeds[index], share, float(scores[index])) for index in order[number:]]
    return sorted(order[:number]), [*worse, *lost]


def fitting(sampling: Sampling, latent: Tensor, most: int) -> int:
    """How many candidates ComfyUI can sample at once with all weights loaded, by its own estimate; at least 1."""
    model, device = sampling.model, sampling.model.load_device
    conds = {
        name: comfy.sampler_helpers.convert_cond(each)
        for name, each in (("positive", sampling.positive), ("negative", sampling.negative))
    }
    one, _ = comfy.sampler_helpers.estimate_memory(model, latent.shape, conds)
    management = comfy.model_management
    # the list keeps entries of models that nobody holds any more
    here = (each for each in management.current_loaded_models if each.model is not None and each.device == device)
    loaded = sum(each.model_loaded_memory() for each in here)
    weights = sum(each.model_size() for each in (model, *model.get_nested_additional_models()))
    free = management.get_free_memory(device) + loaded - weights - management.extra_reserved_memory()
    return max(1, min(most, int(free // one)))


def _checked(sampling: Sampling, shares: Sequence[float]) -> Tensor:
    """The latents to start from, (1, ...)."""
    samples = sampling.latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError("these latents pack sound and pictures; connect latents of a picture or video.")
    if len(samples) != 1:
        raise ValueError(f"got {len(samples)} latents; expected one (batch_size 1), from which all candidates start.")
    cached = [name for name in _CACHES if name in sampling.model.model_options.get("transformer_options", {})]
    if cached and shares:
        raise ValueError(
            f"this MODEL keeps a cache from step to step ({cached[0]}), which cannot follow candidates that are"
            " dropped; take it off, or drop none."
        )
    ratios = [sampling.latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal")]
    return comfy.sample.fix_empty_latent_channels(sampling.model, samples, *ratios)


def _work(steps: int, places: Sequence[int], numbers: Sequence[int]) -> int:
    """Steps of all candidates together."""
    ends = [*places, steps]
    return sum(n * (end - start) for n, start, end in zip(numbers, [0, *places], ends, strict=True))


@dataclass(frozen=True)
class _Run:
    """Samples candidates in chunks, from one checkpoint to the next."""

    sampling: Sampling
    latent: Tensor
    sigmas: Tensor
    size: int
    alone: bool
    seed: int
    """For what is drawn for a whole batch: the noise on a picture in the prompt, for example."""

    def all(self, recordings: Sequence[Recording], stop: float | None, progress: "_Progress") -> Tensor:
        """The predictions at the sigma `stop`, or the finished latents, in VAE units."""
        chunks = [recordings[i : i + self.size] for i in range(0, len(recordings), self.size)]
        return torch.cat([self._chunk(chunk, stop, progress) for chunk in chunks])

    def _chunk(self, recordings: Sequence[Recording], stop: float | None, progress: "_Progress") -> Tensor:
        settings = self.sampling
        numbers = settings.latent.get("batch_index")
        noise = [comfy.sample.prepare_noise(self.latent, recording.seed, numbers) for recording in recordings]
        sampler = PartialSampler(settings.sampler, recordings, stop, self.alone)
        samples = comfy.sample.sample_custom(
            settings.model,
            torch.cat(noise),
            settings.cfg,
            sampler,
            self.sigmas,
            settings.positive,
            settings.negative,
            comfy.utils.repeat_to_batch_size(self.latent, len(recordings)),
            noise_mask=settings.latent.get("noise_mask"),
            callback=progress.callback(recordings),
            disable_pbar=True,
            seed=recordings[0].seed if self.alone else self.seed,
        )
        if sampler.stopped is (stop is None):
            raise ValueError(
                f"{settings.sampler} has ended before it reached sigma {stop}; expected a denser schedule."
            )
        return samples


class _Progress:
    """A bar on the node, with a preview, and one on stderr: the steps of all candidates together."""

    def __init__(self, model: ModelPatcher, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)
        self._line = tqdm(total=total, desc="best of n", disable=not comfy.utils.PROGRESS_BAR_ENABLED or None)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.close()

    def finish(self) -> None:
        """All is done, also where candidates that could not be used have saved steps."""
        self._bar.update_absolute(self._bar.total)

    def callback(self, recordings: Sequence[Recording]) -> Callable[..., None]:
        """For the sampler of some candidates; steps that they have made before do not count."""

        def after_step(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            if step < recordings[0].steps:
                return
            for recording in recordings:
                recording.steps = step + 1
            preview = None
            if self._previewer is not None:
                preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised)
            self._bar.update_absolute(self._bar.current + len(recordings), preview=preview)
            self._line.update(len(recordings))

        return after_step
