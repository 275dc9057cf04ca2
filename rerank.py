"""Score many pictures with one reward and put the best first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import check_images, load_images, to_tensor
from .rewards import Reward, device_of

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Dropped:
    """A candidate that was not finished."""

    seed: int
    share: float
    """Of its evaluations that had been made, in (0, 1)."""
    score: float
    """Of its denoised prediction there."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates, their scores, and what is needed to make each of them again."""

    images: Tensor | Sequence[Picture]
    """The candidates in the order they came: (N, 3, H, W), or a sequence of N pictures or paths."""
    scores: Tensor
    """(N,) float32 on the CPU, in the order of `images`; higher is better."""
    order: Tensor
    """(N,) int64: the indices of `images`, best first; equal scores keep the order they came in."""
    seeds: tuple[int, ...] | None = None
    """The seed of each candidate, where it was generated."""
    latents: Tensor | None = None
    """(N, ...) the initial noise of each candidate, where it was generated."""
    settings: Mapping[str, Any] | None = None
    """The arguments with which the candidates were generated."""
    dropped: tuple[Dropped, ...] = ()
    """Candidates that were dropped on the way, in the order in which they went."""
    from_latents: bool = False
    """Whether they were made from `latents`, and `seeds` seed only the noise that the sampler adds on the way."""
    log: tuple[Any, ...] = ()
    """What a search wrote down on its way; see there."""
    log_weights: Tensor | None = None
    """(N,) float64: for samples of a distribution (`fk_steering`), the logarithm of what each of them stands for."""
    lineages: tuple[tuple[tuple[float, int], ...], ...] | None = None
    """For samples that were resampled: pairs (share of the steps, seed of the noise from there on) of each of them."""
    nfe: int | None = None
    """Rows that went through the denoiser for all candidates together; with classifier-free guidance a step is two."""

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


def rank(images: Tensor | Sequence[Picture], reward: Reward, *, batch_size: int = 8) -> Ranking:
    """Score pictures and sort them; no gradient is kept.

    Args:
        images: (N, 3, H, W) in [0, 1] on the reward's device, or a sequence of paths, PIL pictures, arrays (H, W, C) or
            tensors (1, 3, H, W), of any sizes. Paths are read one batch at a time.
        reward: images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better.
        batch_size: how many pictures of equal size are scored at once; memory and speed only.

    Returns:
        The `Ranking`; its `images` are the object that was given.

    Raises:
        ImageError: a picture cannot be read or has a wrong shape or range.
        ValueError: there is nothing to rank, or a score is NaN or not one number per picture.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if len(images) == 0:
        raise ValueError("got no images; expected at least one to rank.")
    if isinstance(images, Tensor):
        check_images(images)
        batches: Iterable[Tensor] = images.split(batch_size)
    else:
        batches = (torch.cat(batch) for batch in equal_sized(map(_one, images), batch_size))
    device = device_of(reward)
    scores = torch.cat([score_batch(batch if device is None else batch.to(device), reward) for batch in batches])
    return Ranking(images, scores, best_first(scores))


def best_first(scores: Tensor) -> Tensor:
    """Indices (N,) int64 that sort `scores` (N,) from high to low; equal scores keep their order.

    Raises:
        ValueError: a score is NaN.
    """
    bad = scores.isnan().nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the score of image {bad[0]} is NaN ({len(bad)} of {len(scores)} are); check the reward.")
    return scores.sort(descending=True, stable=True).indices.cpu()


def mean_rank(*scores: Tensor) -> Tensor:
    """Ensemble of rewards that share no scale: the mean of their rank positions, for reranking (no gradient).

    Args:
        scores: for each reward the scores (N,) of the same N candidates.

    Returns:
        (N,) float32 in [0, 1], on the CPU: 1 for a candidate that every reward puts first; equal scores share
        the mean of their positions.

    Raises:
        ValueError: nothing given, or the lengths differ.
    """
    if not scores or any(s.shape != scores[0].shape or s.ndim != 1 for s in scores):
        shapes = [tuple(s.shape) for s in scores]
        raise ValueError(f"scores have shapes {shapes}; expected one (N,) per reward, of one length.")
    total = torch.zeros(len(scores[0]))
    for s in (s.detach().cpu() for s in scores):
        below = (s[:, None] > s[None, :]).sum(1)
        level = (s[:, None] == s[None, :]).sum(1) - 1
        total += (below + level / 2) / max(len(s) - 1, 1)
    return total / len(scores)


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


def _one(image: Picture) -> Tensor:
    converted = load_images(image) if isinstance(image, (str, os.PathLike)) else to_tensor(image)
    if len(converted) != 1:
        raise ValueError(f"one entry of the sequence holds {len(converted)} images; expected 1: give one tensor.")
    return converted
