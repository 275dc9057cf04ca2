"""What is pooled over a picture: mean and spread of maps, and what single pixels say of tone and colour."""

from __future__ import annotations

import torch
from torch import Tensor

TONES = 6
"""Maps of `tone_and_colour`."""


def mean_and_spread(features: Tensor) -> Tensor:
    """Mean and standard deviation over the picture, (N, C, h, w) -> (N, 2C)."""
    variance, mean = torch.var_mean(features, (2, 3), correction=0)
    return torch.cat([mean, (variance + 1e-4).sqrt()], 1)


def tone_and_colour(pixels: Tensor) -> Tensor:
    """What one pixel alone says: brightness, two colour differences, colourfulness, highlights and shadows.

    (N, 3, H, W) in [0, 1] -> (N, 6, H, W). The convolutions are normalised and tell these poorly.
    """
    red, green, blue = pixels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = (luma, red - luma, blue - luma)
    colourfulness = (planes[1].square() + planes[2].square() + 1e-3).sqrt()
    return torch.stack([*planes, colourfulness, luma**8, (1 - luma) ** 8], 1)
