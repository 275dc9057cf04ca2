"""Some samples of ComfyUI's LATENT, MASK and IMAGE batches. Knows no host."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def select_latents(latents: Mapping[str, Any], indices: Sequence[int], count: int) -> dict[str, Any]:
    """Some samples of a LATENT, with their noise masks and the `batch_index` from which their noise can be made again.

    Args:
        latents: of ComfyUI: "samples" (N, ...), perhaps "noise_mask" and "batch_index".
        indices: which, in the order wanted.
        count: how many pictures were ranked.

    Raises:
        ValueError: the latents or their `batch_index` are not one per picture, or are packed from several.
    """
    samples = latents["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError("these latents pack sound and pictures; connect latents of pictures.")
    if len(samples) != count:
        raise ValueError(f"got {len(samples)} latents for {count} pictures; expected one for each.")
    selected = {**latents, "samples": samples[list(indices)]}
    numbers = latents.get("batch_index", range(count))
    if len(numbers) < count:
        raise ValueError(
            f"the batch_index of these latents has {len(numbers)} numbers for {count} latents; expected one for each; "
            "check the node that made them."
        )
    selected["batch_index"] = [numbers[index] for index in indices]
    if latents.get("noise_mask") is not None:
        selected["noise_mask"] = select_masks(latents["noise_mask"], indices, count)
    return selected


def select_masks(masks: Tensor, indices: Sequence[int], count: int) -> Tensor:
    """Masks of some samples; fewer masks than samples repeat from the first, as ComfyUI has it, and one serves all."""
    if len(masks) == 0:
        raise ValueError(f"got no masks for {count} pictures; connect at least one, or nothing.")
    if len(masks) == 1:
        return masks.clone()
    if len(masks) > count:
        raise ValueError(f"got {len(masks)} masks for {count} pictures; expected no more than pictures.")
    return masks[[index % len(masks) for index in indices]]


def best_and_rest(
    scores: Sequence[float], order: Sequence[int], keep: int, min_score: float
) -> tuple[list[int], list[int]]:
    """Indices of the best and of the rest, best first: at most `keep`, and none below `min_score`."""
    best = [index for index in order[:keep] if scores[index] >= min_score]
    return best, [index for index in order if index not in best]


def select_images(images: Tensor, indices: Sequence[int]) -> Tensor:
    """Some pictures of a batch (N, H, W, C), in the order given."""
    return torch.stack([images[index] for index in indices])
