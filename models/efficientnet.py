"""EfficientNet-Lite0 without its classifier: the pretrained eyes of `lite` and of `bpclip-mini`.

Tan and Le (2019), "EfficientNet", https://arxiv.org/abs/1905.11946. The Lite variant (no squeeze-and-excitation,
ReLU6) and its ImageNet weights are TensorFlow's (Apache-2.0), so the padding is too. Module for module the same as
timm's `tf_efficientnet_lite0` up to the last stage; timm itself takes seconds to import.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STEM = 32
STAGES = (  # kernel, stride, expansion, width, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
WIDTHS = (STEM, *(width for *_, width, _ in STAGES))
"""Channels of the maps that `EfficientNetLite0` returns."""
STRIDES = (2, 2, 4, 8, 16, 16, 32, 32)
"""Pixels of the picture per step in these maps."""


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's 'SAME': at stride 2 the right and lower edge get more."""

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, width, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, width, ceil(h / stride), ceil(w / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return F.conv2d(x, self.weight, None, 1, kernel // 2, 1, self.groups)
        spare = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        padding = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
        return F.conv2d(F.pad(x, padding), self.weight, None, stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; a shortcut where size and width stay."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [SameConv2d(before, inner, 1), _norm(inner), nn.ReLU6()]
        layers += [SameConv2d(inner, inner, kernel, stride, groups=inner), _norm(inner), nn.ReLU6()]
        self.body = nn.Sequential(*layers, SameConv2d(inner, width, 1), _norm(width))
        self.shortcut = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, width, h / stride, w / stride)."""
        return x + self.body(x) if self.shortcut else self.body(x)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class EfficientNetLite0(nn.Module):
    """Images -> the maps of the stem and of the seven stages, widths `WIDTHS`, at strides `STRIDES`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv2d(3, STEM, 3, 2), _norm(STEM), nn.ReLU6())
        self.stages = nn.ModuleList()
        before = STEM
        for kernel, stride, expansion, width, blocks in STAGES:
            first = Block(before, width, kernel, stride, expansion)
            rest = (Block(width, width, kernel, 1, expansion) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (N, C, h, w) from fine to coarse of images (N, 3, H, W) in [0, 1], in the dtype of the weights."""
        x = self.stem((images.to(self.stem[0].weight.dtype) * 255 - 127) / 128)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
