"""What every node that steers a MODEL asks for: how hard, when, and through which decoder."""

from comfy_api.latest import io

from ..guidance import RewardGuidance
from ..guidance.comfy.decoders import CHOICES


def steering_inputs() -> list[io.Input]:
    """Inputs strength, start_percent, end_percent and decoder."""
    return [
        io.Float.Input(
            "strength",
            default=RewardGuidance.scale,
            min=0.0,
            max=5.0,
            step=0.01,
            tooltip="How hard to push, about the same for any number of steps. 0 switches guidance off.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where in the sampling guidance begins. Early predictions are too blurred to be judged.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.98,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where guidance ends. What is pushed after that would go into the picture unfiltered.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(CHOICES),
            default=CHOICES[0],
            tooltip="What turns latents into pictures for the score. tiny: a TAESD file in models/vae_approx, "
            "fast. vae: the VAE, on a part of the picture; slow. auto: tiny if there is one.",
        ),
    ]


def window_problem(start_percent: float | None, end_percent: float | None) -> str | None:
    """What is wrong with a window, in one sentence; None for nothing. An end that is linked, None, is not known yet."""
    for name, percent in (("start_percent", start_percent), ("end_percent", end_percent)):
        if percent is not None and not 0 <= percent <= 1:  # ComfyUI leaves the limits of what is validated to us
            return f"{name} is {percent}; expected 0 to 1."
    if start_percent is None or end_percent is None or start_percent < end_percent:
        return None
    return f"start_percent is {start_percent} and end_percent {end_percent}; start must be below end."
