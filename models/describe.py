"""What a model can say of a picture beyond one number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """A score and what it is made of."""

    score: float
    """As the model's call gives it."""
    parts: dict[str, dict[str, float]]
    """Named values in named groups: `pairs` (probability of the positive prompt, [0, 1]) for models that read antonym
    pairs; `dimensions` and `adjectives` (differences and cosines in [-1, 1]) for BPCLIP."""
