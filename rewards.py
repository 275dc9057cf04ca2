"""Rewards: what they are, and how to combine, resize and crop them. Everything here keeps the gradient.

A reward is any callable: images (N, 3, H, W) RGB in [0, 1] -> (N,) scores, higher is better, differentiable. It may
have a `margin` of the same signature: the same order as the score, but unsaturated, in units of its spread over clean
photographs. Guidance differentiates the margin where there is one, so every wrapper here has both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .images import WorkingSize, resize_short_side

logger = logging.getLogger(__name__)


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


def working_size(reward: object) -> WorkingSize:
    """The size at which a quality model, or what a wrapper of this file wraps, scores pictures; no limits for others.

    Of several models the widest limits, in which each finds pictures of its own size; see `at_working_size`.
    """
    spec = getattr(reward, "spec", None)
    if spec is not None:
        return WorkingSize(spec.least_size, spec.native_size)
    if isinstance(reward, Resize):  # somebody has said what the model shall see
        return WorkingSize()
    sizes = [working_size(held) for held in (getattr(reward, "__self__", None), *getattr(reward, "inner", ())) if held]
    if not sizes:
        return WorkingSize()
    if len(sizes) == 1:
        return sizes[0]
    most = [size.most for size in sizes]
    return WorkingSize(None, None if None in most else max(most))


def at_working_size(reward: Reward) -> Reward:
    """The reward as it is to be asked of pictures of any size: each model in it sees them at its own working size."""
    if isinstance(reward, WeightedSum):
        return WeightedSum(*((at_working_size(inner), weight) for inner, weight in reward.terms))
    if isinstance(reward, Ensemble):
        return Ensemble([at_working_size(inner) for inner in reward.inner], reward.penalty)
    size = working_size(reward)
    if size == WorkingSize():
        return reward
    if isinstance(reward, FullReference):
        reward = FullReference(reward.model, resize_short_side(reward.reference, size))
    return Resize(reward, size)


class WeightedSum:
    """Sum of rewards times weights: of scores when called, of margins for guidance.

    Margins are in units of each reward's spread over clean photographs, so there the weights mean what they say.

    Args:
        terms: pairs (reward, weight); a negative weight turns a reward into a penalty.

    Raises:
        ValueError: no pair is given, something that is no pair of a reward and a number, or no weight that counts.

    Example:
        >>> bright = WeightedSum((lambda x: x.mean((1, 2, 3)), 2.0), (lambda x: x.amax((1, 2, 3)), -0.5))
        >>> bright(torch.ones(1, 3, 8, 8))
        tensor([1.5000])
    """

    def __init__(self, *terms: tuple[Reward, float]) -> None:
        for term in terms or ((),):
            pair = isinstance(term, (tuple, list)) and len(term) == 2
            if not (pair and callable(term[0]) and isinstance(term[1], (int, float))):
                raise ValueError(f"got {term!r}; expected pairs: WeightedSum((reward, 1.0), (other, 0.5)).")
        weights = [weight for _, weight in terms]
        if not all(map(math.isfinite, weights)) or not any(weights):
            raise ValueError(f"got the weights {weights}; expected finite numbers, at least one of them not 0.")
        self.terms = terms
        self.inner = tuple(reward for reward, _ in terms)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> weighted sum of the scores (N,)."""
        return sum(weight * reward(images) for reward, weight in self.terms)

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> weighted sum of the margins (N,)."""
        return sum(weight * margin_of(reward)(images) for reward, weight in self.terms)


class Ensemble:
    """Several models as one careful one: the mean of what they say less `penalty` standard deviations of it.

    A picture that one model likes and another does not is the one that fooled the first. Of scores when called, of
    margins for guidance, which are on one scale: that of each model's spread over clean photographs (`calibrate_margin`
    measures it for a model whose file has none). With two models the standard deviation is half their distance, so a
    penalty of 1 gives the lower of the two.

    Args:
        models: two rewards or more.
        penalty: standard deviations, over the models, that are taken off; 0 is the plain mean.

    Raises:
        ValueError: fewer than two rewards, something that is none, or a penalty that is no finite number of 0 or more.

    Example:
        >>> low = Ensemble([lambda x: x.mean((1, 2, 3)), lambda x: x.amax((1, 2, 3))])
        >>> low(torch.tensor([0.0, 1.0]).expand(1, 3, 4, 2))
        tensor([0.5000])
    """

    PENALTY = 1.0

    def __init__(self, models: Sequence[Reward], penalty: float = PENALTY) -> None:
        self.inner = tuple(models)
        if len(self.inner) < 2 or not all(map(callable, self.inner)):
            raise ValueError(f"got {list(self.inner)}; expected two rewards or more: Ensemble([reward, other]).")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty is {penalty}; expected a finite number of 0 or more.")
        self.penalty = penalty

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> mean of the scores less the penalty for disagreement (N,)."""
        return self._careful([reward(images) for reward in self.inner])

    def margin(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> mean of the margins less the penalty for disagreement (N,)."""
        return self._careful([margin_of(reward)(images) for reward in self.inner])

    def _careful(self, values: list[Tensor]) -> Tensor:
        variance, mean = torch.var_mean(torch.stack(values), 0, correction=0)
        # where all agree the root has no slope of its own, and the mean's is what is wanted
        return mean - self.penalty * torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)


class Attributes:
    """What a model says of single attributes, weighted: sharper, less noisy, more colourful. For guidance and choice.

    Names are those the model knows: for CLIP-IQA and QualiCLIP its pairs of prompts, for BPCLIP its adjectives and
    dimensions. A pair goes by "positive / negative" or by either word; the negative one turns it round. A dimension
    counts towards its positive words, so more of "noise" is cleaner. A value is the logit of a pair for CLIP-IQA and
    QualiCLIP; for BPCLIP half the difference of both cosines, mean over the levels.

    Args:
        model: with `pairs` and `logits` (CLIP-IQA, QualiCLIP), or with `config.pairs` and `similarities` (BPCLIP
            without a reference).
        weights: name -> weight; below 0 for less of it. The result is divided by the sum of their sizes.

    Raises:
        ValueError: the model has no attributes, a name is not among them, no weight is given, or one is not finite.

    Example:
        >>> words = (("Sharp photo.", "Blurry photo."), ("Colorful photo.", "Dull photo."))
        >>> clip = create_model("clipiqa", pairs=words)  # doctest: +SKIP
        >>> reward = Attributes(clip, {"Sharp photo.": 1.0, "Dull photo.": 0.5})  # doctest: +SKIP
        >>> guidance = RewardGuidance(reward, target=2.0)  # up to two logits, no further  # doctest: +SKIP
    """

    def __init__(self, model, weights: Mapping[str, float]) -> None:
        signs = _attributes_of(model)
        unknown = [name for name in weights if name not in signs]
        total = sum(abs(weight) for weight in weights.values())
        if unknown or not 0 < total < math.inf:
            raise ValueError(
                f"got the weights {dict(weights)}; expected finite numbers, at least one that is not 0, for names among"
                f" {', '.join(sorted(signs))}."
            )
        if not hasattr(model, "logits") and model.config.text_source == "random":
            logger.warning("The adjectives of this model are random directions: they do not mean what their names say.")
        self.model = model
        self.inner = (model,)
        shares = sum(torch.tensor(signs[name]) * (weight / total) for name, weight in weights.items())
        self._weights = tuple(shares.tolist())  # no tensor: one made under inference_mode could not be differentiated

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> weighted mean of the attributes (N,); unbounded, so also the margin."""
        if hasattr(self.model, "logits"):
            values = self.model.logits(images)
        else:
            cosines = self.model.similarities(images).mean(1)
            values = (cosines[:, 0::2] - cosines[:, 1::2]) / 2
        return values @ torch.tensor(self._weights, dtype=values.dtype, device=values.device)


def _attributes_of(model: object) -> dict[str, list[float]]:
    """Name -> factor of each pair of the model."""
    if hasattr(model, "logits"):
        pairs = [(None, *pair) for pair in model.pairs]
    elif hasattr(model, "similarities") and not model.config.full_reference:
        pairs = list(model.config.pairs)
    else:
        raise ValueError(
            f"a {type(model).__name__} has no attributes; expected clipiqa, qualiclip or bpclip (without a reference)."
        )
    signs: dict[str, list[float]] = {}
    words = [word for _, *both in pairs for word in both]
    for index, (_, positive, negative) in enumerate(pairs):
        row = [float(other == index) for other in range(len(pairs))]
        names = {f"{positive} / {negative}": row, positive: row, negative: [-value for value in row]}
        signs |= {
            name: signs for name, signs in names.items() if words.count(name) < 2
        }  # a word of two pairs is no name
    for dimension in {pair[0] for pair in pairs} - {None}:
        members = [float(pair[0] == dimension) for pair in pairs]
        signs[dimension] = [value / sum(members) for value in members]
    return signs


@dataclass(frozen=True)
class Resize:
    """Show pictures to a reward at one short side, or between two (antialiased bicubic, differentiable)."""

    reward: Reward
    short_side: int | WorkingSize
    """Pixels, or the limits."""
    enlarge: bool = True
    """False leaves pictures as they are that are smaller than a `short_side` in pixels."""

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
