"""The parts of BPCLIP between the backbone and the text: gated local pooling, attention, one level of the pyramid.

Source: arXiv 2506.17969, equations 1-7. What the paper leaves open is marked as ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend
from .checks import working_dtype


class GatedLocalPooling(nn.Module):
    """Feature maps of one level -> D channels on the grid of the deepest level (equations 1 and 2).

    A mask in [0, 1] weighs every place. With a reference it is made from |F - R| and weighs F, R and |F - R| side by
    side; without one it is made from F and weighs W_f F. Then average pooling, a convolution, GELU.

    The mask's convolutions (1x1 to `mask_width`, 3x3, 3x3 to one channel) are those of TOPIQ (arXiv 2308.03060), from
    which the paper takes the block; the paper gives no sizes.

    Args:
        channels: of the feature maps.
        width: D.
        mask_width: channels inside the mask.
        full_reference: whether there is a reference.
    """

    def __init__(self, channels: int, width: int, mask_width: int, full_reference: bool) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Conv2d(channels, mask_width, 1),
            nn.GELU(),
            nn.Conv2d(mask_width, mask_width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(mask_width, 1, 3, padding=1),
        )
        self.features = None if full_reference else nn.Conv2d(channels, channels, 1, bias=False)
        self.project = nn.Conv2d(channels * (3 if full_reference else 1), width, 1)

    def forward(self, maps: Tensor, reference: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Maps (N, C, h, w), those of the reference or None, grid (H, W) -> (N, width, H, W)."""
        if reference is None:
            gated = self.mask(maps).sigmoid() * self.features(maps)
        else:
            difference = (maps - reference).abs()
            gated = self.mask(difference).sigmoid() * torch.cat([maps, reference, difference], 1)
        return F.gelu(self.project(F.adaptive_avg_pool2d(gated, size)))


class PositionalEncoding(nn.Module):
    """One learnable encoding for all levels, resized (bicubic) to the grid at hand.

    The paper has one shared encoding; its grid (12x12, that of 384 px) and the resizing are ours.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, width, side, side) * 0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, width, H, W) -> the same shape, the encoding added."""
        grid = self.grid.to(working_dtype(maps.dtype))
        if grid.shape[2:] != maps.shape[2:]:
            grid = F.interpolate(grid, size=maps.shape[2:], mode="bicubic", align_corners=False)
        return maps + grid.to(maps.dtype)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d_k)) V + tokens, with Q from the tokens, K and V from the context (equations 3 to 5).

    No output projection and no biases, as the equations have none; the number of heads is ours.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.backend = "sdpa"
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Tokens (N, T, width), context (N, S, width) -> (N, T, width)."""
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(tokens), self.key(context), self.value(context))
        )
        return attend(query, key, value, self.backend).transpose(1, 2).flatten(2) + tokens


class Level(nn.Module):
    """Two neighbouring levels -> one vector in the text's space (equations 4 to 7).

    The information branch lets one level ask the other (equation 4), the weight branch a level itself (equation 5);
    their MLPs' outputs are multiplied (equation 6). How the tokens of the product become one vector is not in the
    paper; ours is the weighted mean, sum_t info_t weight_t / sum_t weight_t, each channel by itself. The hidden sizes
    of the MLPs are ours: `width`.

    Args:
        width: D.
        heads: of the attention.
        text_dim: size of the text's space.
        weight_branch: False takes the plain mean over the tokens, for the paper's ablation.
    """

    def __init__(self, width: int, heads: int, text_dim: int, weight_branch: bool) -> None:
        super().__init__()
        self.ask = Attention(width, heads)
        self.information = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.ask_itself = Attention(width, heads) if weight_branch else None
        self.weights = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) if weight_branch else None
        )
        self.to_text = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, text_dim))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Tokens of the asking level (N, T, width), of the answering one (N, S, width) -> (N, text_dim)."""
        information = self.information(self.ask(tokens, context))
        if self.weights is None:
            pooled = information.to(working_dtype(information.dtype)).mean(1)
        else:
            weights = self.weights(self.ask_itself(tokens, tokens))
            # sigmoids over their sum, where they may all vanish
            shares = F.logsigmoid(weights.to(working_dtype(weights.dtype))).softmax(1)
            pooled = (information * shares).sum(1)
        return self.to_text(pooled.to(tokens.dtype))
