"""Guidance in Modular Diffusers: as a block of the denoising loop, and by `guided` around the pipeline."""

import diffusers
import pytest
import torch
from more_tiny_pipelines import PIPELINES, another_tiny_pipeline
from test_families import state_of, to_the_left
from tiny_pipelines import tiny_pipeline

from iqguide import RewardGuidance
from iqguide.guidance.diffusers import guided

modular = pytest.importorskip("iqguide.guidance.diffusers.modular", reason="this diffusers has no modular pipelines")
from diffusers.modular_pipelines import SequentialPipelineBlocks  # noqa: E402

GUIDANCE = RewardGuidance(to_the_left, scale=0.5, every=1)
BLOCKS = {
    "stable-diffusion-3": "StableDiffusion3AutoBlocks",
    "stable-diffusion-xl": "StableDiffusionXLAutoBlocks",
    "flux": "FluxAutoBlocks",
    "flux-2": "Flux2AutoBlocks",
    "qwen-image": "QwenImageAutoBlocks",
    "wan": "WanBlocks",
    "z-image": "ZImageAutoBlocks",
}
pytestmark = pytest.mark.filterwarnings("ignore:Guiders are currently an experimental feature")


@pytest.fixture(params=BLOCKS)
def parts(request):
    """Components, arguments of a call, and the blocks that make a picture of embeddings."""
    if not hasattr(diffusers, BLOCKS[request.param]):
        pytest.skip(f"this diffusers has no modular {request.param}")
    if not hasattr(diffusers, "SequentialPipelineBlocks"):
        pytest.skip("the modular pipelines of this diffusers take no components but those that they have loaded")
    pipe, inputs = (another_tiny_pipeline if request.param in PIPELINES else tiny_pipeline)(request.param)
    blocks = getattr(diffusers, BLOCKS[request.param])()
    blocks.sub_blocks.pop("text_encoder")
    return pipe.components, inputs, blocks


def pipeline(blocks, components):
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: components[name] for name in pipe.components.keys() & components.keys()})
    return pipe


def draw(pipe, inputs):
    """Pictures (N, 3, H, W), or the frames of one video."""
    pipe.set_progress_bar_config(disable=True)
    state = pipe(**inputs, generator=torch.Generator().manual_seed(0), output_type="pt")
    return state.get("videos")[0] if state.get("images") is None else state.get("images")


def test_a_block_guides_as_the_context_manager_does(parts):
    components, inputs, blocks = parts
    block = modular.RewardGuidanceBlock(GUIDANCE)
    with_block, without = pipeline(modular.with_guidance(blocks, block), components), pipeline(blocks, components)
    plain = draw(without, inputs)
    steered = draw(with_block, inputs)
    assert to_the_left(steered).mean() > to_the_left(plain).mean() + 0.01
    assert any(entry.skipped is None for entry in block.log)
    assert len(block.log) == inputs["num_inference_steps"]
    assert torch.equal(draw(with_block, inputs), steered)  # every call is a run of its own
    assert torch.equal(draw(without, inputs), plain)  # the given blocks, and their classes, are as they were
    size = {name: inputs[name] for name in ("height", "width")}
    with guided(without, GUIDANCE, **size) as run:
        assert torch.equal(draw(without, inputs), steered)
    assert len(run.log) == len(block.log)


def test_off_is_bit_identical_and_nothing_is_left(parts):
    components, inputs, blocks = parts
    plain = draw(pipeline(blocks, components), inputs)
    off = modular.RewardGuidanceBlock(RewardGuidance(to_the_left, scale=0))
    pipe = pipeline(modular.with_guidance(blocks, off), components)
    before = state_of(pipe)
    assert torch.equal(draw(pipe, inputs), plain)
    assert state_of(pipe) == before


def test_an_exception_leaves_the_scheduler_alone(parts):
    components, inputs, blocks = parts

    def broken(images):
        raise RuntimeError("reward broke")

    block = modular.RewardGuidanceBlock(RewardGuidance(broken))
    pipe = pipeline(modular.with_guidance(blocks, block), components)
    with pytest.raises(RuntimeError, match="reward broke"):
        draw(pipe, inputs)
    assert "step" not in vars(pipe.scheduler)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r'gradient="full"; expected "denoised" in a block, or guided'):
        modular.RewardGuidanceBlock(RewardGuidance(to_the_left, gradient="full"))
    with pytest.raises(ValueError, match='holds no block named "after_denoiser"'):
        modular.with_guidance(SequentialPipelineBlocks(), modular.RewardGuidanceBlock(GUIDANCE))
