"""CLIP-IQA, zero-shot: OpenAI's CLIP asked whether a photograph is good or bad, or any other pair of opposites.

Source:
    Wang, Chan, Loy (2023), "Exploring CLIP for Assessing the Look and Feel of Images", AAAI,
    https://arxiv.org/abs/2207.12396, eqs. 1-3 and section 3.1 (no positional embedding). Written from the formulas.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .antonyms import AntonymScore, check_features, check_rest, load_calibration, read_alpha, read_settings
from .clip import encode_prompts, split_checkpoint, with_activation
from .clip_config import RN50, ClipConfig
from .clip_towers import random_vision_tower, vision_tower
from .hub import check_spreads, read_saved
from .seed import fixed_seed
from .weights import load_strict

PAIRS = (("Good photo.", "Bad photo."),)


class ClipIQA(AntonymScore):
    """CLIP-IQA: one score per pair from `scores(images)`, (N, P); their mean from the call. See `AntonymScore`.

    Args:
        visual: a vision tower of `clip_towers`.
        prompts_features: (2 P, E), positive and negative in turn.
        alpha: scale of the cosines.
        temperature: divides the logits; 1 in the paper.
        pairs: the P pairs (positive, negative), which name the columns of `scores`.
    """

    def __init__(
        self,
        visual: nn.Module,
        prompts_features: Tensor,
        alpha: float,
        temperature: float = 1.0,
        pairs: tuple[tuple[str, str], ...] = PAIRS,
    ) -> None:
        super().__init__(visual, prompts_features, alpha, temperature)
        self.pairs = pairs

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pairs: tuple[tuple[str, str], ...] | None = None,
        temperature: float | None = None,
        quick_gelu: bool | None = None,
        config: ClipConfig = RN50,
    ) -> ClipIQA:
        """Read a file; arguments and errors as `build`, see `HubModel.load` for the rest."""
        tensors, values = read_saved(path, cls.__name__)
        saved = read_settings(values, path)
        if saved and pairs not in (None, saved["pairs"]):
            raise ValueError(
                f"{path} brings its own pairs, {saved['pairs']}; leave the option out, or give a whole CLIP."
            )
        config = saved["clip"] if saved else with_activation(config, Path(path), quick_gelu)
        pairs = saved.get("pairs", pairs or PAIRS)
        state = split_checkpoint(tensors, config, path)
        check_rest(state.rest, path)
        if saved:
            features = state.rest.get("prompts_features", torch.empty(0))
        elif state.text:
            prompts = [prompt for pair in pairs for prompt in pair]
            features = encode_prompts(prompts, state.text, config, path)
        else:
            raise WeightsError(
                f"{path} has no text tower, which CLIP-IQA needs to read the prompts; give a whole CLIP."
            )
        check_features(features, len(pairs), config.embed_dim, path)
        with fixed_seed(0):
            tower = vision_tower(config)
        load_strict(tower, state.picture, path)
        if temperature is None:
            temperature = saved.get("temperature", 1.0)
        model = cls(tower, features, read_alpha(state.rest, path), temperature, pairs)
        load_calibration(model, state.rest, saved.get("temperature"))
        check_spreads(model, path)
        return model


def build(
    weights: Path | None,
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
    temperature: float | None = None,
    quick_gelu: bool | None = None,
    seed: int = 0,
    config: ClipConfig = RN50,
) -> ClipIQA:
    """Make a CLIP-IQA on the CPU in float32.

    Args:
        weights: a CLIP checkpoint with both towers, in open_clip's or OpenAI's layout (489 tensors; a QualiCLIP file
            will do), or a file of `save_model`, which brings its pairs and its temperature; None for random weights.
        pairs: (positive, negative) prompts; None for those of the file, else for `PAIRS`.
        temperature: divides the logits; None for that of the file, else for 1. The margin keeps its units.
        quick_gelu: whether the CLIP was trained with QuickGELU; None for what is told beside the file, else True, as in
            OpenAI's (`clip.with_activation`).
        seed: of the random weights, which stand for the prompts too.
        config: sizes of the towers.

    Raises:
        ValueError: `pairs` is not one or more pairs of texts, or others than the file brings, a prompt is too long, or
            the temperature is not positive.
        WeightsError: the file cannot be read or has another layout.
    """
    pairs = None if pairs is None else _check_pairs(pairs)
    if weights is not None:
        return ClipIQA.load(weights, pairs=pairs, temperature=temperature, quick_gelu=quick_gelu, config=config)
    pairs = pairs or PAIRS
    with fixed_seed(seed):
        tower, features = random_vision_tower(config), torch.randn(2 * len(pairs), config.embed_dim)
    return ClipIQA(tower, features, 100.0, 1.0 if temperature is None else temperature, pairs)


def _check_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    checked = () if isinstance(pairs, str) else tuple(pairs)
    for pair in checked or (None,):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(prompt, str) and prompt.strip() for prompt in pair):
            raise ValueError(
                f'pairs are {pairs!r}; expected one or more pairs of texts: (("Good photo.", "Bad photo."),).'
            )
    return tuple((positive, negative) for positive, negative in checked)
