"""Scores as text: for people, and as JSON. Needs no ComfyUI."""

import json
import math
from typing import Any


def number(score: float) -> str:
    """A score with three decimals, or two digits where these would be 0."""
    if not math.isfinite(score):
        return "no score"
    return f"{score:.3f}" if abs(score) >= 0.01 or score == 0 else f"{score:.2g}"


def to_json(value: Any) -> str:
    """JSON for people, in which a number that is not finite is null."""
    return json.dumps(_known(value), indent=1, allow_nan=False)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
