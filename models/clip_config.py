"""Sizes of a CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import check_flags, check_whole


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP. The defaults are those of OpenAI's RN50, open_clip's `RN50-quickgelu`.

    Raises:
        ValueError: a value is out of its range.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of the four stages of a ResNet vision tower, or blocks of a ViT, alone in the tuple."""
    width: int = 64
    """Channels of the stem of a ResNet, whose features have 32 times as many; channels of a ViT."""
    patch: int | None = None
    """Side in px of the patches of a ViT; None for a ResNet."""
    head_width: int = 64
    """Channels of one head of the vision tower's attention."""
    embed_dim: int = 1024
    """Size of the space that pictures and texts share."""
    image_size: int = 224
    """Side in px of the training pictures, for which the positional embedding is made."""
    positions: bool = False
    """Whether the vision tower adds its positional embedding, resized to the picture; CLIP-IQA leaves it out."""
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
    quick_gelu: bool = True
    """Whether the blocks of text tower and ViT use x sigmoid(1.702 x), as OpenAI's do, or plain GELU."""

    def __post_init__(self) -> None:
        check_flags(self, "positions", "quick_gelu")
        check_whole(self, head_width=(1, 1024), embed_dim=(1, 8192), image_size=(14, 2048), text_width=(1, 8192))
        check_whole(self, width=(2, 8192), text_heads=(1, 256), text_layers=(1, 256))
        check_whole(self, context_length=(3, 4096), vocab_size=(2, 2**20))
        if self.patch is not None:
            check_whole(self, patch=(1, 256))
        stages = 4 if self.patch is None else 1
        if not isinstance(self.layers, tuple) or len(self.layers) != stages:
            raise ValueError(f"layers are {self.layers!r}; expected {stages} whole numbers.")
        check_whole(self, layers=(1, 256))
        features = self.width * 32 if self.patch is None else self.width
        for total, part, name in (
            (features, self.head_width, "head_width"),
            (self.text_width, self.text_heads, "text_heads"),
        ):
            if total % part:
                raise ValueError(f"{name} is {part}, which does not divide {total}; choose a number that does.")


RN50 = ClipConfig()
VIT_L14 = ClipConfig(layers=(24,), width=1024, patch=14, embed_dim=768, text_width=768, text_heads=12)
