"""The value of an IQ_MODEL link, and scoring with it under ComfyUI's own memory management."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..images import WorkingSize, over_white, resize_short_side
from ..rerank import equal_sized, mean_rank, score_finite
from ..rewards import FullReference, Resize, Reward

logger = logging.getLogger(__name__)

IQ_MODEL = io.Custom("IQ_MODEL")
BYTES_PER_PIXEL = 2000
"""What scoring without a gradient needs at most, per pixel of a batch; RN50 in float32."""


@dataclass(frozen=True)
class QualityModel:
    """A reward and the networks that ComfyUI has to load for it."""

    name: str
    """For people."""

    reward: Any = None
    """Images (N, 3, H, W) in [0, 1] -> (N,); with `full_reference` (images, reference) -> (N,). None with `members`."""

    patchers: tuple[ModelPatcher, ...] = ()
    """Of every network inside the reward."""

    full_reference: bool = False
    """Whether a picture to compare with is needed."""

    size: WorkingSize = field(default_factory=WorkingSize)
    """Between which short sides, in pixels, pictures are scored."""

    members: tuple["QualityModel", ...] = ()
    """Models whose ranks are averaged; such a model has no reward of its own and no gradient."""

    @property
    def patcher(self) -> ModelPatcher:
        """The first network; ComfyUI's cache looks for this name."""
        return self.get_models()[0]

    def get_models(self) -> list[ModelPatcher]:
        """All networks; ComfyUI looks for this name, too."""
        return [*self.patchers, *(patcher for member in self.members for patcher in member.get_models())]

    def reward_for(self, reference: Tensor | None = None) -> Reward:
        """The reward of pictures (N, 3, H, W), compared with a reference (1, H, W, C) where the model needs one.

        Raises:
            ValueError: a reference is missing or too many, or the model only ranks.
        """
        if self.members:
            raise ValueError(f"{self.name} averages ranks, which have no gradient; combine by weighted sum to guide.")
        if not self.full_reference:
            return self._resized(self.reward)
        if reference is None or len(reference) != 1:
            raise ValueError(f"{self.name} compares with a picture; connect one picture to the input reference.")
        picture = resize_short_side(to_pictures(reference), self.size)
        return self._resized(FullReference(self.reward, picture))

    def _resized(self, reward: Reward) -> Reward:
        return Resize(reward, self.size)


def to_pictures(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE (N, H, W, C), about [0, 1] -> (N, 3, H, W) float32 in [0, 1], over white; NaN stays NaN."""
    return over_white(images.movedim(-1, 1).float().clamp(0, 1))


def score_images(
    model: QualityModel,
    images: Tensor | Sequence[Tensor],
    *,
    batch_size: int = 8,
    reference: Tensor | None = None,
    shows_progress: bool = True,
) -> Tensor:
    """Score ComfyUI's IMAGE in chunks of one size.

    Args:
        model: of an IQ_MODEL link.
        images: (N, H, W, C) in [0, 1], or a sequence of N pictures (H, W, C) of any sizes.
        batch_size: of a chunk.
        reference: (1, H, W, C), for models that compare with one.
        shows_progress: on the node; not where it has a bar of its own.

    Returns:
        (N,) float32 on the CPU; higher is better. NaN where the picture or its score is not finite, which the log says.

    Raises:
        ValueError: there is no picture, no picture has a score, or the model needs a reference.
    """
    if len(images) == 0:
        raise ValueError("got a batch of no pictures; expected one or more; check the node that made it.")
    if model.members:
        options = {"batch_size": batch_size, "reference": reference, "shows_progress": shows_progress}
        return mean_rank(*(score_images(member, images, **options) for member in model.members))
    reward = model.reward_for(reference)
    pixels = max(image.shape[0] * image.shape[1] for image in images) * min(batch_size, len(images))
    comfy.model_management.load_models_gpu(
        model.get_models(), memory_required=pixels * BYTES_PER_PIXEL, force_full_load=True
    )
    device = comfy.model_management.get_torch_device()
    bar = comfy.utils.ProgressBar(len(images)) if shows_progress else None
    scores = []
    for chunk in equal_sized((image[None] for image in images), batch_size):
        comfy.model_management.throw_exception_if_processing_interrupted()
        scores.append(score_finite(to_pictures(torch.cat(chunk).to(device)), reward))
        if bar is not None:
            bar.update(len(chunk))
    return _checked(torch.cat(scores), images, model.name)


def _checked(scores: Tensor, images: Sequence[Tensor], name: str) -> Tensor:
    """The scores, NaN for those that are not finite; the log says how many."""
    finite = scores.isfinite()
    if finite.all():
        return scores
    without = (~finite).nonzero().flatten().tolist()
    broken = sum(not images[index].isfinite().all() for index in without)
    reasons = f"{broken} hold NaN or infinite values (check the node that made them), of {len(without) - broken}"
    reasons += f" the score by {name} is not a finite number (try precision float32)"
    if not finite.any():
        raise ValueError(f"no picture of {len(scores)} has a score: {reasons}.")
    logger.warning("%d of %d pictures have no score: %s.", len(without), len(scores), reasons)
    return scores.where(finite, torch.nan)


def explain(model: QualityModel, image: Tensor) -> dict[str, dict[str, float]]:
    """What a model can say of one picture (H, W, C) beyond the score; empty for most. The model must be loaded."""
    describe = getattr(model.reward, "describe", None)
    if describe is None or model.full_reference:
        return {}
    picture = resize_short_side(to_pictures(image[None].to(comfy.model_management.get_torch_device())), model.size)
    with torch.no_grad():
        return describe(picture).parts
