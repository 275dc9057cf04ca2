"""CLIP's towers from parts of open_clip: one for pictures of any size, and one for text.

Source:
    Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision",
    https://arxiv.org/abs/2103.00020. Leaving out the positional embedding, so that any size can be scored: Wang et al.
    (2023), "Exploring CLIP for Assessing the Look and Feel of Images", https://arxiv.org/abs/2207.12396. Adding it
    resized, as some of IQA-PyTorch's learned prompts want it: `resized_positions`.
"""

from __future__ import annotations

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import working_dtype
from .clip_config import RN50, ClipConfig


class FirstTokenPool(AttentionPool2d):
    """CLIP's attention pool, asking only with the first token, for pictures of any size.

    The full pool answers for each of its 1 + h w tokens and returns the first answer. Asking with the first token alone
    gives the same numbers at a cost that grows with the number of tokens and not with its square. The
    `positional_embedding` is a parameter even where it is not added, so that files keep their layout.
    """

    positions = False
    """Whether the positional embedding is added."""

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, h, w) -> (N, output_dim)."""
        patches = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        if self.positions:
            tokens = tokens + resized_positions(self.positional_embedding, tokens.shape[1])
        query = self._heads(self.q_proj(tokens[:, :1]))
        key, value = self._heads(self.k_proj(tokens)), self._heads(self.v_proj(tokens))
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.c_proj((attention @ value).transpose(1, 2).flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class VisionTransformer(nn.Module):
    """CLIP's ViT for pictures of any size; what is no whole patch at the right and the bottom is left out."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, count = config.width, (config.image_size // config.patch) ** 2
        self.config = config
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + count, width) * width**-0.5)
        self.ln_pre = LayerNorm(width)
        heads, activation = width // config.head_width, QuickGELU if config.quick_gelu else nn.GELU
        self.transformer = Transformer(width, config.layers[0], heads, act_layer=activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures (N, 3, H, W) -> (N, embed_dim)."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        if self.config.positions:
            tokens = tokens + resized_positions(self.positional_embedding, tokens.shape[1])
        return self.ln_post(self.transformer(self.ln_pre(tokens))[:, 0]) @ self.proj


def resized_positions(embedding: Tensor, count: int) -> Tensor:
    """A positional embedding (T, C) for another number of tokens, (count, C): bicubic along the row of tokens.

    Not along the two sides of the picture, and the first token with the rest: that is how IQA-PyTorch does it, and how
    the prompts that want it were learned.
    """
    rows = embedding.to(working_dtype(embedding.dtype))[None, None]
    return F.interpolate(rows, size=(count, embedding.shape[1]), mode="bicubic")[0, 0].to(embedding.dtype)


def vision_tower(config: ClipConfig = RN50) -> ModifiedResNet | VisionTransformer:
    """A float32 vision tower, not loaded: pictures (N, 3, H, W), normalised, at least 32 px -> (N, embed_dim)."""
    if config.patch is not None:
        return VisionTransformer(config).float()
    features = config.width * 32
    heads = features // config.head_width
    tower = ModifiedResNet(list(config.layers), config.embed_dim, heads, config.image_size, config.width)
    tower.attnpool = FirstTokenPool(config.image_size // 32, features, heads, config.embed_dim)
    tower.attnpool.positions = config.positions
    tower.config = config
    return tower.float()


def random_vision_tower(config: ClipConfig = RN50) -> ModifiedResNet | VisionTransformer:
    """A vision tower whose random weights keep the signal alive to the end (open_clip's own start lets it die out)."""
    tower = vision_tower(config)
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 1.0 if name == "bn3.weight" else 0.5)
    return tower


def text_tower(config: ClipConfig = RN50) -> TextTransformer:
    """A float32 text tower, not loaded: tokens (P, context_length) -> (P, embed_dim)."""
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
        output_dim=config.embed_dim,
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
    ).float()
