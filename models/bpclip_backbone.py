"""The backbone of a BPCLIP: a ResNet of timm, or EfficientNet-Lite0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bpclip_config import LITE, BPCLIPConfig
from .efficientnet import STRIDES, WIDTHS, EfficientNetLite0
from .pooling import TONES, tone_and_colour

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MAPS = (1, 2, 3, 5, 6)
"""Of EfficientNet-Lite0's maps those that BPCLIP reads: strides 2 to 32."""


@dataclass(frozen=True)
class MapSizes:
    """Sizes of the maps, by the names under which timm's networks have them."""

    widths: list[int]
    strides: list[int]

    def channels(self) -> list[int]:
        """Of each map."""
        return self.widths

    def reduction(self) -> list[int]:
        """Pixels of the picture per step in each map."""
        return self.strides


class LitePyramid(EfficientNetLite0):
    """EfficientNet-Lite0 up to its seventh map -> five maps, strides 2 to 32.

    Its blocks end without a non-linearity, so the mean over a place would lose how much a channel swings; each channel
    therefore comes as two, its positive and its negative part, which are what a ResNet's rectified maps are. The first
    map ends with what single pixels say of tone and colour, which normalised convolutions tell poorly.
    """

    def __init__(self) -> None:
        super().__init__()
        del self.stages[max(LITE_MAPS) :]
        widths = [2 * WIDTHS[n] for n in LITE_MAPS]
        widths[0] += TONES
        self.feature_info = MapSizes(widths, [STRIDES[n] for n in LITE_MAPS])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (N, 2 C, h, w) of images (N, 3, H, W) in [0, 1], the first with tone and colour behind them."""
        maps = super().forward(images)
        first, *deeper = (torch.cat([maps[n], -maps[n]], 1).relu() for n in LITE_MAPS)
        tones = F.adaptive_avg_pool2d(tone_and_colour(images), first.shape[2:]).to(first.dtype)
        return [torch.cat([first, tones], 1), *deeper]


def pixel_statistics(config: BPCLIPConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread by which pixels in [0, 1] are standardised; EfficientNet-Lite0 does that itself."""
    if config.backbone == LITE:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return IMAGENET_MEAN, IMAGENET_STD


def make_backbone(config: BPCLIPConfig) -> nn.Module:
    """The network of a config with random weights: pictures -> five maps, strides 2 to 32.

    The last batch normalisation of each block of a ResNet starts at 1/2: at timm's 0 frozen blocks would be dead, at 1
    the signal grows from block to block.
    """
    if config.backbone == LITE:
        return LitePyramid()  # whose norms' statistics stay as they are
    import timm  # which takes seconds

    narrow = {}
    if config.channels is not None:
        narrow = {"channels": config.channels, "stem_type": "deep", "stem_width": config.channels[0] // 2}
    network = timm.create_model(config.backbone, features_only=True, zero_init_last=False, **narrow)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    blocks = {name.rpartition(".")[0] for name in norms if name.startswith("layer") and "downsample" not in name}
    for block in blocks:
        last = max(name for name in norms if name.startswith(f"{block}.bn"))
        nn.init.constant_(network.get_submodule(last).weight, 0.5)
    return timm.layers.freeze_batch_norm_2d(network) if config.batch_norm == "frozen" else network
