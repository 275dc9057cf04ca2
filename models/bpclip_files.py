"""Making a BPCLIP: from a trained file, or from its parts (a backbone, CLIP's text tower) for training."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import WeightsError
from .adjectives import adjectives
from .attention import check_backend
from .bpclip import BPCLIP, BPCLIPConfig
from .clip import ClipConfig, encode_prompts, fixed_seed, take_apart
from .weights import is_offline, load_strict, read_weights


def build(
    default: BPCLIPConfig,
    weights: Path | None,
    *,
    config: BPCLIPConfig | None = None,
    text: str | os.PathLike[str] | None = None,
    backbone: str | os.PathLike[str] | None = None,
    attention: str = "sdpa",
    seed: int = 0,
) -> BPCLIP:
    """Make a BPCLIP on the CPU in float32.

    Args:
        default: the config of a model with random weights when no other is given; says whether there is a reference.
        weights: a file written by `save_bpclip`, which carries its config; None for random weights.
        config: sizes and choices of a model with random weights.
        text: a CLIP checkpoint whose text tower encodes the adjectives of a model with random weights; without one
            their features are random directions.
        backbone: "imagenet" (timm's weights, downloaded by timm), or a state dict of that ResNet, for a model with
            random weights.
        attention: "sdpa", "xformers" or "math"; see `attention.attend`.
        seed: of random weights.

    Raises:
        ValueError: a bad option, or one that a trained file has settled.
        WeightsError: a file cannot be read or has another layout.
    """
    check_backend(attention)
    if config is not None and config.full_reference != default.full_reference:
        raise ValueError(f"config.full_reference is {config.full_reference}; 'bpclip-fr' has a reference, others not.")
    if weights is None:
        with fixed_seed(seed):
            model = _from_parts(config or default, text, backbone)
    else:
        for name, value in (("config", config), ("text", text), ("backbone", backbone)):
            if value is not None:
                raise ValueError(f"{weights} brings its own {name}; leave the option out, or use weights='random'.")
        model = _from_file(weights, default)
    model.set_attention(attention)
    return model


def _from_parts(
    config: BPCLIPConfig, text: str | os.PathLike[str] | None, backbone: str | os.PathLike[str] | None
) -> BPCLIP:
    words = adjectives(config.pairs)
    features = torch.randn(len(words), config.text_dim)
    if text is not None:
        features = encode_adjectives(config, Path(text))
        config = dataclasses.replace(config, text_dim=features.shape[1], text_source=Path(text).name)
    model = BPCLIP(config, features)
    if backbone is not None:
        state = _imagenet(config) if backbone == "imagenet" else read_weights(backbone)[0]
        load_strict(model.backbone, _with_counters(model.backbone, _without_classifier(state)), backbone)
    return model


def encode_adjectives(config: BPCLIPConfig, path: Path) -> Tensor:
    """Features (2 P, E) of the adjectives in the template, by the text tower of a CLIP checkpoint.

    The sizes are read off the tower's tensors; heads are 64 channels wide, as in every CLIP of OpenAI.

    Raises:
        WeightsError: there is no text tower in the file, or it has another layout.
    """
    state = read_weights(path)[0]
    names = {name.removeprefix("clip_model."): tensor for name, tensor in state.items()}
    if "text_projection" not in names or "positional_embedding" not in names:
        raise WeightsError(f"{path} has no text tower; expected a CLIP checkpoint with both towers.")
    width, text_dim = names["text_projection"].shape
    blocks = {name.split(".")[2] for name in names if name.startswith("transformer.resblocks.")}
    sizes = ClipConfig(
        embed_dim=text_dim,
        text_width=width,
        text_heads=max(1, width // 64),
        text_layers=len(blocks),
        context_length=names["positional_embedding"].shape[0],
    )
    prompts = [config.template.format(word) for word in adjectives(config.pairs)]
    return encode_prompts(prompts, take_apart(state, sizes, path).text, sizes, path)


def _imagenet(config: BPCLIPConfig) -> dict[str, Tensor]:
    """ImageNet weights of the backbone from timm."""
    if config.channels is not None:
        raise ValueError("backbone='imagenet' needs a backbone of timm's own widths; leave channels out.")
    if is_offline():
        raise WeightsError("ImageNet weights are downloaded by timm and downloads are off; give backbone=PATH.")
    try:
        network = timm.create_model(config.backbone, features_only=True, pretrained=True)
    except Exception as error:  # whatever the hub's client raises without a network
        raise WeightsError(
            f"the ImageNet weights of {config.backbone} cannot be fetched ({type(error).__name__}); "
            "give backbone=PATH of a state dict instead."
        ) from error
    return network.state_dict()


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _with_counters(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Batch normalisation's counters as the module wants them: they are training's alone, and files may have none."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    return counters | plain


def _from_file(path: Path, default: BPCLIPConfig) -> BPCLIP:
    state, metadata = read_weights(path)
    if "config" not in metadata:
        raise WeightsError(f"{path} has no config; expected a file written by save_bpclip.")
    config = read_config(metadata["config"], path)
    if config.full_reference != default.full_reference:
        kind = "with a reference: use 'bpclip-fr'" if config.full_reference else "without a reference: use 'bpclip'"
        raise WeightsError(f"{path} is a BPCLIP {kind}.")
    with fixed_seed(0):
        model = BPCLIP(config, torch.ones(len(adjectives(config.pairs)), config.text_dim))
    load_strict(model, _with_counters(model, state), path)
    return model


def read_config(text: str, source: object) -> BPCLIPConfig:
    """The config in a file's metadata; `source` names the file in the WeightsError of one that cannot be read."""
    try:
        values: dict[str, Any] = json.loads(text)
        values["pairs"] = tuple(tuple(pair) for pair in values["pairs"])
        if values.get("channels") is not None:
            values["channels"] = tuple(values["channels"])
        return BPCLIPConfig(**values)
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{source} has a config that this version does not know ({error}); expected a file of bpclip, bpclip-fr or "
            "bpclip-mini."
        ) from error


def save_bpclip(model: BPCLIP, path: str | os.PathLike[str]) -> None:
    """Write a model that `create_model(name, weights=path)` reads: matrices in half precision, the rest as it is.

    Args:
        model: what to write.
        path: a name that ends in .safetensors.
    """
    state = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    small = {name: (t.half() if t.ndim > 1 else t.float()).contiguous().cpu() for name, t in state.items()}
    save_file(small, path, metadata={"config": json.dumps(dataclasses.asdict(model.config))})
