"""Settings of a training run, and their command-line flags."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _setting(default: Any, help: str) -> Any:  # noqa: A002 - argparse's own word
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run. Each default is written here and nowhere else."""

    data: Path = _setting(Path("data"), "folder with pristine/ and live-challenge/")
    out: Path = _setting(Path("runs/tiny"), "where checkpoints and the result go")
    init: Path | None = _setting(None, "start from this safetensors file instead of random weights")
    teacher: Path | None = _setting(
        None, "SqueezeNet 1.0 state dict that labels crops; without it people's scores alone"
    )
    denoised: Path | None = _setting(None, "cache of denoised predictions made by recipes/demo_generator/denoised.py")
    steps: int = _setting(2000, "optimiser steps")
    seed: int = _setting(0, "of everything random")
    lr: float = _setting(2e-3, "highest learning rate; warms up, then falls along a cosine")
    weight_decay: float = _setting(0.02, "of AdamW")
    ladders: int = _setting(4, "photographs a step that are degraded step by step")
    rungs: int = _setting(4, "crops per ladder, the clean one included")
    crop: int = _setting(128, "side of the ladder crops, px")
    opinions: int = _setting(6, "human-scored crops a step")
    opinion_crop: int = _setting(224, "side of the human-scored crops, px")
    aligned: int = _setting(4, "pictures a step whose gradient must point back to the clean picture")
    ranking_weight: float = _setting(1.0, "of the ranking of each ladder")
    severity_weight: float = _setting(0.3, "of the regression on how severe the degradation is")
    opinion_weight: float = _setting(1.0, "of the human scores")
    alignment_weight: float = _setting(1.0, "of the direction of the gradient")
    penalty_weight: float = _setting(0.02, "of the input-gradient penalty")
    denoised_weight: float = _setting(1.0, "of the ranking of denoised predictions")
    checkpoint_every: int = _setting(500, "steps between checkpoints")


def parse_config(arguments: list[str] | None = None) -> tuple[FinetuneConfig, bool]:
    """The settings that the flags describe, and whether to resume from the last checkpoint in `out`."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m iqguide.training.finetune")
    for item in dataclasses.fields(FinetuneConfig):
        kind = Path if "Path" in str(item.type) else {"int": int, "float": float}[str(item.type)]
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=kind,
            default=item.default,
            help=f"{item.metadata['help']} (%(default)s)",
        )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    return FinetuneConfig(**values), resume
