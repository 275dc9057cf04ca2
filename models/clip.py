"""CLIP ResNet towers from open_clip: one for pictures of any size, and one for text, used once to encode prompts.

Source:
    Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision",
    https://arxiv.org/abs/2103.00020. Leaving out the positional embedding of the attention pool, so that any size can
    be scored: Wang et al. (2023), "Exploring CLIP for Assessing the Look and Feel of Images",
    https://arxiv.org/abs/2207.12396.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from open_clip import tokenize
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from .weights import check_layout, load_strict

MEAN, STD = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
IGNORED = {"input_resolution", "context_length", "vocab_size"}  # three numbers in OpenAI's own state dicts


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP with a ResNet picture tower. The defaults are open_clip's `RN50-quickgelu`."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of the four stages of the picture tower."""
    width: int = 64
    """Channels of its stem; its features have 32 times as many."""
    head_width: int = 64
    """Channels of one head of the attention pool."""
    embed_dim: int = 1024
    """Size of the space that pictures and texts share."""
    image_size: int = 224
    """Side in px of the training pictures; fixes only the shape of the unused positional embedding."""
    text_width: int = 512
    """Channels of the text tower."""
    text_heads: int = 8
    """Heads of the text tower."""
    text_layers: int = 12
    """Blocks of the text tower."""
    context_length: int = 77
    """Most tokens of a prompt."""
    vocab_size: int = 49408
    """Entries of CLIP's vocabulary."""


RN50 = ClipConfig()


class FirstTokenPool(AttentionPool2d):
    """CLIP's attention pool without positional embedding, asking only with the first token.

    The full pool answers for each of its 1 + h w tokens and returns the first answer. Asking with the first token alone
    gives the same numbers at a cost that grows with the number of tokens and not with its square. The unused
    `positional_embedding` stays a parameter, so that files keep their layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, h, w) -> (N, output_dim)."""
        patches = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        query = self._heads(self.q_proj(tokens[:, :1]))
        key, value = self._heads(self.k_proj(tokens)), self._heads(self.v_proj(tokens))
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.c_proj((attention @ value).transpose(1, 2).flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def picture_tower(config: ClipConfig = RN50) -> ModifiedResNet:
    """A float32 picture tower, not loaded: pictures (N, 3, H, W), normalised, at least 32 px -> (N, embed_dim)."""
    features = config.width * 32
    heads = features // config.head_width
    tower = ModifiedResNet(list(config.layers), config.embed_dim, heads, config.image_size, config.width)
    tower.attnpool = FirstTokenPool(config.image_size // 32, features, heads, config.embed_dim)
    return tower.float()


def sizes_of(tower: ModifiedResNet) -> ClipConfig:
    """The sizes of a picture tower that `picture_tower` has made; those of the text tower are the defaults."""
    blocks = tuple(len(tower.get_submodule(f"layer{n}")) for n in range(1, 5))
    width, pool = 2 * tower.conv1.out_channels, tower.attnpool
    return ClipConfig(
        layers=blocks,
        width=width,
        head_width=width * 32 // pool.num_heads,
        embed_dim=pool.c_proj.out_features,
        image_size=32 * round((len(pool.positional_embedding) - 1) ** 0.5),
    )


def read_saved(metadata: Mapping[str, str], source: object) -> dict[str, Any]:
    """What `save_model` has written beside the tensors: `clip`, a ClipConfig, `temperature`, `pairs`; else nothing.

    Raises:
        WeightsError: it cannot be read.
    """
    if "config" not in metadata:
        return {}
    try:
        found = json.loads(metadata["config"])
        sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in found["clip"].items()}
        pairs = tuple((positive, negative) for positive, negative in found["pairs"])
        return {"clip": ClipConfig(**sizes), "temperature": float(found["temperature"]), "pairs": pairs}
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{source} has a config that this version does not know ({error}).") from error


def text_tower(config: ClipConfig = RN50) -> TextTransformer:
    """A float32 text tower, not loaded: tokens (P, context_length) -> (P, embed_dim)."""
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
        output_dim=config.embed_dim,
        act_layer=QuickGELU,
    ).float()


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
    """Tensors of the picture tower."""
    text: dict[str, Tensor]
    """Tensors of the text tower, or nothing."""
    rest: dict[str, Tensor]
    """`logit_scale` and what else is neither."""


def take_apart(state: Mapping[str, Tensor], config: ClipConfig, source: object) -> ClipState:
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
    return ClipState(picture, text, {name: tensor for name, tensor in rest.items() if name not in IGNORED})


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


def random_picture_tower(config: ClipConfig = RN50) -> ModifiedResNet:
    """A picture tower whose random weights keep the signal alive to the end (open_clip's own start lets it die out)."""
    tower = picture_tower(config)
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 1.0 if name == "bn3.weight" else 0.5)
    return tower


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Seed the CPU's generator inside, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
