"""Teach the backbone of a fresh `bpclip-mini` to see: match a SqueezeNet's feature maps on photographs.

    accelerate launch -m iqguide.training.distill_bpclip --data DATA --teacher squeezenet.pt --out runs/mini-eyes

As training/distill.py does for `tiny`, and for the same reason. Only what the network has learnt is kept, no weight of
the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import FOR_PEOPLE, one_sentence
from ..models.bpclip import BPCLIP
from ..models.create import create_model
from ..models.hub import save_model
from .distill import DistillSettings, claim, imitate
from .loop import Diverged
from .options import parse_settings
from .run_record import only_run

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


@dataclass(frozen=True, kw_only=True)
class DistillBackboneSettings(DistillSettings):
    """One run that teaches the backbone of `bpclip-mini`."""

    steps: Annotated[int, "optimiser steps"] = 1300


def distil(settings: DistillBackboneSettings) -> None:
    """Train with the settings and write OUT/bpclip-mini.safetensors; only its backbone has learnt."""
    claim(settings, "bpclip-mini.safetensors")
    torch.manual_seed(settings.seed)
    model = create_model("bpclip-mini", weights="random", seed=settings.seed).requires_grad_(False)
    model.backbone.train().requires_grad_(True)
    path = settings.out / "bpclip-mini.safetensors"
    with only_run(settings.out):
        imitate(Student(model), FIRES, settings, lambda trained: save_model(trained.model, path))


def main(arguments: list[str] | None = None) -> None:
    """Distil as the command line says."""
    settings = parse_settings(DistillBackboneSettings, "distill_bpclip", arguments)
    with one_sentence((*FOR_PEOPLE, Diverged)):
        distil(settings)


if __name__ == "__main__":
    main()
