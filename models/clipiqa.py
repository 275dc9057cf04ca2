"""CLIP-IQA, zero-shot: OpenAI's CLIP asked whether a photograph is good or bad, or any other pair of opposites.

Source:
    Wang, Chan, Loy (2023), "Exploring CLIP for Assessing the Look and Feel of Images", AAAI,
    https://arxiv.org/abs/2207.12396, eqs. 1-3 and section 3.1 (no positional embedding). Written from the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from ..errors import WeightsError
from .antonyms import AntonymScore, check_rest, load_calibration, read_alpha
from .clip import (
    RN50,
    ClipConfig,
    ClipState,
    encode_prompts,
    fixed_seed,
    picture_tower,
    random_picture_tower,
    read_saved,
    take_apart,
)
from .weights import load_strict, read_weights

PAIRS = (("Good photo.", "Bad photo."),)


class ClipIQA(AntonymScore):
    """CLIP-IQA: one score per pair from `scores(images)`, (N, P); their mean from the call. See `AntonymScore`.

    Args:
        visual: the picture tower.
        prompts_features: (2 P, E), positive and negative in turn.
        alpha: scale of the cosines.
        temperature: divides the logits; 1 in the paper.
        pairs: the P pairs (positive, negative), which name the columns of `scores`.
    """

    def __init__(
        self,
        visual: ModifiedResNet,
        prompts_features: Tensor,
        alpha: float,
        temperature: float = 1.0,
        pairs: tuple[tuple[str, str], ...] = PAIRS,
    ) -> None:
        super().__init__(visual, prompts_features, alpha, temperature)
        self.pairs = pairs


def build(
    weights: Path | None,
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
    temperature: float | None = None,
    seed: int = 0,
    config: ClipConfig = RN50,
) -> ClipIQA:
    """Make a CLIP-IQA on the CPU in float32.

    Args:
        weights: a CLIP checkpoint with both towers, in open_clip's or OpenAI's layout (489 tensors; a QualiCLIP file
            will do), or a file of `save_model`, which brings its pairs and its temperature; None for random weights.
        pairs: (positive, negative) prompts; None for those of the file, else for `PAIRS`.
        temperature: divides the logits; None for that of the file, else for 1. The margin keeps its units.
        seed: of the random weights, which stand for the prompts too.
        config: sizes of the towers.

    Raises:
        ValueError: `pairs` is not one or more pairs of texts, or others than the file brings, a prompt is too long, or
            the temperature is not positive.
        WeightsError: the file cannot be read or has another layout.
    """
    asked = {} if pairs is None else {"pairs": _check_pairs(pairs)}
    asked |= {} if temperature is None else {"temperature": temperature}
    pairs, temperature = asked.get("pairs", PAIRS), asked.get("temperature", 1.0)
    prompts = [prompt for pair in pairs for prompt in pair]
    if weights is None:
        with fixed_seed(seed):
            tower, features = random_picture_tower(config), torch.randn(len(prompts), config.embed_dim)
        return ClipIQA(tower, features, 100.0, temperature, pairs)

    tensors, metadata = read_weights(weights)
    saved = read_saved(metadata, weights)
    state = take_apart(tensors, saved.get("clip", config), weights)
    check_rest(state.rest, weights)
    if saved:
        if asked.get("pairs", saved["pairs"]) != saved["pairs"]:
            raise ValueError(
                f"{weights} brings its own pairs, {saved['pairs']}; leave the option out, or give a whole CLIP."
            )
        return _from_saved(state, saved, asked.get("temperature", saved["temperature"]), weights)
    if not state.text:
        raise WeightsError(f"{weights} has no text tower, which CLIP-IQA needs to read the prompts; give a whole CLIP.")
    features = encode_prompts(prompts, state.text, config, weights)
    with fixed_seed(0):
        tower = picture_tower(config)
    load_strict(tower, state.picture, weights)
    model = ClipIQA(tower, features, read_alpha(state.rest, weights), temperature, pairs)
    load_calibration(model, state.rest)
    return model


def _from_saved(state: ClipState, saved: dict[str, Any], temperature: float, weights: Path) -> ClipIQA:
    """A file of `save_model`, which brings its pairs and their features along instead of a text tower."""
    with fixed_seed(0):
        tower = picture_tower(saved["clip"])
    load_strict(tower, state.picture, weights)
    features, alpha = state.rest["prompts_features"], read_alpha(state.rest, weights)
    model = ClipIQA(tower, features, alpha, temperature, saved["pairs"])
    load_calibration(model, state.rest, saved["temperature"])
    return model


def _check_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    checked = () if isinstance(pairs, str) else tuple(pairs)
    for pair in checked or (None,):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(prompt, str) and prompt.strip() for prompt in pair):
            raise ValueError(
                f'pairs are {pairs!r}; expected one or more pairs of texts: (("Good photo.", "Bad photo."),).'
            )
    return tuple((positive, negative) for positive, negative in checked)
