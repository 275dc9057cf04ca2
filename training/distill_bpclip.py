"""Teach the backbone of a fresh `bpclip-mini` to see: match a SqueezeNet's feature maps on photographs.

    accelerate launch -m iqguide.training.distill_bpclip --data DATA --teacher squeezenet.pt --out runs/mini-eyes

As training/distill.py does for `tiny`, and for the same reason. Only what the network has learnt is kept, no weight of
the teacher.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from ..errors import one_sentence
from ..models.bpclip import BPCLIP
from ..models.create import create_model
from ..models.hub import save_model
from .distill import RANGES, imitate, parser

FIRES = (3, 7, 9, 9)  # of strides 4, 8, 16 and 16, for the stages of strides 4 to 32
FIRE_CHANNELS = (128, 384, 512, 512)


class Student(nn.Module):
    """A BPCLIP's backbone with a 1x1 convolution from each of its last four maps to the teacher's channels."""

    def __init__(self, model: BPCLIP) -> None:
        super().__init__()
        self.model = model
        channels = model.backbone.feature_info.channels()[1:]
        self.probes = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(channels, FIRE_CHANNELS, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Guesses of the teacher's maps for images (N, 3, H, W) in [0, 1]."""
        return [probe(x) for probe, x in zip(self.probes, self.model.maps(images)[1:], strict=True)]


def distil(args: argparse.Namespace) -> None:
    """Train with the settings of the flags and write OUT/bpclip-mini.safetensors; only its backbone has learnt."""
    torch.manual_seed(args.seed)
    model = create_model("bpclip-mini", weights="random", seed=args.seed).requires_grad_(False)
    model.backbone.train().requires_grad_(True)
    imitate(
        Student(model), FIRES, args, lambda trained: save_model(trained.model, args.out / "bpclip-mini.safetensors")
    )


def main(arguments: list[str] | None = None) -> None:
    """Distil as the command line says."""
    args = parser("distill_bpclip", "bpclip-mini.safetensors", 1300).parse_within(RANGES, arguments)
    with one_sentence():
        distil(args)


if __name__ == "__main__":
    main()
