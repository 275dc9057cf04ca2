"""The gradient of a reward with respect to a denoised latent: the only place that calls autograd."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..rewards import Reward, margin_of
from .augmentation import Augmentation
from .freeze import frozen, modules_of

Decoder = Callable[[Tensor], Tensor]
"""Latents in the diffusion model's units -> images (N, 3, H, W) RGB in [0, 1], differentiable.

Of a video frames (N, F, 3, H, W), each of which is scored.
"""


def reward_gradient(
    reward: Reward,
    decoder: Decoder,
    denoised: Tensor,
    *,
    augmentations: Sequence[Augmentation] = (Augmentation(),),
    modules: list[nn.Module] | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of a reward with respect to the denoised latent, averaged over augmentations of it.

    Computes g = d/dz mean_k sum_n margin(decoder(augment_k(z)))_n at z = denoised; the diffusion model is not
    touched.
    `margin` is the reward's unsaturated twin where it has one (`reward.margin`), the reward itself otherwise. The
    samples of a batch do not mix, as long as reward and decoder treat them apart (modules in eval mode).

    Args:
        reward: images (N, 3, H, W) in [0, 1] -> (N,), higher is better.
        decoder: latents as the diffusion model has them -> images (N, 3, H, W) in [0, 1]; or frames of a video,
            (N, F, 3, H, W), whose mean score counts.
        denoised: (N, ...) latent, any floating dtype and device.
        augmentations: what to average over; by default the latent as it is.
        modules: networks inside reward and decoder, if the caller has looked them up before (`modules_of`).
        chunk: samples worked on at once; None for all. Bounds the memory, changes no result.

    Returns:
        scores: (N,) float32, detached; mean over the augmentations.
        gradient: like `denoised`, float32, detached; in score per latent unit.

    Raises:
        ValueError: if the decoder does not return images (N, 3, H, W) or the reward not (N,) scores that depend on
            the images.

    Notes:
        Works inside torch.no_grad and torch.inference_mode. Weights that were made in inference mode are replaced by
        ordinary copies; no weight collects a gradient. Cost: one decode and one reward, forward and backward, per
        augmentation; these are worked through one after another, so memory does not grow with their number.
    """
    margin = margin_of(reward)
    with torch.inference_mode(False), torch.enable_grad():
        with frozen(modules_of(reward, decoder) if modules is None else modules):
            parts = denoised.detach().clone().float().split(chunk or len(denoised))
            results = [_mean_gradient(margin, decoder, part, augmentations) for part in parts]
    scores, gradients = zip(*results, strict=True)
    return torch.cat(scores), torch.cat(gradients)


def _mean_gradient(
    margin: Reward, decoder: Decoder, latent: Tensor, augmentations: Sequence[Augmentation]
) -> tuple[Tensor, Tensor]:
    latent = latent.detach().requires_grad_(True)
    scores, gradients = zip(*(_one_gradient(margin, decoder, latent, each) for each in augmentations), strict=True)
    return sum(scores) / len(augmentations), sum(gradients) / len(augmentations)


def _one_gradient(
    margin: Reward, decoder: Decoder, latent: Tensor, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    images = decoder(augmentation.of_latent(latent))
    frames = images.shape[1] if images.ndim == 5 else 1
    images = images.flatten(0, 1) if images.ndim == 5 else images
    if images.ndim != 4 or images.shape[0] != latent.shape[0] * frames or images.shape[1] != 3:
        raise ValueError(
            f"the decoder returned {tuple(images.shape)} for latents {tuple(latent.shape)}; expected images"
            f" ({latent.shape[0]}, 3, H, W). Give RewardGuidance a decoder that fits the pipeline."
        )
    scores = margin(augmentation.of_images(images))
    if scores.shape != images.shape[:1]:
        raise ValueError(
            f"the reward returned {tuple(scores.shape)} for images {tuple(images.shape)}; expected"
            f" ({images.shape[0]},): one score per image."
        )
    scores = scores.view(-1, frames).mean(1)  # of a video, over its frames
    # A score moves by about 1 / pixels per pixel, too little for float16; a power of two changes no other digit.
    lift = 2.0 ** round(math.log2(images.shape[-1] * images.shape[-2]))
    total = scores.float().sum() * lift
    gradient = torch.autograd.grad(total, latent, allow_unused=True)[0] if scores.requires_grad else None
    if gradient is None:
        raise ValueError(
            "the reward's value does not depend differentiably on the images, so it cannot guide;"
            " look for .detach(), no_grad, round() or a conversion to NumPy in the reward or the decoder."
        )
    return scores.detach().float(), gradient / lift


class _ClampTowardsRange(torch.autograd.Function):
    """Clamp to [0, 1]; the backward pass drops only what would push a value further out."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values < 0, values > 1)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        below, above = ctx.saved_tensors
        return gradient.masked_fill((below & (gradient < 0)) | (above & (gradient > 0)), 0)


def clamp_towards_range(values: Tensor) -> Tensor:
    """Clamp to [0, 1] for gradient ascent: a value outside keeps the part of its gradient that leads back inside.

    A plain clamp would leave clipped pixels without any gradient, so they could never come back; the identity would let
    a reward drive them further out, where nothing is seen. Inside [0, 1] the gradient is exact.

    Args:
        values: any shape, floating.

    Returns:
        Same shape, in [0, 1]. The gradient that arrives is taken to be that of a reward (higher is better).
    """
    return _ClampTowardsRange.apply(values)
