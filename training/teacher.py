"""Opinion labels for crops: SqueezeNet features and ridge regression on human scores.

The network is SqueezeNet 1.0 as its authors trained it on ImageNet (Iandola et al. 2016, arXiv 1602.07360; 227 px, BGR,
Caffe means), read from a file that the user names. Its score of crops and its feature maps are learnt from; none of
its weights are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import WeightsError
from ..models.weights import read_weights

MEANS_BGR = (104.0, 117.0, 123.0)
TAPS = (3, 5, 7, 9)


class Squeezenet:
    """Feature maps of SqueezeNet 1.0, from a state dict with the layer names of its authors (`fire2/conv1x1_1`).

    Raises:
        WeightsError: the file is missing, damaged, or another network.
    """

    def __init__(self, path: Path) -> None:
        self.weights = {k: v.float() for k, v in read_weights(path)[0].items()}
        layers = [
            "conv1",
            *(f"fire{n}/{part}" for n in range(2, 10) for part in ("conv1x1_1", "conv1x1_2", "conv3x3_2")),
        ]
        missing = [
            f"{layer}.{kind}"
            for layer in layers
            for kind in ("weight", "bias")
            if f"{layer}.{kind}" not in self.weights
        ]
        if missing:
            raise WeightsError(f"{path} has no {missing[0]}; expected SqueezeNet 1.0 in its authors' names.")

    def to(self, device: torch.device | str) -> Squeezenet:
        """Move the weights to a device, in place; returns itself."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.relu(F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), stride, padding))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Mean and spread of four layers at full and half size, (N, 3, H, W) in [0, 1] -> (N, 5120) float32.

        The convolutions run in bfloat16; not differentiable.
        """
        halves = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
        return torch.cat([self._pooled(images), self._pooled(halves)], 1)

    def _pooled(self, images: Tensor) -> Tensor:
        taps = self.maps(images, TAPS)
        return torch.cat([pooled for x in taps for pooled in (x.mean((2, 3)), x.std((2, 3)))], 1)

    def maps(self, images: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        """Feature maps of the named layers, (N, 3, H, W) in [0, 1] -> (N, C, h, w) float32 each; differentiable.

        Layer 1 is the first convolution, 2 to 9 are the fire modules.
        """
        x = images.flip(1) * 255 - images.new_tensor(MEANS_BGR).view(1, 3, 1, 1)
        x = self._conv(x.bfloat16(), "conv1", 2)
        taps = [x.float()] if 1 in layers else []
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for n in range(2, max(layers) + 1):
            squeezed = self._conv(x, f"fire{n}/conv1x1_1")
            x = torch.cat(
                [self._conv(squeezed, f"fire{n}/conv1x1_2"), self._conv(squeezed, f"fire{n}/conv3x3_2", 1, 1)], 1
            )
            if n in layers:
                taps.append(x.float())
            if n in (4, 8):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return taps


def ridge_predictions(features: np.ndarray, values: np.ndarray, groups: np.ndarray, folds: int = 5) -> np.ndarray:
    """Out-of-fold predictions of ridge regression on standardised features: nobody repeats a label it was given.

    The strength is the one with the least out-of-fold error on one row of each group.

    Args:
        features: (N, D).
        values: (N,), the labels to predict.
        groups: (N,) integers; rows of one group stay on one side of every fold, which is group % folds.
        folds: each row is predicted from the others' folds.

    Returns:
        (N,) predictions in the units of `values`.
    """
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    kernel = x @ x.T / x.shape[1]
    single = np.unique(groups, return_index=True)[1]

    def predict(rows: np.ndarray, strength: float) -> np.ndarray:
        predictions = np.empty(len(rows))
        for fold in range(folds):
            out = groups[rows] % folds == fold
            fit, rest = rows[~out], rows[out]
            base = values[fit].mean()
            dual = np.linalg.solve(kernel[np.ix_(fit, fit)] + strength * np.eye(len(fit)), values[fit] - base)
            predictions[out] = kernel[np.ix_(rest, fit)] @ dual + base
        return predictions

    strengths = (0.03, 0.1, 0.3, 1.0)
    best = min(strengths, key=lambda strength: np.square(predict(single, strength) - values[single]).sum())
    return predict(np.arange(len(values)), best)
