"""From the latents of a ComfyUI model to pictures, with a gradient: which decoder, and a private copy of it.

ComfyUI's own `VAE.decode` does not do: it clamps in place, tiles when memory runs out, and its weights may be evicted
between a forward and a backward pass. So a decoder here is a network of its own under an ordinary `ModelPatcher`.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from comfy.model_patcher import ModelPatcher
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn

from ..gradient import clamp_towards_range

CHOICES = ("auto", "tiny", "vae")

# Bytes that a backward pass keeps per pixel in float32, measured at 256 pixels: TAESD 142 MiB, KL-f8 1.6 GiB.
TINY_BYTES = 2300
VAE_BYTES = 26000


@dataclass(frozen=True)
class LatentDecoder:
    """A `Decoder` (guidance/gradient.py) of one ComfyUI model: latents (N, C, h, w) in the model's own units."""

    name: str
    """What the log says of it."""

    pixels: Callable[[Tensor], Tensor]
    """Latents -> pictures (N, 3, H, W), differentiable, [0, 1] up to overshoot."""

    patcher: ModelPatcher | None = None
    """What ComfyUI loads together with the model; None if there is no network."""

    network: nn.Module | None = None
    """The network inside, for the gradient to find."""

    factor: int = 1
    """How much smaller latents are than pictures."""

    bytes_per_pixel: int = 0
    """What the backward pass keeps."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w), float -> images (N, 3, H, W), float32 in [0, 1]."""
        return clamp_towards_range(self.pixels(latents).float())


def find_decoder(model: ModelPatcher, vae: Any | None, choice: str = "auto") -> LatentDecoder:
    """The decoder with which guidance looks at the latents of a model.

    Args:
        model: a ComfyUI MODEL.
        vae: a ComfyUI VAE for it, or None.
        choice: "tiny" (a file of the TAESD family in models/vae_approx), "vae", or "auto": tiny if there is one. A
            model that works on pixels needs none.

    Raises:
        ValueError: the choice is unknown, or nothing fits; says which file or input is missing.
    """
    if choice not in CHOICES:
        raise ValueError(f"decoder is {choice!r}; expected one of {', '.join(CHOICES)}.")
    latent_format = model.get_model_object("latent_format")
    if latent_format.latent_channels == 3:  # a model of pixels
        return LatentDecoder("pixels", lambda latents: latent_format.process_out(latents) * 0.5 + 0.5)
    path = None if choice == "vae" else tiny_decoder_path(latent_format)
    if path is not None:
        return _tiny(model, latent_format, path)
    if choice != "tiny" and vae is not None:
        return _private_vae(model, latent_format, vae)
    name = latent_format.taesd_decoder_name
    missing = f"{name}.safetensors in models/vae_approx" if name else "a tiny decoder, and none is known for this model"
    also = "" if choice == "vae" else f", or {missing}" if name else ""
    wanted = missing if choice == "tiny" else f"the VAE of this model at the input vae{also}"
    raise ValueError(f"guidance has no decoder for {type(latent_format).__name__} latents; expected {wanted}.")


def pictures_of(model: ModelPatcher, decoder: LatentDecoder, latents: Tensor) -> Tensor:
    """ComfyUI's IMAGE (N x frames, H, W, 3) from latents (N, C, [T,] h, w) in the VAE's units; no gradient."""
    latents = model.get_model_object("latent_format").process_in(latents)
    frames = latents.movedim(2, 1).flatten(0, 1) if latents.ndim == 5 else latents
    if decoder.patcher is not None:
        pixels = frames.shape[-2] * frames.shape[-1] * decoder.factor**2
        need = pixels * decoder.bytes_per_pixel
        comfy.model_management.load_models_gpu([decoder.patcher], memory_required=need, force_full_load=True)
    device = model.load_device
    with torch.no_grad():
        pictures = [decoder(frame.to(device)).to(latents.device) for frame in frames.split(1)]
    return torch.cat(pictures).movedim(1, -1)


def tiny_decoder_path(latent_format: Any) -> str | None:
    """The decoder of the TAESD family for a latent format, found as ComfyUI's previews find it; None without one."""
    name = latent_format.taesd_decoder_name
    if name is None:
        return None
    matching = (file for file in folder_paths.get_filename_list("vae_approx") if file.startswith(name))
    return next((folder_paths.get_full_path("vae_approx", file) for file in matching), None)


def _tiny(model: ModelPatcher, latent_format: Any, path: str) -> LatentDecoder:
    """A tiny decoder takes the model's own units, and gives [0, 1] (video) or [-1, 1] (pictures)."""
    name = os.path.basename(path)
    with torch.inference_mode(False):
        state = comfy.utils.load_torch_file(path, safe_load=True)
        if "decoder.22.bias" in state or latent_format.latent_dimensions == 3:
            vae = comfy.sd.VAE(state)
            vae.first_stage_model.show_progress_bar = False
            return _decoder(name, model, vae.first_stage_model, vae, lambda latents: latents, TINY_BYTES)
        network = TAESD(latent_channels=latent_format.latent_channels)
        network.taesd_decoder.load_state_dict(state)
        del network.taesd_encoder
        network.eval()
    patcher = _plain_patcher(model, network)
    factor = 16 if latent_format.latent_channels == 128 else 8
    return LatentDecoder(name, lambda z: network.decode(z) * 0.5 + 0.5, patcher, network, factor, TINY_BYTES)


def _private_vae(model: ModelPatcher, latent_format: Any, vae: Any) -> LatentDecoder:
    with torch.inference_mode(False):
        network = _copy_of(vae)
        cost = TINY_BYTES if isinstance(network, TAESD) else VAE_BYTES * vae.vae_dtype.itemsize // 4
        return _decoder(type(network).__name__, model, network, vae, latent_format.process_out, cost)


def _copy_of(vae: Any) -> nn.Module:
    """The VAE's network once more, with ordinary weights, without its encoder where that stands apart."""
    vae.throw_exception_if_invalid()
    if vae.patcher.cached_patcher_init is not None:
        network = vae.patcher.clone(force_deepcopy=True).model  # read from its file once more
    elif vae.patcher.is_dynamic():
        raise ValueError("this VAE's weights are loaded on demand and cannot be copied; load it with Load VAE.")
    else:
        network = copy.deepcopy(vae.first_stage_model)
    if isinstance(network, AutoencodingEngine):
        del network.encoder
    elif isinstance(network, TAESD):
        del network.taesd_encoder
    return network.eval()


def _decoder(
    name: str, model: ModelPatcher, network: nn.Module, vae: Any, units: Callable[[Tensor], Tensor], cost: int
) -> LatentDecoder:
    """What `VAE.decode` computes, without its in-place clamp, for one frame at a time."""
    offset, middle = vae.process_output(torch.tensor([0.0, 0.5])).tolist()  # y -> y or y -> (y + 1) / 2
    slope = (middle - offset) / 0.5
    is_video, dtype = vae.latent_dim == 3, vae.vae_dtype

    def pixels(latents: Tensor) -> Tensor:
        z = latents[:, :, None] if is_video else latents  # as one frame
        y = network.decode(units(z).to(dtype)).float()
        y = y[:, :3, 0] if y.ndim == 5 else y[:, :3]
        return y * slope + offset

    return LatentDecoder(name, pixels, _plain_patcher(model, network), network, vae.spacial_compression_decode(), cost)


def _plain_patcher(model: ModelPatcher, network: nn.Module) -> ModelPatcher:
    """Weights that stay where they are between forward and backward, on the device of the model."""
    return ModelPatcher(network, model.load_device, comfy.model_management.vae_offload_device())
