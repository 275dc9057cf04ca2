"""The damage of latent autoencoders, as ladders: latents that are quantised, noisy, sharpened or clipped; round trips.

The autoencoder is TAEF2 (MIT; https://github.com/madebyollin/taesd), small enough for a training step: its encoder and
decoder come from two files that the user names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from ..models.weights import load_strict, read_weights
from .distortions import Distortion, column, filter_separable, gaussian_kernels, normal_like

WIDTH, LATENTS = 64, 32


def _conv(before: int, after: int, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


class _Block(nn.Module):
    """Three convolutions around a shortcut; `pooled` adds a normalised branch in front."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        inner = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, inner, 1, bias=False), nn.GroupNorm(4, inner), nn.ReLU(),
                nn.Conv2d(inner, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, WIDTH), _Block()]
    for last in (False, False, True):
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(_Block(last) for _ in range(3))]
    return nn.Sequential(*layers, _conv(WIDTH, LATENTS))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(LATENTS, WIDTH), nn.ReLU()]
    for first in (True, False, False):
        layers += [*(_Block(first) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(WIDTH, 3))


class Taef2(nn.Module):
    """Images (N, 3, H, W) in [0, 1], sides multiples of 8, to latents (N, 32, H/8, W/8) and back; frozen.

    Args:
        encoder: state dict of the encoder.
        decoder: state dict of the decoder.

    Raises:
        WeightsError: a file is missing, damaged or of another network.
    """

    def __init__(self, encoder: Path, decoder: Path) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(), _decoder()
        for module, path in ((self.encoder, encoder), (self.decoder, decoder)):
            load_strict(module, {name: value.float() for name, value in read_weights(path)[0].items()}, path)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images."""
        return self.encoder(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, cut to [0, 1]."""
        return self.decoder(latents).clamp(0, 1)


def read_taef2(folder: Path) -> Taef2:
    """The network in taef2_encoder.pth and taef2_decoder.pth of a folder.

    Raises:
        WeightsError: as `Taef2`.
    """
    files = [folder / f"taef2_{part}.pth" for part in ("encoder", "decoder")]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise WeightsError(f"there is no {missing}; get it from github.com/madebyollin/taesd, or leave --taef2 out.")
    return Taef2(*files)


Change = Callable[[Tensor, Tensor, torch.Generator | None], Tensor]


def _quantised(latents: Tensor, step: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rounded to steps, in deviations of the latents."""
    step = column(step, latents) * latents.std((1, 2, 3), keepdim=True)
    return (latents / step).round() * step


def _noisy(latents: Tensor, std: Tensor, generator: torch.Generator | None) -> Tensor:
    """With Gaussian noise, in deviations of the latents."""
    return latents + column(std, latents) * latents.std((1, 2, 3), keepdim=True) * normal_like(latents, generator)


def _sharpened(latents: Tensor, amount: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unsharp masking in the latents."""
    kernels = gaussian_kernels(torch.full((len(latents),), 1.0), torch.full((len(latents),), 2.0))
    return latents + column(amount, latents) * (latents - filter_separable(latents, kernels))


def _softened(latents: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gaussian blur in the latents; sigma in their pixels."""
    return filter_separable(latents, gaussian_kernels(sigma, torch.full((len(latents),), 3.0)))


def _clipped(latents: Tensor, most: Tensor, generator: torch.Generator | None) -> Tensor:
    """No value further from 0 than `most` deviations."""
    most = column(most, latents) * latents.std((1, 2, 3), keepdim=True)
    return torch.maximum(torch.minimum(latents, most), -most)


CHANGES: dict[str, tuple[Change, tuple[float, ...]]] = {
    "latent_quantised": (_quantised, (0.5, 0.9, 1.4, 2, 2.8)),
    "latent_noise": (_noisy, (0.12, 0.25, 0.45, 0.7, 1)),
    "latent_sharpened": (_sharpened, (0.5, 0.8, 1.2, 1.8, 2.6)),
    "latent_softened": (_softened, (0.35, 0.5, 0.7, 1, 1.5)),
    "latent_clipped": (_clipped, (1.6, 1.2, 0.9, 0.65, 0.45)),
}
"""What is done to the latents, and five strengths from weak to severe."""


def round_trip(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], change: Change) -> Distortion:
    """A distortion of images whose sides are multiples of 8: encode, change the latents, decode."""

    def distortion(images: Tensor, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return decode(change(encode(images), strength, generator)).to(images)

    return distortion


def round_trips(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Distortion:
    """A distortion: encode and decode several times; between whole numbers of times a mixture."""

    def distortion(images: Tensor, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        steps = [images]
        for _ in range(math.ceil(float(times.max()))):
            steps.append(decode(encode(steps[-1])).to(images))
        low = times.floor().clamp(max=len(steps) - 1).long().tolist()
        pairs = [(steps[k][n], steps[min(k + 1, len(steps) - 1)][n]) for n, k in enumerate(low)]
        before, after = (torch.stack(side) for side in zip(*pairs, strict=True))
        return torch.lerp(before, after, column(times - times.floor(), images))

    return distortion


def ladders(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[str, tuple[Distortion, tuple[float, ...]]]:
    """Ladders of one autoencoder, as in `distortions.LADDERS`, for images whose sides are multiples of 8."""
    changed = {name: (round_trip(encode, decode, change), strengths) for name, (change, strengths) in CHANGES.items()}
    return changed | {"round_trips": (round_trips(encode, decode), (1, 2, 3, 4, 6))}
