"""Guidance in diffusers: `guided` around pipeline calls, `RewardGuidanceCallback` inside one, a modular block."""

from .guided import RewardGuidanceCallback, guided

__all__ = ["RewardGuidanceCallback", "guided"]
