"""What is between a pipeline's latents and its autoencoder: layout, units and tiny decoder of each pipeline family.

A new kind of pipeline needs a `Family` (often two small functions) and its class names in `FAMILIES`. Nothing here
knows a host: class names and the fields of an autoencoder's config are those of diffusers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Grid = tuple[int, int] | None
"""Rows and columns of the latents; None where nobody has said them yet."""


def spatial(latents: Tensor, grid: Grid) -> Tensor:
    """Latents (N, C, h, w), or of a video (N, C, T, h, w), as they are."""
    return latents


def packed(latents: Tensor, grid: Grid) -> Tensor:
    """Patches of 2 x 2 in a row, (N, h/2 * w/2, 4 C), back to (N, C, h, w).

    Raises:
        ValueError: the grid is not known (many shapes have the same number of patches), or does not fit.
    """
    n, patches, channels = latents.shape
    if grid is None:
        raise ValueError(
            f"packed latents {tuple(latents.shape)} do not tell their height and width; expected to learn them from "
            "the pipeline call: enter guided() before the call, or give height= and width= in pixels."
        )
    rows, columns = grid[0] // 2, grid[1] // 2
    if rows * columns != patches:
        raise ValueError(
            f"packed latents {tuple(latents.shape)} hold {patches} patches; expected {rows} x {columns} from the given "
            "height and width: give guided() the size with which the pipeline is called."
        )
    patches = latents.reshape(n, rows, columns, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, 2 * rows, 2 * columns)


def as_given(latents: Tensor, vae: Any) -> Tensor:
    """Latents that are in the autoencoder's own units already."""
    return latents


def scaled(latents: Tensor, vae: Any) -> Tensor:
    """Latents / scaling_factor."""
    return latents / vae.config.scaling_factor


def shifted(latents: Tensor, vae: Any) -> Tensor:
    """Latents / scaling_factor + shift_factor."""
    return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)


def standardised(latents: Tensor, vae: Any) -> Tensor:
    """Latents * latents_std / scaling_factor + latents_mean, per channel, where the config has these statistics."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return scaled(latents, vae)
    mean, std = (latents.new_tensor(value).view(1, -1, *[1] * (latents.ndim - 2)) for value in (mean, std))
    return latents * std / getattr(vae.config, "scaling_factor", 1.0) + mean


def one_frame(latents: Tensor, vae: Any) -> Tensor:
    """(N, C, h, w) `standardised`, as the single frame (N, C, 1, h, w) of a video autoencoder."""
    return standardised(latents, vae).unsqueeze(2)


def batch_standardised(latents: Tensor, vae: Any) -> Tensor:
    """Latents * std + mean of the autoencoder's batch norm over 2 x 2 patches; as they are if it has none."""
    if not hasattr(vae, "bn"):
        return latents  # such as TAEF2, which takes the diffusion model's own units
    n, channels, rows, columns = latents.shape
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    mean, std = (values.to(latents).view(1, channels, 1, 2, 1, 2) for values in (vae.bn.running_mean, std))
    return (latents.view(n, channels, rows // 2, 2, columns // 2, 2) * std + mean).view(latents.shape)


@dataclass(frozen=True)
class Family:
    """What the pipelines of one kind have in common between their latents and their pictures."""

    unpack: Callable[[Tensor, Grid], Tensor]
    """Layout: latents as the scheduler sees them, and their grid -> (N, C, h, w), of a video (N, C, T, h, w)."""
    to_vae: Callable[[Tensor, Any], Tensor]
    """Units: what `unpack` returns, in those of the diffusion model, and the autoencoder -> what its `decode` takes."""
    tiny: str | None
    """Hub name of the AutoencoderTiny with the same latents; None where there is none."""
    needs_grid: bool = False
    """The latents do not tell their own height and width."""


STABLE_DIFFUSION = Family(spatial, scaled, "madebyollin/taesd")
STABLE_DIFFUSION_XL = Family(spatial, standardised, "madebyollin/taesdxl")
STABLE_DIFFUSION_3 = Family(spatial, shifted, "madebyollin/taesd3")
FLUX = Family(packed, shifted, "madebyollin/taef1", needs_grid=True)
FLUX_UNPACKED = Family(spatial, shifted, "madebyollin/taef1")
FLUX_2 = Family(packed, batch_standardised, None, needs_grid=True)
QWEN_IMAGE = Family(packed, one_frame, None, needs_grid=True)
SANA = Family(spatial, scaled, "madebyollin/taesana")
WAN = Family(spatial, standardised, None)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionDepth2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionImageVariationPipeline": STABLE_DIFFUSION,
    "StableDiffusionInstructPix2PixPipeline": STABLE_DIFFUSION,
    "StableDiffusionAdapterPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionPAGPipeline": STABLE_DIFFUSION,
    "StableDiffusionPAGImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionPAGInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetPAGPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetPAGInpaintPipeline": STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    "LatentConsistencyModelImg2ImgPipeline": STABLE_DIFFUSION,
    "PixArtAlphaPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLInpaintPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLInstructPix2PixPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLAdapterPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetInpaintPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetUnionPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetUnionInpaintPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLPAGPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLPAGImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLPAGInpaintPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetPAGPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "KolorsPipeline": STABLE_DIFFUSION_XL,
    "KolorsImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "KolorsPAGPipeline": STABLE_DIFFUSION_XL,
    "PixArtSigmaPipeline": STABLE_DIFFUSION_XL,
    "PixArtSigmaPAGPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3Img2ImgPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3InpaintPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3ControlNetPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3ControlNetInpaintingPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3PAGPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3PAGImg2ImgPipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "FluxFillPipeline": FLUX,
    "FluxKontextPipeline": FLUX,
    "FluxKontextInpaintPipeline": FLUX,
    "FluxControlPipeline": FLUX,
    "FluxControlImg2ImgPipeline": FLUX,
    "FluxControlInpaintPipeline": FLUX,
    "FluxControlNetPipeline": FLUX,
    "FluxControlNetImg2ImgPipeline": FLUX,
    "FluxControlNetInpaintPipeline": FLUX,
    "ChromaPipeline": FLUX,
    "ChromaImg2ImgPipeline": FLUX,
    "ChromaInpaintPipeline": FLUX,
    "HiDreamImagePipeline": FLUX_UNPACKED,
    "Lumina2Pipeline": FLUX_UNPACKED,
    "ZImagePipeline": FLUX_UNPACKED,
    "ZImageImg2ImgPipeline": FLUX_UNPACKED,
    "ZImageInpaintPipeline": FLUX_UNPACKED,
    "ZImageControlNetPipeline": FLUX_UNPACKED,
    "ZImageControlNetInpaintPipeline": FLUX_UNPACKED,
    "Flux2Pipeline": FLUX_2,
    "Flux2KleinPipeline": FLUX_2,
    "Flux2KleinInpaintPipeline": FLUX_2,
    "QwenImagePipeline": QWEN_IMAGE,
    "QwenImageImg2ImgPipeline": QWEN_IMAGE,
    "QwenImageInpaintPipeline": QWEN_IMAGE,
    "QwenImageEditPipeline": QWEN_IMAGE,
    "QwenImageEditPlusPipeline": QWEN_IMAGE,
    "QwenImageEditInpaintPipeline": QWEN_IMAGE,
    "QwenImageControlNetPipeline": QWEN_IMAGE,
    "QwenImageControlNetInpaintPipeline": QWEN_IMAGE,
    "SanaPipeline": SANA,
    "SanaPAGPipeline": SANA,
    "SanaControlNetPipeline": SANA,
    "WanPipeline": WAN,
    "WanVideoToVideoPipeline": WAN,
    "StableDiffusionXLModularPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusion3ModularPipeline": STABLE_DIFFUSION_3,
    "FluxModularPipeline": FLUX,
    "FluxKontextModularPipeline": FLUX,
    "Flux2ModularPipeline": FLUX_2,
    "Flux2KleinModularPipeline": FLUX_2,
    "Flux2KleinBaseModularPipeline": FLUX_2,
    "QwenImageModularPipeline": QWEN_IMAGE,
    "QwenImageEditModularPipeline": QWEN_IMAGE,
    "QwenImageEditPlusModularPipeline": QWEN_IMAGE,
    "WanModularPipeline": WAN,
    "Wan22ModularPipeline": WAN,
    "ZImageModularPipeline": FLUX_UNPACKED,
}
"""Class name of a pipeline -> its family; sub-classes of a pipeline are found too."""


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, by the name of its class or of a parent class.

    Raises:
        ValueError: it is not in the table; the message names the two functions to give instead.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise ValueError(
        f"got a {type(pipe).__name__}, whose latents are unknown; expected a pipeline of the table in "
        "docs/diffusers.md (Stable Diffusion, Flux, Qwen-Image, Wan, ...), or one of two functions: "
        "RewardGuidance(decoder=...), from latents as scheduler.step sees them to images (N, 3, H, W) in [0, 1]; or "
        "find_decoder(pipe, unpack=...), from these latents to what the pipeline's vae.decode takes, whose result is "
        "such a decoder."
    )
