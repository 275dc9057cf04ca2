"""One picture of a data set, and what people said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

PARTS = {"training": "train", "train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""What publishers call the parts of their sets."""


@dataclass(frozen=True)
class Sample:
    """One picture and what people said of it."""

    image: Path
    """Its file."""
    mos: float
    """The score as published; some are worse the higher they are."""
    std: float | None = None
    """Standard deviation of the single ratings, as published."""
    reference: Path | None = None
    """The undistorted picture, where there is one."""
    group: str = ""
    """Pictures of one group stay on one side of a split: those of one reference, or of one prompt."""
    part: str | None = None
    """"train", "validation" or "test" where the publisher has split the set."""
    normalised_mos: float = math.nan
    """The score brought to [0, 1], higher is better."""
