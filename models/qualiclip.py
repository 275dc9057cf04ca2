"""QualiCLIP: CLIP fine-tuned to rank degradations, read through seven antonym pairs.

Source:
    Agnolucci, Galteri, Bertini (2024), "Quality-Aware Image-Text Alignment for Opinion-Unaware Image Quality
    Assessment", https://arxiv.org/abs/2403.11176. Written from the formulas. The two public versions differ: the
    authors' hub model has alpha = 100 and temperature 1, the one in pyiqa exp(logit_scale) and temperature 2. The
    second is the default here; the first is the preset "hub".
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import WeightsError
from .antonyms import AntonymScore, check_features, check_rest, load_calibration, read_alpha, read_settings
from .clip import encode_prompts, split_checkpoint, with_activation
from .clip_config import RN50, ClipConfig
from .clip_towers import random_vision_tower, vision_tower
from .hub import check_spreads, read_saved
from .seed import fixed_seed
from .weights import load_strict

PAIRS = (
    ("Good photo.", "Bad photo."),
    ("Sharp image.", "Blurry image."),
    ("Sharp edges.", "Blurry edges."),
    ("High-resolution image.", "Low-resolution image."),
    ("Noise-free image.", "Noisy image."),
    ("High-quality image.", "Low-quality image."),
    ("Good picture.", "Bad picture."),
)
PROMPTS = tuple(prompt for pair in PAIRS for prompt in pair)
ALPHA = 100.0  # exp(logit_scale) of OpenAI's CLIP, which the training of QualiCLIP leaves alone
PRESETS = {"paper": (2.0, None), "hub": (1.0, ALPHA)}  # temperature; alpha, where it is not the checkpoint's


class QualiCLIP(AntonymScore):
    """QualiCLIP: score = mean over 7 pairs of sigmoid(alpha / temperature * (cos+ - cos-)). See `AntonymScore`."""

    pairs = PAIRS

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        preset: str = "paper",
        temperature: float | None = None,
        quick_gelu: bool | None = None,
        config: ClipConfig = RN50,
    ) -> QualiCLIP:
        """Read a file; arguments and errors as `build`, see `HubModel.load` for the rest."""
        default, alpha = PRESETS[preset]
        tensors, values = read_saved(path, cls.__name__)
        saved = read_settings(values, path)
        if saved.get("pairs", PAIRS) != PAIRS:
            raise WeightsError(f"{path} has other pairs than QualiCLIP; use create_model('clipiqa', weights=PATH).")
        config = saved.get("clip", config)
        if temperature is None:
            temperature = saved.get("temperature", default) if preset == "paper" else default
        state = split_checkpoint(tensors, config, path)
        check_rest(state.rest, path)
        features = state.rest.get("prompts_features")
        if features is None:
            if not state.text:
                raise WeightsError(f"{path} has neither prompts_features nor a text tower to make them with.")
            features = encode_prompts(PROMPTS, state.text, with_activation(config, Path(path), quick_gelu), path)
        check_features(features, len(PAIRS), config.embed_dim, path)
        with fixed_seed(0):
            tower = vision_tower(config)
        load_strict(tower, state.picture, path)
        if alpha is None:
            bare = not state.text and not state.rest.keys() & {"alpha", "logit_scale"}
            alpha = ALPHA if bare else read_alpha(state.rest, path)
        model = cls(tower, features, alpha, temperature)
        load_calibration(model, state.rest, saved.get("temperature"))
        check_spreads(model, path)
        return model


def build(
    weights: Path | None,
    *,
    preset: str = "paper",
    temperature: float | None = None,
    quick_gelu: bool | None = None,
    seed: int = 0,
    config: ClipConfig = RN50,
) -> QualiCLIP:
    """Make a QualiCLIP on the CPU in float32.

    Args:
        weights: a file with the published layout (`prompts_features` and 489 tensors `clip_model.*`), the same without
            the text tower (and perhaps without `logit_scale`: alpha is then 100), a file of `save_model`, or a plain
            CLIP checkpoint, whose text tower then encodes the prompts; None for random weights.
        preset: "paper" (temperature 2, alpha of the checkpoint) or "hub" (temperature 1, alpha 100).
        temperature: in place of the preset's.
        quick_gelu: whether the text tower of a plain CLIP was trained with QuickGELU; None for what is told beside the
            file, else True, as in OpenAI's (`clip.with_activation`).
        seed: of the random weights.
        config: sizes of the towers.

    Raises:
        ValueError: unknown preset, or a temperature that is not positive.
        WeightsError: the file cannot be read or has another layout.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.")
    if weights is not None:
        return QualiCLIP.load(weights, preset=preset, temperature=temperature, quick_gelu=quick_gelu, config=config)
    default, alpha = PRESETS[preset]
    with fixed_seed(seed):
        tower, features = random_vision_tower(config), torch.randn(len(PROMPTS), config.embed_dim)
    return QualiCLIP(tower, features, alpha or ALPHA, default if temperature is None else temperature)
