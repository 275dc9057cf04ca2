"""Steering a diffusion or flow-matching sampler by the gradient of a reward. It needs neither diffusers nor ComfyUI.

Adapters: `guidance.diffusers` (`guided`, `RewardGuidanceCallback`). They are not imported here.
"""

from ..rewards import Reward
from .evaluation import Evaluation
from .gradient import Decoder, reward_gradient
from .reward_guidance import GuidanceRun, RewardGuidance

__all__ = ["Decoder", "Evaluation", "GuidanceRun", "Reward", "RewardGuidance", "reward_gradient"]
