"""CLIP checkpoints: taken apart into towers, and prompts encoded with the text tower."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip import tokenize
from torch import Tensor
from torch.nn import functional as F

from ..errors import WeightsError
from .clip_config import RN50, ClipConfig
from .clip_towers import text_tower
from .seed import fixed_seed
from .weights import WHOLE, check_layout, load_strict

logger = logging.getLogger(__name__)
TOLD_BY = "open_clip_config.json"
"""The file that open_clip writes beside weights."""


def with_activation(config: ClipConfig, path: Path, quick_gelu: bool | None) -> ClipConfig:
    """A config with the activation that the CLIP in a file was trained with: as asked for, or as is told beside it.

    Weights do not show whether they were trained with QuickGELU, as OpenAI's were, or with plain GELU, as most of
    open_clip's were; with the wrong one the text features are off. `open_clip_config.json` tells, where it lies beside
    the file; without it the config stays as it is.

    Args:
        config: sizes of the CLIP.
        path: of its weights.
        quick_gelu: what was asked for; None to go by what is told.

    Raises:
        WeightsError: what lies beside the file cannot be read.
    """
    told = _told_activation(path.with_name(TOLD_BY))
    names = {True: "QuickGELU", False: "plain GELU"}
    if quick_gelu is None and told is not None:
        logger.info("%s was trained with %s, as %s beside it says.", path.name, names[told], TOLD_BY)
    elif told not in (None, quick_gelu):
        logger.warning(
            "%s was trained with %s, as %s beside it says, and is read with %s, as asked for: its texts mean less.",
            *(path.name, names[told], TOLD_BY, names[quick_gelu]),
        )
    chosen = next((choice for choice in (quick_gelu, told) if choice is not None), config.quick_gelu)
    return dataclasses.replace(config, quick_gelu=chosen)


def _told_activation(path: Path) -> bool | None:
    if not path.is_file():
        return None
    try:
        sizes = json.loads(path.read_text("utf-8"))["model_cfg"]
        return bool(sizes.get("quick_gelu", False))  # open_clip's default
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); mend it, or take it away.") from error


def text_layout(config: ClipConfig = RN50) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a text tower's tensors, known without building it."""
    width = config.text_width
    vector, square = (width,), (width, width)
    layout = {
        "token_embedding.weight": (config.vocab_size, width),
        "positional_embedding": (config.context_length, width),
        "ln_final.weight": vector,
        "ln_final.bias": vector,
        "text_projection": (width, config.embed_dim),
    }
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": square,
        "attn.out_proj.bias": vector,
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": vector,
        **{f"ln_{i}.{name}": vector for i in (1, 2) for name in ("weight", "bias")},
    }
    for i in range(config.text_layers):
        layout |= {f"transformer.resblocks.{i}.{name}": shape for name, shape in block.items()}
    return layout


@dataclass(frozen=True)
class ClipState:
    """A checkpoint taken apart."""

    picture: dict[str, Tensor]
    """Tensors of the vision tower."""
    text: dict[str, Tensor]
    """Tensors of the text tower, or nothing."""
    rest: dict[str, Tensor]
    """`logit_scale` and what else is neither."""


def split_checkpoint(state: Mapping[str, Tensor], config: ClipConfig, source: object) -> ClipState:
    """Split a checkpoint into towers, and hold the text part to its layout: all of it, or none of it.

    Args:
        state: tensors by name, with or without the prefix `clip_model.`.
        config: sizes that the text part must have.
        source: what messages call the file.

    Raises:
        WeightsError: a part of the text tower is missing or has another shape.
    """
    state = {name.removeprefix("clip_model."): tensor for name, tensor in state.items()}
    layout = text_layout(config)
    heads = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    picture = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    text = {name: tensor for name, tensor in state.items() if name.startswith(heads)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(("visual.", *heads))}
    if text:
        check_layout(layout, text, source)
    return ClipState(picture, text, {name: tensor for name, tensor in rest.items() if name not in WHOLE})


def encode_prompts(prompts: Sequence[str], state: Mapping[str, Tensor], config: ClipConfig, source: object) -> Tensor:
    """Encode prompts with a text tower that is built for this and dropped again.

    Args:
        prompts: P texts.
        state: tensors of the text tower.
        config: its sizes.
        source: what messages call the file.

    Returns:
        (P, embed_dim) float32, of length one.

    Raises:
        ValueError: a prompt is longer than the tower can read.
        WeightsError: the tensors do not fit.
    """
    tokens = tokenize(list(prompts), context_length=config.context_length)
    if tokens[:, -1].any():
        longest = max(prompts, key=len)
        raise ValueError(f"the prompt {longest!r} is too long; CLIP reads at most {config.context_length - 1} tokens.")
    with fixed_seed(0):
        tower = text_tower(config)
    load_strict(tower, state, source)
    with torch.no_grad():
        return F.normalize(tower.eval()(tokens), dim=-1)
