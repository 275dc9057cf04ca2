"""What a model checks at each call: shape, dtype and roughly the range of pictures.

Exactly their values are checked at the edges of the package (`images.check_images`).
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 0.05
"""How far outside [0, 1] values may be: rounding and sharpening stay within it, bytes and [-1, 1] do not."""


def check_pictures(images: Tensor, min_side: int = 32) -> None:
    """Refuse a tensor that is no batch of RGB pictures in [0, 1].

    A GPU is waited for once. A NaN pixel gives a NaN score for its picture and leaves the rest of the batch alone. The
    range is not looked at while a graph is traced (torch.compile, torch.export).

    Args:
        images: should be (N, 3, H, W), floating point, H and W at least `min_side`.
        min_side: smallest height or width that the model can take, in px.

    Raises:
        TypeError: not a tensor, or not floating point.
        ValueError: wrong shape, too small, or values clearly outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images are {type(images).__name__}; expected a tensor: iqguide.load_images(...) makes one.")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, 3, H, W).{_way_out(images)}")
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}; expected floating point in [0, 1]: images.float() / 255.")
    height, width = images.shape[2:]
    if min(height, width) < min_side:
        raise ValueError(f"images are {width}x{height} pixels; expected at least {min_side}x{min_side}: enlarge them.")
    if not torch.compiler.is_compiling() and not images.is_meta and images.numel():
        _check_range(images)


def _check_range(images: Tensor) -> None:
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if low < -SLACK or high > 1 + SLACK:
        hint = "divide bytes by 255" if high > 2 else "bring [-1, 1] to [0, 1] with images / 2 + 0.5"
        raise ValueError(f"images have values from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}.")


def _way_out(images: Tensor) -> str:
    if images.ndim == 3 and images.shape[0] == 3:
        return " Add a batch dimension: images[None]."
    if images.ndim == 4 and images.shape[3] == 3:
        return " Move the channels: images.movedim(-1, 1)."
    if images.ndim == 4 and images.shape[1] == 1:
        return " Make grey pictures RGB: images.expand(-1, 3, -1, -1)."
    if images.ndim == 4 and images.shape[1] == 4:
        return " Drop the alpha channel: images[:, :3]."
    return ""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and scores: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
