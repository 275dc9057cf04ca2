"""The quality models that `--model` names: one, or several joined by + as one careful ensemble."""

from __future__ import annotations

import torch
from torch import nn

from ..models import MODELS
from ..models.catalog import get_spec
from ..models.create import create_model
from ..rewards import Ensemble, Reward


def names_in(text: str) -> list[str]:
    """`tiny+lite` -> both names; a + inside a model's own name, as in qualiclip+ or qualiclip+-clive, belongs to it.

    Raises:
        ValueError: a name is unknown.
    """
    fitting = [name for name in MODELS if text == name or text.startswith(f"{name}+")]
    name = max(fitting, key=len, default=text)
    others = [] if name == text else names_in(text[len(name) + 1 :])
    return [get_spec(name).name, *others]


def load_named(text: str, weights: str, device: torch.device) -> nn.Module | Reward:
    """The model of one name, or the ensemble of several.

    Raises:
        ValueError: a name is unknown; of several models one compares with a reference, or a file of weights is given.
        WeightsError: as `create_model`.
    """
    names = names_in(text)
    if len(names) == 1:
        return create_model(names[0], weights=weights, device=device)
    if weights not in ("default", "random"):
        raise ValueError(f"got --weights {weights} for {text}; expected default: a file holds one model alone.")
    for name in names:
        if MODELS[name].full_reference:
            raise ValueError(f"{name} compares with a reference and cannot be combined; use it alone.")
    return Ensemble([create_model(name, weights=weights, device=device) for name in names])
