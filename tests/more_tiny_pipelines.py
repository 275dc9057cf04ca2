"""Real diffusers pipelines at tiny size beyond those of `tiny_pipelines`: one factory per pipeline class.

`another_tiny_pipeline(name)` returns the pipeline and the arguments that a call needs, as `tiny_pipeline` does. Text
encoders are left out; the pipelines get embeddings instead.
"""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import SIZE, skip_before_torch_2_5, tiny_kl, tiny_pipeline

Made = tuple[DiffusionPipeline, dict[str, Any]]
STRENGTH = {"strength": 0.9}


def _flux_kl() -> diffusers.AutoencoderKL:
    return tiny_kl(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)


def _flow(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


def _without(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def _embeds() -> dict[str, torch.Tensor]:
    """Embeddings for and against."""
    return {f"{sign}prompt_embeds": torch.randn(1, 5, 8) for sign in ("", "negative_")}


def _masks(name: str = "prompt_attention_mask") -> dict[str, torch.Tensor]:
    return {f"{sign}{name}": torch.ones(1, 5, dtype=torch.bool) for sign in ("", "negative_")}


# --- Stable Diffusion's kin ---


def _picture() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE)


def _xl(cls: type, **more: Any) -> Made:
    pipe, inputs = tiny_pipeline("stable-diffusion-xl")
    return cls(**pipe.components | more, add_watermarker=False), inputs


def _another_unet(pipe: DiffusionPipeline, **changes: Any) -> diffusers.UNet2DConditionModel:
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    return diffusers.UNet2DConditionModel(**config | changes)


def _sdxl_img2img() -> Made:
    pipe, inputs = _xl(diffusers.StableDiffusionXLImg2ImgPipeline)
    return pipe, inputs | STRENGTH | {"image": _picture()}


def _sdxl_refiner() -> Made:
    """The second half of an ensemble of denoisers: latents in, an aesthetic score beside the size."""
    pipe, _ = tiny_pipeline("stable-diffusion-xl")
    unet = _another_unet(pipe, projection_class_embeddings_input_dim=8 + 5 * 4)
    pipe, inputs = _xl(diffusers.StableDiffusionXLImg2ImgPipeline, unet=unet, requires_aesthetics_score=True)
    return pipe, inputs | {"image": torch.randn(1, 4, SIZE // 2, SIZE // 2), "denoising_start": 0.3}


def _sdxl_inpaint() -> Made:
    pipe, inputs = _xl(diffusers.StableDiffusionXLInpaintPipeline)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 4:28, 2:30] = 1
    return pipe, inputs | STRENGTH | {"image": _picture(), "mask_image": mask}


def _sdxl_controlnet() -> Made:
    pipe, _ = tiny_pipeline("stable-diffusion-xl")
    controlnet = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    for module in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.1)  # they begin with zeros, which would condition nothing
    pipe, inputs = _xl(diffusers.StableDiffusionXLControlNetPipeline, controlnet=controlnet)
    return pipe, inputs | {"image": _picture()}


def _lcm() -> Made:
    pipe, inputs = tiny_pipeline("stable-diffusion")
    parts = pipe.components | {
        "unet": _another_unet(pipe, time_cond_proj_dim=8),
        "scheduler": diffusers.LCMScheduler.from_config(pipe.scheduler.config),
    }
    pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    return pipe, {"prompt_embeds": inputs["prompt_embeds"]}


def _pixart_sigma() -> Made:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, norm_num_groups=1,
        cross_attention_dim=16, sample_size=SIZE // 2, caption_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    pipe = diffusers.PixArtSigmaPipeline(
        vae=tiny_kl(scaling_factor=0.5),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
        **_without("text_encoder", "tokenizer"),
    )
    return pipe, _embeds() | _masks() | {"negative_prompt": None, "use_resolution_binning": False}


# --- flow matching ---


def _chroma() -> Made:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=8,
        approximator_layers=1,
    )  # fmt: skip
    pipe = diffusers.ChromaPipeline(
        vae=_flux_kl(), transformer=transformer, scheduler=_flow(), **_without("text_encoder", "tokenizer")
    )
    return pipe, _embeds() | _masks()


def _flux_2() -> Made:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        sample_size=SIZE,
    )  # fmt: skip
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    pipe = diffusers.Flux2Pipeline(
        vae=vae, transformer=transformer, scheduler=_flow(), **_without("text_encoder", "tokenizer")
    )
    return pipe, {"prompt_embeds": torch.randn(1, 5, 8)}


def _z_image() -> Made:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[4, 4, 8], axes_lens=[64, 32, 32],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.normal_(parameter)  # made empty
    pipe = diffusers.ZImagePipeline(
        vae=_flux_kl(), transformer=transformer, scheduler=_flow(), **_without("text_encoder", "tokenizer")
    )
    embeds = {f"{sign}prompt_embeds": [torch.randn(5, 8)] for sign in ("", "negative_")}
    return pipe, embeds


def _lumina_2() -> Made:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=16, hidden_size=32, num_layers=1, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 8), axes_lens=(32, 32, 32),
        cap_feat_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(  # the pipeline takes a shrink factor of 8 for granted
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=16,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    pipe = diffusers.Lumina2Pipeline(
        vae=vae, transformer=transformer, scheduler=_flow(), **_without("text_encoder", "tokenizer")
    )
    return pipe, _embeds() | _masks()


def _hidream() -> Made:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[8, 8], text_emb_dim=8, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=[0, 1], force_inference_output=True,
    )  # fmt: skip
    texts = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3", "_4")]
    pipe = diffusers.HiDreamImagePipeline(
        vae=_flux_kl(), transformer=transformer, scheduler=_flow(), **_without(*texts)
    )
    pipe.default_sample_size = SIZE // 2  # the pipeline enlarges smaller pictures to this area
    inputs = {}
    for sign in ("", "negative_"):
        inputs[f"{sign}prompt_embeds_t5"] = torch.randn(1, 5, 8)
        inputs[f"{sign}prompt_embeds_llama3"] = torch.randn(2, 1, 5, 8)
        inputs[f"{sign}pooled_prompt_embeds"] = torch.randn(1, 8)
    return pipe, inputs


def _sana() -> Made:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=SIZE // 2,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "ResBlock"), decoder_block_types=("ResBlock", "ResBlock"),
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(
        vae=vae, transformer=transformer, scheduler=scheduler, **_without("text_encoder", "tokenizer")
    )
    return pipe, _embeds() | _masks() | {"negative_prompt": None, "use_resolution_binning": False}


def _video_autoencoder(cls: type, **config: Any) -> torch.nn.Module:
    """z_dim 4, shrinking by 2 in space; in time, too, if the config says so."""
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 1.0]}
    return cls(base_dim=8, z_dim=4, num_res_blocks=1, **statistics, **config)


def _qwen_image() -> Made:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    vae = _video_autoencoder(diffusers.AutoencoderKLQwenImage, dim_mult=[1, 1], temperal_downsample=[False])
    pipe = diffusers.QwenImagePipeline(
        vae=vae, transformer=transformer, scheduler=_flow(), **_without("text_encoder", "tokenizer")
    )
    return pipe, _embeds() | _masks("prompt_embeds_mask")


def _wan() -> Made:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16,
        num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = _video_autoencoder(
        diffusers.AutoencoderKLWan, dim_mult=[1, 1], temperal_downsample=[True], scale_factor_temporal=2,
        scale_factor_spatial=2,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        vae=vae, transformer=transformer, scheduler=scheduler, **_without("text_encoder", "tokenizer")
    )
    return pipe, _embeds() | {"num_frames": 3}


_FACTORIES = {
    "stable-diffusion-xl-img2img": (_sdxl_img2img, "StableDiffusionXLImg2ImgPipeline"),
    "stable-diffusion-xl-refiner": (_sdxl_refiner, "StableDiffusionXLImg2ImgPipeline"),
    "stable-diffusion-xl-inpaint": (_sdxl_inpaint, "StableDiffusionXLInpaintPipeline"),
    "stable-diffusion-xl-controlnet": (_sdxl_controlnet, "StableDiffusionXLControlNetPipeline"),
    "lcm": (_lcm, "LatentConsistencyModelPipeline"),
    "pixart-sigma": (_pixart_sigma, "PixArtSigmaPipeline"),
    "chroma": (_chroma, "ChromaPipeline"),
    "flux-2": (_flux_2, "Flux2Pipeline"),
    "z-image": (_z_image, "ZImagePipeline"),
    "lumina-2": (_lumina_2, "Lumina2Pipeline"),
    "hidream": (_hidream, "HiDreamImagePipeline"),
    "sana": (_sana, "SanaPipeline"),
    "qwen-image": (_qwen_image, "QwenImagePipeline"),
    "wan": (_wan, "WanPipeline"),
}

PIPELINES = tuple(_FACTORIES)


def another_tiny_pipeline(name: str, *, seed: int = 0) -> Made:
    """A real pipeline, one of PIPELINES, and the keyword arguments of a call; torch's random state is left alone.

    Skips the test where this version of diffusers does not have the pipeline yet.
    """
    factory, cls = _FACTORIES[name]
    if name in {"chroma", "sana", "wan", "qwen-image"}:
        skip_before_torch_2_5(cls)
    if not hasattr(diffusers, cls):
        pytest.skip(f"this diffusers has no {cls}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe, inputs = factory()
    pipe.set_progress_bar_config(disable=True)
    if "image" not in inputs or "controlnet" in pipe.components:
        inputs |= {"height": SIZE, "width": SIZE}
    return pipe, inputs | {"num_inference_steps": 4}
