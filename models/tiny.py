"""`tiny`: the small quality model that comes with the package, made to be differentiated.

A plain convolutional network on the pixels as they are, pooled over the whole picture, so any size from 32 px up works.
The activations are smooth, and the training asks that the gradient at a degraded picture points to the clean one
(training/objectives.py): a model that only orders pictures well has gradients that point anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_pictures, working_dtype
from .hub import HubModel
from .pooling import TONES, mean_and_spread, tone_and_colour

WIDTHS = (24, 48, 96, 160)
BLOCKS = (0, 1, 2, 2)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut; size and width stay."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) -> the same shape."""
        return F.silu(x + self.body(x))


def _stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Halve the size with a smooth kernel, then refine."""
    down = [nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
    return nn.Sequential(*down, *(Residual(width) for _ in range(blocks)))


class Tiny(nn.Module, HubModel):
    """Small no-reference quality model; a Reward.

    `model(images)` is the score in [0, 1], fitted to people's opinions (0 worst, 1 best, about MOS / 100);
    `model.margin(images)` is the same order without the saturation, in standard deviations over clean photographs:
    0 is the average clean photograph. Differentiable, no random part, and in evaluation mode a batch gives what one
    image at a time gives. Training it: docs/training.md.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _stage(before, width, blocks)
            for before, width, blocks in zip((3, *WIDTHS[:-1]), WIDTHS, BLOCKS, strict=True)
        )
        pooled = 2 * (TONES + sum(WIDTHS))
        self.register_buffer("pooled_mean", torch.zeros(pooled))
        self.register_buffer("pooled_std", torch.ones(pooled))
        self.head = nn.Sequential(nn.Linear(pooled, 128), nn.SiLU(), nn.Linear(128, 1))
        self.register_buffer("margin_mean", torch.zeros(()))
        self.register_buffer("margin_std", torch.ones(()))
        self.register_buffer("score_scale", torch.ones(()))
        self.register_buffer("score_shift", torch.zeros(()))

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

    def pooled(self, images: Tensor) -> Tensor:
        """Mean and spread over the picture of tone, colour and all stages, (N, 668), float32 or better; see `raw`."""
        return self.seen(images)[0]

    def seen(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`pooled` and the maps behind it, of the four stages."""
        check_pictures(images)
        x = images.to(self.stages[0][0].weight.dtype) * 2 - 1
        dtype = working_dtype(x.dtype)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        with torch.autocast(images.device.type, enabled=False):
            planes = [tone_and_colour(images.to(dtype)), *(plane.to(dtype) for plane in maps)]
            return torch.cat([mean_and_spread(plane) for plane in planes], 1), maps

    def judge(self, pooled: Tensor) -> Tensor:
        """`raw` (N,) of statistics (N, 668), in their dtype whatever that of the rest."""
        x = (pooled - self.pooled_mean.to(pooled)) / self.pooled_std.to(pooled)
        for layer in self.head:
            linear = isinstance(layer, nn.Linear)
            x = F.linear(x, layer.weight.to(x), layer.bias.to(x)) if linear else layer(x)
        return x.squeeze(-1)

    @torch.no_grad()
    def standardise(self, pooled: Tensor) -> None:
        """Centre the head on statistics (N, 668) of typical pictures without changing what it says of any picture.

        A head whose inputs differ in scale by orders of magnitude hardly learns.
        """
        std, mean = torch.std_mean(pooled, 0)
        std, first = std + 1e-3, self.head[0]
        first.bias.add_(first.weight @ ((mean - self.pooled_mean) / self.pooled_std))
        first.weight.mul_(std / self.pooled_std)
        self.pooled_mean.copy_(mean)
        self.pooled_std.copy_(std)

    def training_score(self, images: Tensor) -> Tensor:
        """What training works on, (N,) in raw units (models/raw_scale.py); images as in `raw`."""
        return self.raw(images)

    def activation_stages(self) -> list[nn.Module]:
        """The parts whose activations take most memory in training, from the picture on."""
        return [*self.stages]

    def allow_second_order(self) -> None:
        """Everything here can be differentiated twice."""

    @torch.no_grad()
    def calibrate_margin(self, batches: Iterable[Tensor]) -> None:
        """Give the margin mean 0 and spread 1 over clean photographs, in place.

        Args:
            batches: images as in `raw`; two or more in all.
        """
        raw = torch.cat([self.raw(images) for images in batches])
        self.margin_mean.copy_(raw.mean())
        self.margin_std.copy_(raw.std())

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
