"""Guidance as a block of a Modular Diffusers pipeline: `with_guidance(blocks, RewardGuidanceBlock(guidance))`."""

import copy
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from ..evaluation import Evaluation
from ..reward_guidance import RewardGuidance
from .decoders import local_tiny
from .guided_step import GuidedStep

__all__ = ["RewardGuidanceBlock", "with_guidance"]


class RewardGuidanceBlock(ModularPipelineBlocks):
    """One block of a denoising loop, between the denoiser and the block that steps the scheduler.

    It guides the scheduler's next `step` and no other, as `guided` does for all of a pipeline call.

    Args:
        guidance: settings; without a decoder of its own, `decoders.find_decoder` finds one for the pipeline.

    Raises:
        ValueError: for `gradient="full"`, which has to see the denoiser being evaluated; and, when the loop runs, if
            the scheduler or the layout of the pipeline's latents is not known.
    """

    model_name = "reward_guidance"

    def __init__(self, guidance: RewardGuidance) -> None:
        super().__init__()
        if guidance.needs_graph:
            raise ValueError(
                'got gradient="full"; expected "denoised" in a block, or guided(pipe, guidance) around it.'
            )
        self.guidance = guidance
        self._step: _OneCall | None = None

    @property
    def description(self) -> str:
        """What the host prints about this block."""
        return "Pushes the denoised prediction uphill in a reward before the scheduler steps."

    @property
    def inputs(self) -> list[InputParam]:
        """The size of the pictures, which packed latents do not tell."""
        return [InputParam("height"), InputParam("width")]

    @property
    def log(self) -> list[Evaluation]:
        """The evaluations of the latest pipeline call."""
        return self._step.log if self._step is not None else []

    def __deepcopy__(self, memo: dict[int, Any]) -> "RewardGuidanceBlock":
        """Pipelines copy their blocks; the reward must not be doubled, nor the log lost."""
        return self

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        """Called in each round of the loop; changes nothing yet."""
        if i == 0 or self._step is None or self._step.scheduler is not components.scheduler:
            height = block_state.height or getattr(components, "default_height", None)
            width = block_state.width or getattr(components, "default_width", None)
            self._step = _OneCall(components, self.guidance, height=height, width=width, load_tiny=local_tiny)
        self._step.last = i + 1 == len(block_state.timesteps)
        self._step.install()
        return components, block_state


class _OneCall(GuidedStep):
    """A guided step that takes itself away after each call."""

    last = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().__call__(*args, **kwargs)
        except BaseException:
            self.remove()
            raise
        self.uninstall()
        if self.last:
            self.remove()
            self.warn_if_idle()
        return result


def with_guidance(blocks: ModularPipelineBlocks, block: RewardGuidanceBlock) -> ModularPipelineBlocks:
    """Blocks with guidance in every denoising loop.

    Args:
        blocks: such as `StableDiffusionXLAutoBlocks()`; they are not changed.
        block: is put before each block named "after_denoiser".

    Returns:
        A copy of the blocks. `block.log` holds the evaluations of the latest call of a pipeline made of it.

    Raises:
        ValueError: if there is no block named "after_denoiser".

    Example:
        >>> block = RewardGuidanceBlock(RewardGuidance(reward))  # doctest: +SKIP
        >>> pipe = with_guidance(StableDiffusionXLAutoBlocks(), block).init_pipeline("...")  # doctest: +SKIP
    """
    guided = copy.deepcopy(blocks)  # classes share the blocks that they hold among their instances
    if not _insert(guided, block):
        raise ValueError(
            f'{type(blocks).__name__} holds no block named "after_denoiser"; expected blocks with a denoising loop. '
            "Insert the RewardGuidanceBlock before the block that steps the scheduler yourself."
        )
    return guided


def _insert(blocks: ModularPipelineBlocks, block: RewardGuidanceBlock) -> bool:
    names = list(blocks.sub_blocks)
    if "after_denoiser" in names:
        blocks.sub_blocks.insert("reward_guidance", block, names.index("after_denoiser"))
        return True
    return any([_insert(inner, block) for inner in blocks.sub_blocks.values()])
