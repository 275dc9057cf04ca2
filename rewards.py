"""Rewards: what they are, and how to combine, resize and crop them. Everything here keeps the gradient.

A reward is any callable: images (N, 3, H, W) RGB in [0, 1] -> (N,) scores, higher is better, differentiable. It may
have a `margin` of the same signature: the same order as the score, but unsaturated, in units of its spread over clean
photographs. Guidance differentiates the margin where there is one, so every wrapper here has both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .images import resize_short_side


@runtime_checkable
class Reward(Protocol):
    """Anything that scores pictures: a quality model, a wrapper of this module, or a plain function."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> scores (N,), higher is better."""
        ...


def margin_of(reward: Reward) -> Reward:
    """What guidance differentiates: `reward.margin` where there is one, else the reward itself."""
    return getattr(reward, "margin", reward)


def device_of(reward: object) -> torch.device | None:
    """Where the weights of a reward are: of a module, of a module's method, or of what a wrapper of this file wraps.

    Returns:
        The device; None for a plain function, which takes images where they are.
    """
    if isinstance(reward, nn.Module):
        return next((tensor.device for tensor in (*reward.parameters(), *reward.buffers())), None)
    inner = [held for held in (getattr(reward, "__self__", None), *getattr(reward, "inner", ())) if held is not None]
    return next((device for device in map(device_of, inner) if device is not None), None)


class WeightedSum:
    """Sum of rewards times weights: of scores when called, of margins for guidance.

    Margins are in units of each reward's spread over clean photographs, so there the weights mean what they say.

    Args:
        terms: pairs (reward, weight); a negative weight turns a reward into a penalty.

    Raises:
        ValueError: no pair is given, or something that is no pair of a reward and a number.

    Example:
        >>> bright = WeightedSum((lambda x: x.mean((1, 2, 3)), 2.0), (lambda x: x.amax((1, 2, 3)), -0.5))
        >>> bright(torch.ones(1, 3, 8, 8))
        tensor([1.5000])
    """

    def __init__(self, *terms: tuple[Reward, float]) -> None:
        for term in terms or ((),):
            if not (isinstance(term, (tuple, list)) and len(term) == 2 and callable(term[0])):
                raise ValueError(f"got {term!r}; expected pairs: WeightedSum((reward, 1.0), (other, 0.5)).")
        self.terms = terms
        self.inner = tuple(reward for reward, _ in terms)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> weighted sum of the scores (N,)."""
        return sum(weight * reward(images) for reward, weight in self.terms)

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> weighted sum of the margins (N,)."""
        return sum(weight * margin_of(reward)(images) for reward, weight in self.terms)


@dataclass(frozen=True)
class Resize:
    """Show pictures to a reward at one short side (antialiased bicubic, differentiable)."""

    reward: Reward
    short_side: int
    """Pixels."""
    enlarge: bool = True
    """False leaves smaller pictures as they are."""

    @property
    def inner(self) -> tuple[Reward]:
        """What is wrapped."""
        return (self.reward,)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> scores (N,) of the resized pictures."""
        return self.reward(resize_short_side(images, self.short_side, enlarge=self.enlarge))

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> margins (N,) of the resized pictures."""
        return margin_of(self.reward)(resize_short_side(images, self.short_side, enlarge=self.enlarge))


@dataclass(frozen=True)
class Crops:
    """Mean of a reward over square crops at random places, the same places for every picture of a batch.

    Averaging over crops smooths a reward whose gradient is noisy, and bounds the memory on large pictures.
    """

    reward: Reward
    size: int
    """Side of a crop, pixels; pictures must be at least as large."""
    count: int = 4
    """Crops per picture; the cost grows with it."""
    seed: int | torch.Generator = 0
    """A number: the same places in every call, so a picture keeps its score. A CPU generator: new places each time."""

    @property
    def inner(self) -> tuple[Reward]:
        """What is wrapped."""
        return (self.reward,)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> mean score (N,) over the crops."""
        return self._mean(self.reward, images)

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> mean margin (N,) over the crops."""
        return self._mean(margin_of(self.reward), images)

    def _mean(self, reward: Reward, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(f"images are {width}x{height} pixels; expected at least the crop size, {self.size}.")
        generator = self.seed if isinstance(self.seed, torch.Generator) else torch.Generator().manual_seed(self.seed)
        tops = torch.randint(height - self.size + 1, (self.count,), generator=generator).tolist()
        lefts = torch.randint(width - self.size + 1, (self.count,), generator=generator).tolist()
        crops = [images[..., y : y + self.size, x : x + self.size] for y, x in zip(tops, lefts, strict=True)]
        return reward(torch.cat(crops)).unflatten(0, (self.count, len(images))).mean(0)


class FullReference:
    """A full-reference model as a reward: how close to a given picture, for img2img, inpainting and upscaling.

    Args:
        model: (images, references), both (N, 3, H, W) in [0, 1] -> scores (N,), higher is better; may have a `margin`.
        reference: (1, 3, H, W), compared with every picture, or (N, 3, H, W), compared one to one.

    Raises:
        ValueError: the reference is no (N, 3, H, W) tensor; in a call, if pictures and reference differ in shape.
    """

    def __init__(self, model, reference: Tensor) -> None:
        if reference.ndim != 4 or reference.shape[1] != 3:
            shape = tuple(reference.shape)
            raise ValueError(f"reference has shape {shape}; expected (N, 3, H, W). One picture: reference[None].")
        self.model = model
        self.inner = (model,)
        self.reference = reference

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> scores (N,) against the reference."""
        return self.model(images, self._matching(images))

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> margins (N,) against the reference."""
        return margin_of(self.model)(images, self._matching(images))

    def _matching(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.reference.shape[1:] or len(self.reference) not in (1, len(images)):
            raise ValueError(
                f"images have shape {tuple(images.shape)} and the reference {tuple(self.reference.shape)}; expected "
                "equal sizes and one reference, or one per image: resize or crop one of them."
            )
        return self.reference.to(images).expand_as(images)
