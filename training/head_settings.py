"""Settings of the fit of the head of `tiny`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ..images import MIN_SIDE
from .options import SEEDS, check_ranges


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """One fit of the head."""

    RANGES: ClassVar[dict] = {
        **dict.fromkeys(("steps", "batch", "each", "large", "each_second"), (1, math.inf)),
        **dict.fromkeys(("lr", "slope", "each_good", "mos_weight", "step_weight", "back_weight"), (0, math.inf)),
        **dict.fromkeys(("prediction_weight", "second_weight"), (0, math.inf)),
        **dict.fromkeys(("crop", "large_crop", "second_crop"), (MIN_SIDE, math.inf)),
        "dropout": (0, 0.99),
        "seed": SEEDS,
    }
    """Lowest and highest value of a setting."""
    FORMER_NAMES: ClassVar[dict] = {"mos_weight": "opinion_weight"}

    data: Annotated[Path, "folder with pristine/ and live-challenge/"]
    init: Annotated[Path, "safetensors file whose head is to be fitted anew"]
    out: Annotated[Path, "folder for tiny.safetensors and run.json"]
    denoised: Annotated[Path | None, "cache made by recipes/demo_generator/denoised.py"] = None
    second_opinion: Annotated[
        Path | None, "file of a bpclip-mini from the same part of the data, for a second score"
    ] = None
    steps: Annotated[int, "optimiser steps"] = 1500
    batch: Annotated[int, "ladders a step"] = 256
    lr: Annotated[float, "highest learning rate"] = 1e-3
    dropout: Annotated[float, "of the hidden layer"] = 0.3
    slope: Annotated[float, "ranking margin per unit of severity"] = 1.0
    mos_weight: Annotated[float, "of people's scores"] = 1.0
    step_weight: Annotated[float, "of the order of neighbours"] = 1.0
    back_weight: Annotated[float, "of the way back to the clean"] = 0.3
    prediction_weight: Annotated[float, "of denoised predictions"] = 0.3
    second_weight: Annotated[float, "of the second score"] = 0.6
    crop: Annotated[int, "side of the ladder crops, px"] = 128
    each: Annotated[int, "crops per photograph"] = 4
    each_good: Annotated[int, "crops per good scored one; 0 for none"] = 1
    large_crop: Annotated[int, "side of the large ladder crops, px"] = 384
    large: Annotated[int, "photographs with a large crop"] = 40
    second_crop: Annotated[int, "side of the second's crops, px"] = 224
    each_second: Annotated[int, "these crops per photograph"] = 5
    seed: Annotated[int, "of everything random"] = 0
    overwrite: Annotated[bool, "replace the result of a former run in --out"] = False

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)
