"""Real diffusers pipelines at tiny size, with random weights and no files: one factory per family.

Text encoders are left out; the pipelines get prompt embeddings instead. `tiny_pipeline(name)` returns the pipeline and
the arguments that a call needs, so that `pipe(**inputs)` makes one picture of 32 x 32 pixels in four steps.
"""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 32  # pixels; the autoencoders shrink by 2, so that latents are 16 x 16


def tiny_kl(channels: int = 4, **config: Any) -> AutoencoderKL:
    """A KL autoencoder with a shrink factor of 2 and random weights."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=SIZE,
        **config,
    )


def tiny_tae(channels: int = 4) -> AutoencoderTiny:
    """An AutoencoderTiny with a shrink factor of 2 and random weights."""
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def _unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SIZE // 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        **config,
    )


def _schedule() -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _stable_diffusion() -> tuple[DiffusionPipeline, dict[str, Any]]:
    pipe = StableDiffusionPipeline(
        vae=tiny_kl(),
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(**_schedule(), clip_sample=False, set_alpha_to_one=False),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt_embeds": torch.randn(1, 5, 8), "negative_prompt_embeds": torch.randn(1, 5, 8)}


def _stable_diffusion_xl() -> tuple[DiffusionPipeline, dict[str, Any]]:
    pipe = StableDiffusionXLPipeline(
        vae=tiny_kl(latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(0.9, 1.1, 1.2, 1.0), scaling_factor=0.5),
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        ),
        scheduler=EulerDiscreteScheduler(**_schedule(), timestep_spacing="leading"),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    inputs = {name: torch.randn(1, 5, 8) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return pipe, inputs | {f"{sign}pooled_prompt_embeds": torch.randn(1, 8) for sign in ("", "negative_")}


def _stable_diffusion_3() -> tuple[DiffusionPipeline, dict[str, Any]]:
    pipe = StableDiffusion3Pipeline(
        vae=tiny_kl(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609),
        transformer=SD3Transformer2DModel(
            sample_size=SIZE // 2,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
    )
    inputs = {name: torch.randn(1, 5, 8) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return pipe, inputs | {f"{sign}pooled_prompt_embeds": torch.randn(1, 8) for sign in ("", "negative_")}


def skip_before_torch_2_5(name: str) -> None:
    """For pipelines of diffusers that ask of attention, or of `torch.cpu`, what came with torch 2.5."""
    if not hasattr(torch.nn, "Buffer"):  # came with it too
        pytest.skip(f"diffusers' {name} needs torch 2.5")


def _flux() -> tuple[DiffusionPipeline, dict[str, Any]]:
    skip_before_torch_2_5("FluxPipeline")
    pipe = FluxPipeline(
        vae=tiny_kl(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )
    return pipe, {"prompt_embeds": torch.randn(1, 5, 8), "pooled_prompt_embeds": torch.randn(1, 8)}


_FACTORIES = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-xl": _stable_diffusion_xl,
    "stable-diffusion-3": _stable_diffusion_3,
    "flux": _flux,
}

FAMILIES = tuple(_FACTORIES)


def tiny_pipeline(family: str, *, seed: int = 0) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """A real pipeline of one of FAMILIES and the keyword arguments of a call.

    The weights depend on `seed` alone; torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe, inputs = _FACTORIES[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs | {"num_inference_steps": 4, "height": SIZE, "width": SIZE}


def prompted_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A Stable Diffusion that takes prompts: its tokenizer spells. The tokenizer's files are written into `folder`."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    config = CLIPTextConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **text, **special)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}', "utf-8")
    parts = tiny_pipeline("stable-diffusion")[0].components
    parts |= {"tokenizer": CLIPTokenizer.from_pretrained(folder), "text_encoder": CLIPTextModel(config).eval()}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def demo_like_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The same with what the demo generator has: pictures of 128 px, an AutoencoderTiny of 8 channels, velocities."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    vae = AutoencoderTiny(latent_channels=8, **widths, num_encoder_blocks=(0, 0, 0, 1), num_decoder_blocks=(1, 0, 0, 0))
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    parts = prompted_pipeline(folder).components | {"vae": vae.eval(), "unet": unet.eval(), "scheduler": scheduler}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def poison(pipe: DiffusionPipeline, *seeds: int) -> None:
    """Let the samples of these seeds start from NaN, so that the denoiser answers NaN for them alone."""
    prepare = pipe.prepare_latents

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        latents = prepare(*args, **kwargs)
        generators = next(value for value in (*args, *kwargs.values()) if isinstance(value, list))
        for index, generator in enumerate(generators):
            if generator.initial_seed() in seeds:
                latents[index] = torch.nan
        return latents

    pipe.prepare_latents = poisoned
