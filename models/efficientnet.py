"""EfficientNet-Lite0 without its classifier: the pretrained backbone of `lite` and of `bpclip-mini`.

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


class Conv(nn.Module):
    """Convolution, padded as TensorFlow's 'SAME', and the norm behind it, in one.

    The norm's statistics are those of the pretraining and stay, so it is a factor and an offset of each channel: these
    go into the convolution, which saves a pass over the maps.
    """

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, width, ceil(h / stride), ceil(w / stride))."""
        conv, norm = self.conv, self.norm
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, offset = conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        if stride == 1:
            return F.conv2d(x, weight, offset, 1, kernel // 2, 1, conv.groups)
        spare = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        padding = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
        return F.conv2d(F.pad(x, padding), weight, offset, stride, 0, 1, conv.groups)


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; a shortcut where size and width stay."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = [Conv(before, inner, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [Conv(inner, inner, kernel, stride, groups=inner), nn.ReLU6()]
        self.body = nn.Sequential(*layers, Conv(inner, width, 1))
        self.shortcut = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, width, h / stride, w / stride)."""
        return x + self.body(x) if self.shortcut else self.body(x)


class EfficientNetLite0(nn.Module):
    """Images -> the maps of the stem and of the seven stages, widths `WIDTHS`, at strides `STRIDES`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, STEM, 3, 2), nn.ReLU6())
        self.stages = nn.ModuleList()
        before = STEM
        for kernel, stride, expansion, width, blocks in STAGES:
            first = Block(before, width, kernel, stride, expansion)
            rest = (Block(width, width, kernel, 1, expansion) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (N, C, h, w) from fine to coarse of images (N, 3, H, W) in [0, 1], in the dtype of the weights."""
        x = self.stem((images.to(self.stem[0].conv.weight.dtype) * 255 - 127) / 128)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
