"""Scoring a picture by pairs of opposite prompts: what QualiCLIP and CLIP-IQA share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from .checks import check_pictures, working_dtype
from .clip_config import ClipConfig
from .describe import Description
from .hub import HubModel, bad_config
from .raw_scale import raw_units

CALIBRATION = ("margin_mean", "margin_std")
MAX_PAIRS = 256
"""Pairs of prompts that a file may bring."""
MAX_ALPHA = 1e6
"""CLIP's training holds the scale to 100."""


class AntonymScore(nn.Module, HubModel):
    """A CLIP vision tower read through P pairs of prompts, (positive, negative).

    With x the picture's feature and t the prompts' features, all of length one, the logit of pair j is

        l_j = alpha / temperature * (x . t_j+ - x . t_j-)

    and its score, the probability that the picture is the positive one, is p_j = sigmoid(l_j).

    The tower runs in its own dtype; everything after it in float32 (float64 for float64), and the buffers here stay in
    float32 when the model is cast to a half precision, where alpha and the prompts' features would lose digits.
    `pairs`, which a sub-class sets, names the columns of `scores`.

    Args:
        visual: a vision tower of `clip_towers`.
        prompts_features: (2 P, E), positive and negative in turn, of any length.
        alpha: scale of the cosines, 100 in OpenAI's CLIP.
        temperature: divides the logits; larger is softer.

    Raises:
        ValueError: the temperature is not positive.
    """

    pairs: tuple[tuple[str, str], ...]
    """The P pairs (positive, negative)."""

    def __init__(self, visual: nn.Module, prompts_features: Tensor, alpha: float, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number.")
        self.visual = visual
        self.temperature = float(temperature)
        self.register_buffer("prompts_features", prompts_features.float())
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("margin_mean", torch.tensor(0.0))
        self.register_buffer("margin_std", torch.tensor(1.0))
        self.register_buffer("pixel_mean", torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Mean probability of the positive prompts.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any floating dtype, sides of at least 32 px; not resized.

        Returns:
            (N,) in [0, 1], higher is better; float32 (float64 for a float64 model). Differentiable.

        Raises:
            TypeError: no floating-point tensor.
            ValueError: wrong shape, or too small.
        """
        return self.scores(images).mean(1)

    def scores(self, images: Tensor) -> Tensor:
        """Probability of the positive prompt of each pair: images as in `forward` -> (N, P)."""
        return self.logits(images).sigmoid()

    def logits(self, images: Tensor, prompts_features: Tensor | None = None) -> Tensor:
        """Logit of each pair, unsaturated: images as in `forward`, other prompts (2 P, E) if wanted -> (N, P)."""
        features = self.features(images)
        prompts = self.prompts_features if prompts_features is None else prompts_features
        prompts = F.normalize(prompts.to(features.dtype), dim=-1)
        opposites = prompts[0::2] - prompts[1::2]
        # Not a matrix product: autocast would run that in half precision.
        cosines = (features[:, None] * opposites).sum(-1)
        return self.alpha.to(features.dtype) / self.temperature * cosines

    def features(self, images: Tensor) -> Tensor:
        """The pictures' features, of length one: images as in `forward` -> (N, E) in float32 or better."""
        check_pictures(images)
        pixels = (images.to(working_dtype(images.dtype)) - self.pixel_mean) / self.pixel_std
        features = self.visual(pixels.to(self.visual.conv1.weight.dtype))
        return F.normalize(features.to(working_dtype(features.dtype)), dim=-1)

    def similarities(self, images: Tensor) -> Tensor:
        """Cosine with each prompt, positive and negative in turn: images as in `forward` -> (N, 2 P)."""
        features = self.features(images)
        prompts = F.normalize(self.prompts_features.to(features.dtype), dim=-1)
        return (features[:, None] * prompts).sum(-1)

    def describe(self, image: Tensor) -> Description:
        """What the model sees in one picture, pair by pair.

        Args:
            image: (1, 3, H, W) or (3, H, W), as in `forward`.

        Returns:
            The score, and `pairs`: the probability of the positive prompt, [0, 1], under both prompts of each pair.

        Raises:
            ValueError: as `forward`, or more than one picture.
        """
        image = image if image.ndim == 4 else image[None]
        if len(image) != 1:
            raise ValueError(f"got {len(image)} pictures; expected one: model.describe(images[0]).")
        names = [f"{positive} / {negative}" for positive, negative in self.pairs]
        values = self.scores(image)[0].tolist()
        return Description(sum(values) / len(values), {"pairs": dict(zip(names, values, strict=True))})

    def margin(self, images: Tensor) -> Tensor:
        """What guidance differentiates: the mean logit over the pairs, in units of its spread over clean photographs.

        (mean_j l_j - margin_mean) / margin_std, with two buffers that `calibrate_margin` sets. Until then they are 0
        and 1, so the unit is one logit: about the spread that CLIP-IQA's logits have on photographs of mixed quality,
        but not a measured figure, and zero is where both prompts fit equally well.

        Args:
            images: as in `forward`.

        Returns:
            (N,) float32 (float64 for a float64 model); the same order as the score for one pair. Differentiable.
        """
        return (self.logits(images).mean(1) - self.margin_mean) / self.margin_std

    def saved_tensors(self) -> dict[str, Tensor]:
        """All in full precision: a fine-tuning at the published rate moves them by less than half precision tells."""
        return self.state_dict()

    def saved_config(self) -> dict[str, Any]:
        """Sizes of the tower, temperature and pairs."""
        sizes = dataclasses.asdict(self.visual.config)
        return {"clip": sizes, "temperature": self.temperature, "pairs": self.pairs}

    def training_score(self, images: Tensor) -> Tensor:
        """What training works on, (N,) in raw units (models/raw_scale.py); images as in `forward`.

        The score by the line that touches the sigmoid at 0, which never saturates.
        """
        return raw_units(100 * (0.5 + self.logits(images).mean(1) / 4))

    def activation_stages(self) -> list[nn.Module]:
        """The parts whose activations take most memory in training, from the picture on."""
        return [self.visual.get_submodule(f"layer{n}") for n in range(1, 5)]

    def allow_second_order(self) -> None:
        """Everything here can be differentiated twice."""

    @torch.no_grad()
    def calibrate_margin(self, batches: Iterable[Tensor]) -> None:
        """Measure the mean and the spread of the margin over clean photographs and keep them as buffers.

        They hold for the temperature in use and are saved with the state dict.

        Args:
            batches: images as in `forward`, at the size at which the model will be used; two or more in all.

        Raises:
            ValueError: there are fewer than two pictures, or all have the same margin.
        """
        raw = torch.cat([self.logits(images).mean(1) for images in batches])
        if len(raw) < 2 or not raw.std() > 0:
            raise ValueError(f"got {len(raw)} pictures without spread; expected two or more different photographs.")
        self.margin_mean.copy_(raw.mean())
        self.margin_std.copy_(raw.std())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Cast and move; buffers of this class (not of the tower) are moved, but not rounded to half precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            if moved.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before[name].to(moved.device)
        return self


def read_settings(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What `AntonymScore.save` has written beside the tensors, checked.

    Args:
        config: of the file; empty for a file that others have written.
        source: what messages call the file.

    Returns:
        `clip` (a ClipConfig), `temperature` and `pairs`, or nothing.

    Raises:
        WeightsError: a value is missing, unknown or out of range.
    """
    if not config:
        return {}
    try:
        sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in config["clip"].items()}
        clip, temperature = ClipConfig(**sizes), float(config["temperature"])
        pairs = tuple((positive, negative) for positive, negative in config["pairs"])
        if not (0 < temperature < math.inf and 1 <= len(pairs) <= MAX_PAIRS):
            raise ValueError(f"temperature is {temperature} and there are {len(pairs)} pairs")
        if not all(isinstance(prompt, str) for pair in pairs for prompt in pair):
            raise ValueError("pairs are no texts")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise bad_config(source, error) from error
    return {"clip": clip, "temperature": temperature, "pairs": pairs}


def check_features(features: Tensor, pairs: int, embed_dim: int, source: object) -> Tensor:
    """The features of a file's prompts, which must be of the shape (2 pairs, embed_dim)."""
    expected = (2 * pairs, embed_dim)
    if tuple(features.shape) != expected:
        raise WeightsError(f"{source} has prompts_features of shape {tuple(features.shape)}; expected {expected}.")
    return features


def read_alpha(rest: Mapping[str, Tensor], source: object) -> float:
    """The scale of the cosines: exp(logit_scale) of a CLIP checkpoint, or the alpha of a file of ours."""
    if not rest.keys() & {"alpha", "logit_scale"}:
        raise WeightsError(f"{source} has no logit_scale; expected a CLIP checkpoint.")
    alpha = float(rest["alpha"] if "alpha" in rest else rest["logit_scale"].double().exp())
    if not 0 < alpha < MAX_ALPHA:
        raise WeightsError(f"{source} scales its cosines by {alpha:g}; expected about 100: it is damaged.")
    return alpha


def check_rest(rest: Mapping[str, Any], source: object) -> None:
    """Refuse names that neither CLIP nor a state dict of ours has."""
    unknown = sorted(rest.keys() - {"logit_scale", "alpha", "prompts_features", *CALIBRATION})
    if unknown:
        raise WeightsError(f"{source} has {len(unknown)} tensors that are not expected (first: {unknown[0]}).")


def load_calibration(model: AntonymScore, rest: Mapping[str, Tensor], temperature: float | None = None) -> None:
    """Take over the margin's mean and spread where the file has them.

    Args:
        model: whose temperature and alpha the logits will have.
        rest: tensors of the file.
        temperature: that of the file, at which they were measured; None for the model's.
    """
    alpha = float(rest.get("alpha", model.alpha))
    change = float(model.alpha) / alpha * (temperature or model.temperature) / model.temperature  # of all logits
    for name in CALIBRATION:
        if name in rest:
            getattr(model, name).copy_(rest[name] * change)
