"""`lite`: the quality model that scores, ranks and judges by default, on pretrained features.

An EfficientNet-Lite0 that has seen ImageNet, fine-tuned on people's scores and on ladders of degradations, those of
generated pictures among them. All its stages are pooled over the whole picture, so any size from 32 px up works.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_pictures, working_dtype
from .efficientnet import WIDTHS, EfficientNetLite0
from .hub import HubModel
from .pooling import TONES, mean_and_spread, tone_and_colour

HIDDEN = 128


class Lite(nn.Module, HubModel):
    """No-reference quality model on pretrained features; a Reward.

    `model(images)` is the score in [0, 1], fitted to people's opinions (0 worst, 1 best, about MOS / 100);
    `model.margin(images)` is the same order without the saturation, in standard deviations over clean photographs:
    0 is the average clean photograph. Differentiable, no random part, and in evaluation mode a batch gives what one
    image at a time gives. Training it: docs/training.md.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0()
        pooled = 2 * (TONES + sum(WIDTHS))
        self.register_buffer("pooled_mean", torch.zeros(pooled))
        self.register_buffer("pooled_std", torch.ones(pooled))
        self.head = nn.Sequential(nn.Linear(pooled, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1))
        self.register_buffer("margin_mean", torch.zeros(()))
        self.register_buffer("margin_std", torch.ones(()))
        self.register_buffer("score_scale", torch.ones(()))
        self.register_buffer("score_shift", torch.zeros(()))

    def pooled(self, images: Tensor) -> Tensor:
        """Mean and spread over the picture of tone, colour and all stages, (N, 1644), float32 or better; see `raw`."""
        return self.seen(images)[0]

    def seen(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`pooled` and the maps behind it: of the stem and of the stages, from fine to coarse."""
        check_pictures(images)
        dtype = working_dtype(self.trunk.stem[0].conv.weight.dtype)
        maps = self.trunk(images)
        with torch.autocast(images.device.type, enabled=False):
            planes = [tone_and_colour(images.to(dtype)), *(plane.to(dtype) for plane in maps)]
            return torch.cat([mean_and_spread(plane) for plane in planes], 1), maps

    def raw(self, images: Tensor) -> Tensor:
        """The head's own output before calibration, what training works on.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any floating dtype, both sides at least 32 px.

        Returns:
            (N,) float32 (float64 for a float64 model), about 0 for a clean photograph, falling to about -4.5.

        Raises:
            TypeError: not a tensor, or not floating point.
            ValueError: wrong shape, or too small.
        """
        pooled = self.pooled(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.judge(pooled)

    def judge(self, pooled: Tensor) -> Tensor:
        """`raw` (N,) of statistics (N, 1644), in their dtype whatever that of the rest."""
        x = (pooled - self.pooled_mean.to(pooled)) / self.pooled_std.to(pooled)
        for layer in self.head:
            linear = isinstance(layer, nn.Linear)
            x = F.linear(x, layer.weight.to(x), layer.bias.to(x)) if linear else layer(x)
        return x.squeeze(-1)

    def margin(self, images: Tensor) -> Tensor:
        """Unsaturated score (N,) in standard deviations over clean photographs; see the class."""
        return (self.raw(images) - self.margin_mean.float()) / self.margin_std.float()

    def forward(self, images: Tensor) -> Tensor:
        """Score (N,) in [0, 1]; see the class.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any floating dtype, both sides at least 32 px.

        Raises:
            TypeError: not a tensor, or not floating point.
            ValueError: wrong shape, or too small.
        """
        return torch.sigmoid(self.margin(images) * self.score_scale.float() + self.score_shift.float())
