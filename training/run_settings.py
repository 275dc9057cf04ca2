"""The settings that every resumable training has, and how one is started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ..images import MIN_SIDE
from .options import SEEDS, Parser, check_ranges

WORKING_SIDES = {"koniq-10k": 384, "koniq-10k-raw": 384, "spaq": 448}
"""Short side, px, at which papers train and test on a data set: KonIQ-10k at 512x384, SPAQ at 448."""
WORKING_SIDE = 512
"""That of all others, so that a crop is a fair share of the picture whose score it is given."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every resumable run has: where its scored pictures are, how long it learns, and what it leaves."""

    RANGES: ClassVar[dict] = {
        **dict.fromkeys(("steps", "accumulate", "checkpoint_every", "warmup"), (1, math.inf)),
        **dict.fromkeys(("workers", "restarts", "epochs", "lr", "weight_decay", "clip"), (0, math.inf)),
        **dict.fromkeys(("last_lr", "beta2", "ema"), (0, 1)),
        "validation": (0, 0.9),
        "seed": SEEDS,
    }
    """Lowest and highest value of a setting."""

    dataset: Annotated[str, "scored pictures: a name as `iqguide evaluate` takes"] = ""
    root: Annotated[Path | None, "folder of that data set"] = None
    scale: Annotated[tuple[float, float] | None, "published scores of the worst and the best quality, two numbers"] = (
        None
    )
    lower_is_better: Annotated[bool, "the lowest score, of --scale or of the table, is that of the best quality"] = (
        False
    )
    split: Annotated[
        str,
        "which pictures are held out: the publisher's test part, else the first seeded split; a number for that seeded "
        "split, ten for a run on each of ten, pyiqa[-N] for IQA-PyTorch's, or a json file that lists the test pictures",
    ] = ""
    short_side: Annotated[
        int | None,
        "short side to which scored pictures are reduced first, px; 0 for never; by default 384 for KonIQ-10k, 448 for "
        "SPAQ and 512 for others",
    ] = None
    steps: Annotated[int, "optimiser steps"] = 2000
    epochs: Annotated[float, "passes over the pictures, in place of steps; 0: steps count"] = 0.0
    accumulate: Annotated[int, "batches per optimiser step"] = 1
    seed: Annotated[int, "of everything random"] = 0
    lr: Annotated[float, "highest learning rate; warms up, then falls along a cosine"] = 2e-3
    warmup: Annotated[int, "steps until the highest learning rate"] = 100
    last_lr: Annotated[float, "share of the learning rate that is left at the end"] = 0.02
    restarts: Annotated[int, "times that the learning rate jumps back to its highest and falls again"] = 0
    weight_decay: Annotated[float, "of AdamW"] = 0.02
    beta2: Annotated[float, "of AdamW"] = 0.99
    clip: Annotated[float, "longest gradient"] = 2.0
    ema: Annotated[float, "decay of the running average of the weights, which is the result; 0 for none"] = 0.998
    mixed_precision: Annotated[str, "no, bf16 or fp16"] = "bf16"
    workers: Annotated[int, "processes that make batches, besides the one that trains"] = 0
    tracker: Annotated[str, "tensorboard or wandb, through accelerate"] = ""
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 500
    validation: Annotated[float, "share of the scored pictures that choose the best checkpoint; 0: the last one"] = 0.0
    measure: Annotated[bool, "measure the result on the held-out pictures at the end"] = True

    def __post_init__(self) -> None:
        check_choices(self, {"mixed_precision": ("no", "bf16", "fp16"), "tracker": ("", "tensorboard", "wandb")})
        check_ranges(self, self.RANGES)
        if bool(self.dataset) != bool(self.root):
            raise ValueError("dataset and root belong together; give both or none.")
        if (self.scale or self.lower_is_better) and not self.dataset:
            raise ValueError("scale and lower_is_better are those of a data set; give dataset and root too.")
        if self.short_side is not None and not (self.short_side == 0 or MIN_SIDE <= self.short_side < math.inf):
            raise ValueError(f"short_side is {self.short_side}; expected 0 or {MIN_SIDE} or more.")

    @property
    def working_side(self) -> int:
        """Short side in px to which scored pictures are reduced, in training and in measuring; 0 for never."""
        return WORKING_SIDES.get(self.dataset, WORKING_SIDE) if self.short_side is None else self.short_side


def check_choices(settings: object, choices: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError where an attribute is none of the choices of its name."""
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            listed = ", ".join(repr(choice) for choice in known)
            raise ValueError(f"{name} is {getattr(settings, name)!r}; expected one of {listed}.")


@dataclass(frozen=True)
class Started:
    """How a run is started."""

    resume: bool = False
    """Go on from the last checkpoint."""
    overwrite: bool = False
    """Replace the results of a former run."""


def add_start_flags(parser: Parser) -> None:
    """--resume and --overwrite, of which one can be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    group.add_argument("--overwrite", action="store_true", help="replace the results of a former run in --out")
