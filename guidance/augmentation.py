"""Augmentations of one latent, over which a gradient is averaged so that it does not follow one pixel grid.

Each is drawn from a generator and is the same for all samples of a batch, so what happens to a sample does not
depend on which others it is batched with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Noise, crop and shift of a latent and its picture; the default one changes nothing."""

    noise: Tensor | None = None
    """Added to the latent; (1, ...), broadcast over the batch."""

    window: tuple[int, int, int] | None = None
    """Top, left and size of the square of the latent that is decoded alone; None for all of it."""

    shift: tuple[int, int, int] = (0, 0, 0)
    """Pixels that the picture loses at the top and at the left, and in all along each axis."""

    def of_latent(self, latent: Tensor) -> Tensor:
        """The latent augmented; differentiable."""
        if self.noise is not None:
            latent = latent + self.noise
        if self.window is not None:
            top, left, size = self.window
            latent = latent[..., top : top + size, left : left + size]
        return latent

    def of_images(self, images: Tensor) -> Tensor:
        """The picture (N, 3, H, W) augmented; differentiable."""
        top, left, lost = self.shift
        if lost == 0:
            return images
        height, width = images.shape[-2:]
        return images[..., top : height - lost + top, left : width - lost + left]


def draw_augmentations(
    latent: Tensor, generator: torch.Generator, *, samples: int, noise: float, crop: int | None, shift: int
) -> list[Augmentation]:
    """Draw augmentations of a latent.

    Args:
        latent: (N, C, h, w), or any shape if `crop` is None; gives size, dtype and device.
        generator: a CPU generator.
        samples: number of augmentations.
        noise: standard deviation of the Gaussian noise, in latent units.
        crop: side of the square decoded, in latent cells; None for the whole latent.
        shift: up to how many pixels the picture is shifted under the reward.

    Returns:
        `samples` of them.

    Raises:
        ValueError: if `crop` is set and the latent is not (N, C, h, w).
    """
    if crop is not None and latent.ndim != 4:
        raise ValueError(
            f"crop={crop} needs latents (N, C, h, w), but these are {tuple(latent.shape)} (packed or video latents);"
            " set crop=None."
        )
    return [_draw_one(latent, noise, crop, shift, generator) for _ in range(samples)]


def _draw_one(latent: Tensor, noise: float, crop: int | None, shift: int, generator: torch.Generator) -> Augmentation:
    added, window, offset = None, None, (0, 0, 0)
    if noise > 0:
        added = torch.randn((1, *latent.shape[1:]), generator=generator).mul_(noise).to(latent)
    if crop is not None and crop < min(latent.shape[-2:]):
        top, left = (_draw_below(side - crop + 1, generator) for side in latent.shape[-2:])
        window = (top, left, crop)
    if shift > 0:
        offset = (_draw_below(shift + 1, generator), _draw_below(shift + 1, generator), shift)
    return Augmentation(added, window, offset)


def _draw_below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
