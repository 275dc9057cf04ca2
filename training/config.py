"""Settings of a training run, and their command-line flags."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args, get_type_hints


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run. Each default is written here and nowhere else; the second part of a type is its help."""

    data: Annotated[Path, "folder with pristine/ and live-challenge/"] = Path("data")
    out: Annotated[Path, "where checkpoints and the result go"] = Path("runs/tiny")
    init: Annotated[Path | None, "start from this safetensors file instead of random weights"] = None
    teacher: Annotated[Path | None, "SqueezeNet 1.0 state dict that labels crops; without it people's scores alone"] = (
        None
    )
    denoised: Annotated[Path | None, "cache of denoised predictions made by recipes/demo_generator/denoised.py"] = None
    steps: Annotated[int, "optimiser steps"] = 2000
    seed: Annotated[int, "of everything random"] = 0
    lr: Annotated[float, "highest learning rate; warms up, then falls along a cosine"] = 2e-3
    weight_decay: Annotated[float, "of AdamW"] = 0.02
    ladders: Annotated[int, "photographs a step that are degraded step by step"] = 6
    rungs: Annotated[int, "crops per ladder, the clean one included"] = 4
    crop: Annotated[int, "side of the ladder crops, px"] = 128
    opinions: Annotated[int, "human-scored crops a step"] = 8
    opinion_crop: Annotated[int, "side of the human-scored crops, px"] = 224
    aligned: Annotated[int, "pictures a step whose gradient must point back to the clean picture"] = 4
    ranking_weight: Annotated[float, "of the ranking of each ladder"] = 1.0
    severity_weight: Annotated[float, "of the regression on how severe the degradation is"] = 0.3
    opinion_weight: Annotated[float, "of the human scores"] = 1.0
    alignment_weight: Annotated[float, "of the direction of the gradient"] = 1.0
    penalty_weight: Annotated[float, "of the input-gradient penalty"] = 0.02
    attack_weight: Annotated[float, "of what a climb up the gradient gains without restoring the picture"] = 1.0
    attack_step: Annotated[float, "RMS of the longest climb, pictures in [0, 1]"] = 0.06
    denoised_weight: Annotated[float, "of the ranking of denoised predictions"] = 1.0
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 500


def parse_config(arguments: list[str] | None = None) -> tuple[FinetuneConfig, bool]:
    """Read the command line; every field of `FinetuneConfig` is a flag.

    Args:
        arguments: what to read; None for the process' own.

    Returns:
        The settings, and whether to resume from the last checkpoint in `out`.
    """
    parser = argparse.ArgumentParser(prog="accelerate launch -m iqguide.training.finetune")
    hints = get_type_hints(FinetuneConfig, include_extras=True)
    for item in dataclasses.fields(FinetuneConfig):
        kind, text = get_args(hints[item.name])
        kind = (get_args(kind) or (kind,))[0]  # `Path | None` is read as a Path
        flag = f"--{item.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=item.default, help=f"{text} (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    return FinetuneConfig(**values), resume
