"""Score many pictures with one reward and put the best first."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import WorkingSize, check_images, load_images, to_tensor
from .rewards import Resize, Reward, at_working_size, device_of, working_size

logger = logging.getLogger(__name__)

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates and their scores, best first."""

    images: Tensor | Sequence[Picture]
    """The candidates in the order they came: (N, 3, H, W), or a sequence of N pictures or paths."""
    scores: Tensor
    """(N,) float32 on the CPU, in the order of `images`; higher is better, not finite where there is no score."""
    order: Tensor
    """(N,) int64: the indices of `images`, best first; equal scores keep the order they came in."""
    size: WorkingSize | None = None
    """Between which sizes the pictures were scored, where `rank` scored them."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def best(self) -> Picture:
        """The best candidate: (3, H, W) if `images` is a tensor, else the picture or path as it came."""
        return self.images[int(self.order[0])]

    def top(self, k: int) -> Tensor | list[Picture]:
        """The `k` best candidates (all of them if there are fewer), best first: (k, 3, H, W) or a list.

        Raises:
            ValueError: `k` is not positive.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1.")
        if isinstance(self.images, Tensor):
            return self.images[self.order[:k].to(self.images.device)]
        return [self.images[i] for i in self.order[:k].tolist()]


def rank(
    images: Tensor | Sequence[Picture],
    reward: Reward,
    *,
    batch_size: int = 8,
    size: int | Literal["model"] | None = "model",
) -> Ranking:
    """Score pictures and sort them; no gradient is kept.

    A picture that has no finite score (its values or its score are NaN or infinite) is ranked last, and the log says
    how many there are and which; its score is NaN or what the reward returned.

    Args:
        images: (N, 3, H, W) in [0, 1] on the reward's device, or a sequence of paths, PIL pictures, arrays (H, W, C) or
            tensors (1, 3, H, W), of any sizes. Paths are read one batch at a time.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better.
        batch_size: how many pictures of equal size are scored at once; memory and speed only.
        size: "model": every quality model in the reward sees pictures at its working size, see `working_size`, as with
            the command line and the nodes. Or the short side in px to which larger pictures are reduced; None scores
            them as they are.

    Returns:
        The `Ranking`; its `images` are the object that was given.

    Raises:
        ImageError: a picture cannot be read or has a wrong shape or range.
        ValueError: there is nothing to rank, no picture has a finite score, or the reward does not return one number
            per picture.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if len(images) == 0:
        raise ValueError("got no images; expected at least one to rank.")
    limits = working_size(reward) if size == "model" else WorkingSize(most=size)
    reward = at_working_size(reward) if size == "model" else Resize(reward, limits)
    if isinstance(images, Tensor):
        if images.ndim != 4:
            check_images(images)
        batches: Iterable[Tensor] = images.split(batch_size)
    else:
        batches = (torch.cat(batch) for batch in equal_sized((_one(image, limits) for image in images), batch_size))
    scores = torch.cat([score_finite(batch, reward) for batch in batches])
    order = best_first(scores)
    without = (~scores.isfinite()).nonzero().flatten().tolist()
    if without:
        logger.warning(
            "%d of %d images have no finite score and are ranked last: %s.", len(without), len(scores), without
        )
    return Ranking(images, scores, order, limits)


def score_finite(images: Tensor, reward: Reward) -> Tensor:
    """Scores (N,) float32 on the CPU, without gradient, of the images whose values are finite; NaN for the others.

    Args:
        images: (N, 3, H, W) in [0, 1], any device; those that are scored are moved to the reward's.
        reward: images (N, 3, H, W) -> scores (N,), higher is better.

    Raises:
        ImageError: wrong shape, dtype or range.
        ValueError: the reward does not return one number per picture.
    """
    finite = images.isfinite().flatten(1).all(1) if images.ndim == 4 else torch.ones(len(images), dtype=torch.bool)
    scores = torch.full((len(images),), math.nan)
    if not finite.any():
        return scores
    finite_images = images if finite.all() else images[finite]
    check_images(finite_images)
    device = device_of(reward)
    scores[finite.cpu()] = score_batch(finite_images if device is None else finite_images.to(device), reward)
    return scores


def best_first(scores: Tensor) -> Tensor:
    """Indices (N,) int64 that sort `scores` (N,) from high to low; equal scores keep their order.

    Scores that are not finite come last.

    Raises:
        ValueError: no score is finite.
    """
    finite = scores.isfinite()
    if not finite.any():
        raise ValueError(
            f"no score of {len(scores)} is a finite number; expected one at least: check the pictures for NaN, then the"
            " reward."
        )
    return scores.where(finite, -math.inf).sort(descending=True, stable=True).indices.cpu()


def mean_rank(*scores: Tensor) -> Tensor:
    """Ensemble of rewards that share no scale: the mean of their rank positions, for reranking (no gradient).

    Args:
        scores: for each reward the scores (N,) of the same N candidates.

    Returns:
        (N,) float32 in [0, 1], on the CPU: 1 for a candidate that every reward puts first; equal scores share
        the mean of their positions. NaN for a candidate to which a reward gives no finite score.

    Raises:
        ValueError: nothing given, or the lengths differ.
    """
    if not scores or any(s.shape != scores[0].shape or s.ndim != 1 for s in scores):
        shapes = [tuple(s.shape) for s in scores]
        raise ValueError(f"scores have shapes {shapes}; expected one (N,) per reward, of one length.")
    table = torch.stack([each.detach().cpu().double() for each in scores])  # (rewards, N)
    finite = table.isfinite().all(0)
    ranked = table[:, finite]
    below = (ranked[:, :, None] > ranked[:, None, :]).sum(2)
    level = (ranked[:, :, None] == ranked[:, None, :]).sum(2) - 1
    mean = torch.full((len(scores[0]),), math.nan)
    mean[finite] = ((below + level / 2) / max(int(finite.sum()) - 1, 1)).mean(0)
    return mean


def score_batch(images: Tensor, reward: Reward) -> Tensor:
    """`reward(images)` without gradient, as (N,) float32 on the CPU.

    Raises:
        ValueError: the reward does not return one number per picture.
    """
    with torch.no_grad():
        scores = reward(images)
    if scores.shape != (len(images),):
        raise ValueError(
            f"the reward returned shape {tuple(scores.shape)}; expected ({len(images)},), a score per image."
        )
    return scores.float().cpu()


def equal_sized(images: Iterable[Tensor], batch_size: int, max_pixels: float = float("inf")) -> Iterator[list[Tensor]]:
    """Group consecutive (1, 3, H, W) tensors of one shape into lists of at most `batch_size`.

    Only neighbours are grouped: so the order stays, and no more than one batch and one image are held in memory.

    Args:
        images: in the order in which they are wanted.
        batch_size: the longest list.
        max_pixels: the most pixels (N * H * W) in a list of more than one.
    """
    batch: list[Tensor] = []
    for image in images:
        full = len(batch) == batch_size or (len(batch) + 1) * image[0, 0].numel() > max_pixels
        if batch and (full or image.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _one(image: Picture, size: WorkingSize) -> Tensor:
    if isinstance(image, (str, os.PathLike)):
        converted = load_images(image, size=size)
    elif isinstance(image, Tensor) and not image.isfinite().all():
        converted = to_tensor(image.nan_to_num(0.0, 0.0, 0.0)) * math.nan  # ranked last, not refused
    elif isinstance(image, np.ndarray) and image.dtype.kind == "f" and not np.isfinite(image).all():
        converted = to_tensor(np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)) * math.nan
    else:
        converted = to_tensor(image, size=size)
    if len(converted) != 1:
        raise ValueError(f"one entry of the sequence holds {len(converted)} images; expected 1: give one tensor.")
    return converted
