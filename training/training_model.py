"""The quality models as the training loop sees them: one scale for all, what learns, and how a result is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.bpclip_config import FULL, FULL_REFERENCE, MINI, BPCLIPConfig
from ..models.clip_config import ClipConfig
from ..models.create import create_model
from . import calibrate
from .config import FinetuneConfig
from .parts import Parts, uses_clean

NEVER_USED = ("visual.attnpool.positional_embedding",)  # part of CLIP's layout, not of what we compute


class Trainable(Protocol):
    """What a quality model implements to be trained by the common loop; nn.Module's methods come with it."""

    def training_score(self, images: Tensor, *reference: Tensor) -> Tensor:
        """What training works on: pictures (N, 3, H, W) in [0, 1] -> (N,) in raw units (models/raw_scale.py)."""

    def activation_stages(self) -> list[nn.Module]:
        """The parts whose activations take most memory, from the picture on."""

    def allow_second_order(self) -> None:
        """Compute everything in ways that can be differentiated twice."""

    def calibrate_margin(self, batches: Iterable[Tensor]) -> None:
        """Give the margin mean 0 and spread 1 over clean photographs, in place."""


class TrainingModel(nn.Module):
    """A model's raw score as the forward pass, so that wrappers for mixed precision and several processes see it.

    The raw score has no bounds and the same units for every model, those of `tiny`: a clean photograph is near 0, a
    ruined one near -4.5, and a normalised MOS o in [0, 1] is (100 o - 75) / 14.

    Args:
        model: as `create_model` makes it.
        full_reference: whether it compares pictures with a reference.
    """

    def __init__(self, model: Trainable, full_reference: bool = False) -> None:
        super().__init__()
        self.model, self.full_reference = model, full_reference

    def forward(self, images: Tensor, reference: Tensor | None = None, what: str = "raw") -> Tensor:
        """Score pictures.

        Args:
            images: (N, 3, H, W) in [0, 1].
            reference: the undistorted pictures, (N, 3, H, W); models without a reference do not look at it.
            what: "raw"; "exact", the same in full precision under autocast too; or "prompts", the mean similarity to
                the positive and to the negative prompts.

        Returns:
            (N,) float32; (N, 2) for "prompts".
        """
        if what == "prompts":
            return self.model.similarities(images).unflatten(1, (-1, 2)).mean(1).float()
        pictures = (images, reference) if self.full_reference else (images,)
        pictures = [picture.contiguous(memory_format=torch.channels_last) for picture in pictures]
        if what == "raw":
            return self.model.training_score(*pictures)
        with torch.autocast(images.device.type, enabled=False):
            return self.model.training_score(*pictures)


def make(config: FinetuneConfig) -> TrainingModel:
    """The model that a run starts from, in evaluation mode, with everything to be learnt asking for gradients.

    Evaluation mode throughout: batches of ladders, scored crops and predictions differ so much from each other that a
    model trained on each batch's own statistics is another one than the one used with the running statistics.

    Raises:
        ValueError: a bad option, or a frozen name that no parameter has.
        WeightsError: the file to start from is missing or damaged.
    """
    options = dict(config.options)
    if config.init is None:
        options.setdefault("seed", config.seed)
    seed = options.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed in options is {seed!r}; expected a whole number from 0 to 2^63 - 1.")
    try:
        if "config" in options:
            options["config"] = _sizes(config.model, options["config"])
        model = create_model(config.model, weights=str(config.init or "random"), **options)
    except TypeError as error:  # an option that the model does not have, or a value of the wrong type
        raise ValueError(f"the options {config.options} cannot be used: {error}") from error
    names = [name for name, _ in model.named_parameters()]
    for start in (*config.freeze, *config.lr_factors):
        if not any(name.startswith(start) for name in names):
            raise ValueError(f"no parameter of {config.model} begins with {start!r}; the first is {names[0]!r}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith((*config.freeze, *NEVER_USED)))
    if config.second_order:
        model.allow_second_order()
    return TrainingModel(model.to(memory_format=torch.channels_last), config.full_reference)


def _sizes(name: str, sizes: dict[str, Any]) -> ClipConfig | BPCLIPConfig:
    """The sizes in a config file as the model wants them."""
    base = {"qualiclip": ClipConfig(), "bpclip": FULL, "bpclip-fr": FULL_REFERENCE, "bpclip-mini": MINI}.get(name)
    if not isinstance(sizes, dict):
        raise ValueError(f"config in options is {sizes!r}; expected sizes by their names.")
    known = [] if base is None else [item.name for item in dataclasses.fields(base)]
    unknown = [key for key in sizes if key not in known]
    if unknown:
        raise ValueError(f"{name} has no size {unknown[0]!r}; expected some of: {', '.join(known) or 'none'}.")
    return dataclasses.replace(base, **{key: tuple(v) if isinstance(v, list) else v for key, v in sizes.items()})


def groups(training_model: TrainingModel, config: FinetuneConfig) -> list[dict[str, Any]]:
    """What the optimiser gets: the learning parameters by the factor of their learning rate."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in training_model.model.named_parameters():
        if parameter.requires_grad:
            matching = [start for start in config.lr_factors if name.startswith(start)]
            factor = float(config.lr_factors[max(matching, key=len)]) if matching else 1.0
            by_factor.setdefault(factor, []).append(parameter)
    if not by_factor:
        raise ValueError("every parameter is frozen; leave something to learn.")
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]


def checkpoint_activations(training_model: TrainingModel) -> None:
    """Let the stages of the network compute their activations again in the backward pass instead of keeping them."""
    for stage in training_model.model.activation_stages():
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)


def finish(model: nn.Module, config: FinetuneConfig, parts: Parts) -> None:
    """Put a trained model on its scales, in place: the margin's on held-out clean crops, `tiny`'s score's on MOS.

    Without clean photographs the margin keeps the scale that it has. So does that of a full-reference model: clean
    photographs, each its own reference, say nothing of its spread.
    """
    if uses_clean(config) and not config.full_reference:
        crops = calibrate.held_out_crops(parts.clean_held_out, config.crop, config.seed)
        model.calibrate_margin(crops.to(model.margin_mean.device).split(32))
    if config.fits_score:
        calibrate.fit_score(model, parts.learnt)
