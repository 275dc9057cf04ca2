"""What steering by a reward tends to buy: high-frequency energy and saturation, against clean photographs' range.

python benchmarks/artefacts.py --data DIR      # measure the range on clean crops, save it
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from photographs import clean_crops, split
from torch import Tensor

RANGES = Path(__file__).parent / "results" / "clean_ranges.json"
PERCENTILES = (2.5, 97.5)


def _spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the luma above half the Nyquist frequency, and of all that is not the mean; (N,) each, float64."""
    luma = (images.double() * torch.tensor([0.299, 0.587, 0.114]).double().view(1, 3, 1, 1)).sum(1)
    h, w = luma.shape[-2:]
    # without a window the jump between opposite edges would count as high frequency
    window = torch.hann_window(h, dtype=torch.float64)[:, None] * torch.hann_window(w, dtype=torch.float64)
    centred = (luma - (luma * window).sum((1, 2), keepdim=True) / window.sum()) * window
    power = torch.fft.fft2(centred).abs().square() / (h * w * window.square().sum())
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w))
    return power[:, radius > 0.25].sum(1), power.sum((1, 2))


def hf_energy(images: Tensor) -> Tensor:
    """log10 of the luma variance above half the Nyquist frequency; images (N, 3, H, W) in [0, 1] -> (N,)."""
    return (_spectrum(images)[0] + 1e-9).log10()


def hf_share(images: Tensor) -> Tensor:
    """log10 of the share of the luma variance above half the Nyquist frequency."""
    high, total = _spectrum(images)
    return ((high + 1e-9) / (total + 1e-6)).log10()


def chroma(images: Tensor) -> Tensor:
    """Mean of the largest minus the smallest channel."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation."""
    return ((images.amax(1) - images.amin(1)) / images.amax(1).clamp_min(1 / 255)).mean((1, 2))


MEASURES = {"hf_energy": hf_energy, "hf_share": hf_share, "chroma": chroma, "saturation": saturation}


def ranges() -> dict[str, tuple[float, float]]:
    """The saved 2.5-97.5 percentile range of every measure over clean 128-pixel crops."""
    return {name: tuple(limits) for name, limits in json.loads(RANGES.read_text())["ranges"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pristine/")
    parser.add_argument("--crops", type=int, default=8, help="per photograph")
    args = parser.parse_args()
    fit, held_out = split(args.data)
    images = clean_crops(fit + held_out, args.crops, seed=3)
    levels = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    values = {name: torch.cat([function(i).double() for i in images.split(64)]) for name, function in MEASURES.items()}
    result = {
        "crops": len(images),
        "percentiles": PERCENTILES,
        "ranges": {name: value.quantile(levels).tolist() for name, value in values.items()},
    }
    RANGES.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
