"""Tiny models made of ComfyUI's own classes, with random weights: MODEL, VAE, CONDITIONING. Needs COMFYUI_DIR."""

# ruff: noqa: E402
import os
import sys

sys.path.insert(0, os.environ["COMFYUI_DIR"])  # before anything of ours: `nodes` is ComfyUI's module

from comfy.cli_args import args

args.cpu = True  # before comfy.model_management looks for a GPU

import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
import utils.extra_config  # noqa: F401 - before the `nodes` of older versions hide it, as in ComfyUI's main.py
from comfy.taesd.taesd import TAESD

import nodes

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "num_heads": 2,
}


def randomize(module, seed=0):
    """Weights of about unit gain, also where ComfyUI leaves memory as it finds it or zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif parameter.ndim == 1:
                parameter.zero_()
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and ("norm" in name or name.endswith(("0.weight", "scale"))) and "bias" not in name:
                parameter.fill_(1.0)
    return module


def unet_model(kind=None):
    """An SD1.5-like MODEL of a million parameters; `kind` is a comfy.model_base.ModelType."""
    config = comfy.supported_models.SD15(UNET)
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    config.set_inference_dtype(torch.float32, None)
    kind = comfy.model_base.ModelType.EPS if kind is None else kind
    model = comfy.model_base.BaseModel(config, kind, device="cpu")
    randomize(model.diffusion_model)
    # Near to what is right for latents of size 1, all noise as eps and 0 as v; else samples would be chaos of any size.
    share = 1.0 if kind == comfy.model_base.ModelType.EPS else 0.0
    model.diffusion_model.register_forward_hook(lambda module, inputs, output: share * inputs[0] + 0.3 * output)
    cpu = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


def v_model():
    return unet_model(comfy.model_base.ModelType.V_PREDICTION)


def flow_model():
    """A Flux MODEL of a million parameters, through ComfyUI's own detection."""
    network = comfy.ldm.flux.model.Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=16,
        context_in_dim=32,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        txt_ids_dims=[],
        theta=10000,
        qkv_bias=True,
        guidance_embed=False,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    return comfy.sd.load_diffusion_model_state_dict(randomize(network).state_dict())


KINDS = {"eps": (unet_model, 4), "v": (v_model, 4), "flow": (flow_model, 16)}


def taesd(channels=4, seed=1):
    """A TAESD that draws pictures around middle grey."""
    network = randomize(TAESD(latent_channels=channels), seed)
    with torch.inference_mode(False), torch.no_grad():
        network.taesd_decoder[-1].weight.mul_(0.5)
        network.taesd_decoder[-1].bias.fill_(0.5)
    return network


def taesd_vae(channels=4, seed=1):
    """A VAE whose network is a TAESD, the smallest that ComfyUI knows."""
    return comfy.sd.VAE(sd=taesd(channels, seed).state_dict())


def conditioning(channels=32, pooled=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, pooled = (torch.randn(shape, generator=generator) for shape in ((1, 8, channels), (1, pooled)))
    return [[tokens, {"pooled_output": pooled}]]


def sample(model, channels, *, seed=0, steps=6, cfg=2.0, sampler="euler", scheduler="normal", size=4, batch=1, **more):
    """KSampler as its node runs it, under inference mode; the latents (batch, channels, size, size)."""
    with torch.inference_mode():
        latent = {"samples": torch.zeros(batch, channels, size, size)}
        positive, negative = conditioning(seed=1), conditioning(seed=2)
        (out,) = nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, **more)
        return out["samples"]
