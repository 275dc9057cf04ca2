"""The settings of `RewardGuidance` held to their types and ranges, one sentence for each that does not fit."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

LARGEST = 1e6
"""No setting is larger: nothing beyond it means anything, and float32 must be able to square what comes of it."""

_WHOLE = {"every": 1, "samples": 1, "shift": 0, "seed": 0, "crop": 1, "chunk": 1}  # name -> lowest value
_POSITIVE = ("above 0", lambda value: value > 0)
_NOT_NEGATIVE = ("of 0 or more", lambda value: value >= 0)
_REAL = {
    "ema": _NOT_NEGATIVE,
    "noise": _NOT_NEGATIVE,
    "clip": _POSITIVE,
    "target_width": _POSITIVE,
    "max_drift": _POSITIVE,
}
_OPTIONAL = ("crop", "chunk", "max_drift")


def check_settings(guidance: Any) -> None:
    """Refuse a `RewardGuidance` that cannot guide.

    Raises:
        TypeError: the reward or the decoder cannot be called.
        ValueError: another setting is of the wrong type or outside its range.
    """
    _check_callables(guidance)
    if not _is_window(guidance.noise_window):
        raise ValueError(
            f"noise_window is {guidance.noise_window!r}; expected (start, stop) with 1 > start > stop > 0, for example"
            f" {type(guidance).noise_window}: guidance acts while the noise level falls from start to stop. At 1 all is"
            " noise."
        )
    if guidance.gradient not in ("denoised", "full"):
        raise ValueError(f"gradient is {guidance.gradient!r}; expected 'denoised' or 'full'.")
    if not _is_real(guidance.scale):
        raise ValueError(f"scale is {guidance.scale!r}; expected a finite number, or 0 to switch guidance off.")
    if guidance.target is not None and not _is_real(guidance.target):
        raise ValueError(f"target is {guidance.target!r}; expected a finite number, or None to push on for ever.")
    for name, low in _WHOLE.items():
        if not _is_whole(getattr(guidance, name)) or not low <= getattr(guidance, name) < 2**63:
            _refuse(guidance, name, f"a whole number of {low} or more")
    for name, (expected, fits) in _REAL.items():
        value = getattr(guidance, name)
        if not (_is_real(value) and fits(value)):
            _refuse(guidance, name, f"a number {expected}")


def _check_callables(guidance: Any) -> None:
    if not callable(guidance.reward):
        raise TypeError(
            f"reward is {guidance.reward!r}; expected a function or a model, from images (N, 3, H, W) to scores (N,):"
            " for example iqguide.create_model('tiny')."
        )
    decoder = guidance.decoder
    if decoder is not None and not callable(decoder) and not hasattr(decoder, "decode"):
        raise TypeError(f"decoder is {decoder!r}; expected a function from latents to images, or an autoencoder.")


def _refuse(guidance: Any, name: str, expected: str) -> None:
    value = getattr(guidance, name)
    if value is None and name in _OPTIONAL:
        return
    expected += ", or None for no limit" if name in _OPTIONAL else ""
    raise ValueError(f"{name} is {value!r}; expected {expected}.")


def _is_window(window: object) -> bool:
    numbers = isinstance(window, (tuple, list)) and all(_is_real(level) for level in window)
    return numbers and len(window) == 2 and 1 > window[0] > window[1] > 0


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
