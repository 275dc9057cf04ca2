"""What the autoencoder and its decoder are trained on besides the pixels: energy of the detail, a teacher's maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from iqguide.training.teacher import Squeezenet

LAYERS = (1, 2, 3, 5)


def detail_bands(images: Tensor, levels: int = 3) -> list[Tensor]:
    """Laplacian pyramid without its last, smooth level."""
    bands = []
    for _ in range(levels):
        low = F.avg_pool2d(images, 2)
        bands.append(images - F.interpolate(low, scale_factor=2, mode="bilinear"))
        images = low
    return bands


def log_energy_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 distance of the logarithm of the local RMS (8x8 windows at the band's own size) of the detail bands.

    A ratio, so faint texture counts as much as strong edges.
    """
    loss = decoded.new_zeros(())
    for a, b in zip(detail_bands(decoded), detail_bands(images), strict=True):
        log_a, log_b = (0.5 * (F.avg_pool2d(band.square(), 8, 4) + 1e-5).log() for band in (a, b))
        loss = loss + (log_a - log_b).abs().mean()
    return loss


def unit_length(maps: list[Tensor]) -> list[Tensor]:
    return [x * (x.square().sum(1, keepdim=True) + 1e-4).rsqrt() for x in maps]


def perceptual_loss(teacher: Squeezenet, decoded: Tensor, images: Tensor) -> Tensor:
    """Squared distance of the teacher's maps, each pixel's features at unit length, summed over the layers.

    That is Johnson et al. 2016 (arXiv 1603.08155) on maps of unit length, as in LPIPS (arXiv 1801.03924).
    """
    wanted = unit_length(teacher.maps(images, LAYERS))
    maps = unit_length(teacher.maps(decoded, LAYERS))
    return sum((a - b).square().sum(1).mean() for a, b in zip(maps, wanted, strict=True))
