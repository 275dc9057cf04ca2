"""Making a BPCLIP: from a trained file, or from its parts (a backbone, CLIP's text tower) for training."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from .adjectives import ENCODER, adjectives, bundled_features
from .attention import check_backend
from .bpclip import BPCLIP
from .bpclip_config import LITE, BPCLIPConfig
from .cache import is_offline
from .clip_config import ClipConfig
from .seed import fixed_seed
from .weights import load_strict, read_weights


def build(
    default: BPCLIPConfig,
    weights: Path | None,
    *,
    config: BPCLIPConfig | None = None,
    text: str | os.PathLike[str] | None = None,
    backbone: str | os.PathLike[str] | None = None,
    quick_gelu: bool | None = None,
    attention: str = "sdpa",
    seed: int = 0,
) -> BPCLIP:
    """Make a BPCLIP on the CPU in float32.

    Args:
        default: the config of a model with random weights when no other is given; says whether there is a reference.
        weights: a file written by `save_model`, which carries its config; None for random weights.
        config: sizes and choices of a model with random weights.
        text: a CLIP checkpoint whose text tower encodes the adjectives of a model with random weights; without one
            their features are random directions.
        backbone: "imagenet" (timm's weights of a ResNet, downloaded by timm), or a state dict of the backbone, for a
            model with random weights.
        quick_gelu: whether the CLIP of `text` was trained with QuickGELU; None for what is told beside its file, else
            True, as in OpenAI's (`clip.with_activation`).
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
            model = _from_parts(config or default, text, backbone, quick_gelu)
    else:
        for name, value in (("config", config), ("text", text), ("backbone", backbone)):
            if value is not None:
                raise ValueError(f"{weights} brings its own {name}; leave the option out, or use weights='random'.")
        model = BPCLIP.load(weights)
        if model.config.full_reference != default.full_reference:
            kind = (
                "with a reference: use 'bpclip-fr'"
                if model.config.full_reference
                else "without a reference: use 'bpclip'"
            )
            raise WeightsError(f"{weights} is a BPCLIP {kind}.")
    model.set_attention(attention)
    return model


def _from_parts(
    config: BPCLIPConfig,
    text: str | os.PathLike[str] | None,
    backbone: str | os.PathLike[str] | None,
    quick_gelu: bool | None,
) -> BPCLIP:
    features, source = torch.randn(2 * len(config.pairs), config.text_dim), config.text_source
    if text is not None:
        features, source = encode_adjectives(config, Path(text), quick_gelu), Path(text).name
    elif source == ENCODER:
        features = bundled_features(config.pairs)
    config = dataclasses.replace(config, text_dim=features.shape[1], text_source=source)
    model = BPCLIP(config, features)
    if backbone is not None:
        state = _imagenet(config) if backbone == "imagenet" else read_weights(backbone)[0]
        load_strict(model.backbone, _without_classifier(state), backbone)
    return model


def encode_adjectives(config: BPCLIPConfig, path: Path, quick_gelu: bool | None = None) -> Tensor:
    """Features (2 P, E) of the adjectives in the template, by the text tower of a CLIP checkpoint.

    The sizes are read off the tower's tensors; heads are 64 channels wide, as in every CLIP of OpenAI.

    Raises:
        WeightsError: there is no text tower in the file, or it has another layout.
    """
    from .clip import encode_prompts, split_checkpoint, with_activation  # open_clip takes seconds to import

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
    sizes = with_activation(sizes, path, quick_gelu)
    return encode_prompts(prompts, split_checkpoint(state, sizes, path).text, sizes, path)


def _imagenet(config: BPCLIPConfig) -> dict[str, Tensor]:
    """ImageNet weights of the backbone from timm."""
    if config.backbone == LITE:
        raise ValueError(f"backbone='imagenet' is for ResNets; {LITE} takes its weights in training/train_bpclip.py.")
    if config.channels is not None:
        raise ValueError("backbone='imagenet' needs a backbone of timm's own widths; leave channels out.")
    if is_offline():
        raise WeightsError("ImageNet weights are downloaded by timm and downloads are off; give backbone=PATH.")
    import timm  # which takes seconds

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
