"""One unit for what training works on, whatever the model: that of `tiny`, which has no bounds."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

RAW_UNIT = 14.0
"""Of MOS; see `raw_units`."""
Values = TypeVar("Values", float, np.ndarray, Tensor)


def raw_units(mos: Values) -> Values:
    """MOS 0 to 100 -> raw units, where a clean photograph is near 0 and a ruined one near -4.5."""
    return (mos - 75.0) / RAW_UNIT
