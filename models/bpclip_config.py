"""Sizes and choices of a BPCLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError
from .adjectives import ENCODER, Pairs, read_pairs
from .settings import check_flags, check_whole

LITE = "efficientnet_lite0"
CHOICES = {
    "backbone": (
        *("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet18d", "resnet26d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
        *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d"),
        LITE,
    ),
    "batch_norm": ("frozen", "trained"),
    "direction": ("bottom-up", "top-down"),
    "anchors": ("adjectives", "none"),
}


@dataclass(frozen=True)
class BPCLIPConfig:
    """Sizes and choices of a BPCLIP; a trained file carries its own. The defaults are the full-size model."""

    full_reference: bool = False
    """Whether pictures are compared with a reference."""
    backbone: str = "resnet50"
    """A ResNet of timm, or "efficientnet_lite0"."""
    channels: tuple[int, int, int, int] | None = None
    """Of its four stages, for a narrower one than its name says (which then has a stem of three 3x3 convolutions)."""
    batch_norm: str = "frozen"
    """"frozen" as in the paper, or "trained", for a backbone that starts from random weights."""
    width: int = 512
    """D, channels of the tokens."""
    heads: int = 8
    """Of the attention."""
    mask_width: int = 64
    """Channels inside the pooling's mask."""
    positions: int = 12
    """Side of the positional encoding's grid."""
    text_dim: int = 512
    """Size of the text's space: 512 for CLIP ViT-B/32, 1024 for RN50."""
    head_width: int = 64
    """Hidden size of the head."""
    direction: str = "bottom-up"
    """"bottom-up": each level asks the next deeper one, as in the paper; "top-down": the deeper one asks."""
    weight_branch: bool = True
    """Whether tokens are weighed by the self-attention branch (equation 5); False for the paper's ablation."""
    anchors: str = "adjectives"
    """"adjectives", or "none": the head reads the levels' vectors themselves, for the paper's ablation."""
    pairs: Pairs = dataclasses.field(default_factory=read_pairs)
    """(dimension, positive adjective, negative adjective) of each antonym pair."""
    template: str = "{}"
    """Prompt around an adjective; the paper's figure 1 shows the bare words."""
    text_source: str = "random"
    """Where the adjectives' features came from: "random" directions that mean nothing, the sentence encoder whose
    features come with the package (`adjectives.ENCODER`), or the file of a CLIP."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}.")
        check_flags(self, "full_reference", "weight_branch")
        check_whole(self, width=(1, 4096), heads=(1, 256), mask_width=(1, 4096), positions=(1, 256))
        check_whole(self, text_dim=(1, 8192), head_width=(1, 8192))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; choose one that is.")
        if self.channels is not None:
            check_whole(self, channels=(2, 4096))
            if self.backbone == LITE:
                raise ValueError(f"channels are {self.channels}, which {LITE} does not have; leave them out.")
            if len(self.channels) != 4:
                raise ValueError(f"channels are {self.channels}; expected one number for each of four stages.")
        check_words(self.pairs)
        if not isinstance(self.template, str) or self.template.count("{}") != 1 or len(self.template) > 200:
            raise ValueError(f"template is {self.template!r}; expected a short text with one {{}} for the adjective.")
        if not isinstance(self.text_source, str) or len(self.text_source) > 255:
            raise ValueError(f"text_source is {self.text_source!r}; expected a name.")


def check_words(pairs: Pairs) -> None:
    """Hold pairs to (dimension, positive adjective, negative adjective), all of them texts.

    Raises:
        ValueError: a pair is something else, or there is none, or more than 512.
    """
    three = isinstance(pairs, tuple) and all(isinstance(pair, tuple) and len(pair) == 3 for pair in pairs)
    if not three or not 1 <= len(pairs) <= 512 or not all(isinstance(word, str) for pair in pairs for word in pair):
        raise ValueError("pairs are no tuple of (dimension, positive adjective, negative adjective).")


def read_config(values: Mapping[str, Any], source: object) -> BPCLIPConfig:
    """The config that a file holds.

    Args:
        values: what `dataclasses.asdict` made of it, tuples as lists.
        source: what messages call the file.

    Raises:
        WeightsError: a value is unknown or out of its range.
    """
    try:
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        tuples["pairs"] = tuple(tuple(pair) for pair in values["pairs"])
        return BPCLIPConfig(**{**values, **tuples})
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{source} has a config that this version does not know ({error}); expected a file of bpclip, bpclip-fr or "
            "bpclip-mini."
        ) from error


FULL = BPCLIPConfig()
FULL_REFERENCE = BPCLIPConfig(full_reference=True)
MINI = BPCLIPConfig(
    backbone=LITE, batch_norm="trained", width=128, heads=4, mask_width=16, text_dim=384, text_source=ENCODER
)
SIZES = {"bpclip": FULL, "bpclip-fr": FULL_REFERENCE, "bpclip-mini": MINI}
"""By the names of `create_model`."""
