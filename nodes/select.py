"""Some samples of ComfyUI's LATENT, MASK and IMAGE batches. Needs no ComfyUI."""

from collections.abc import Callable, Mapping, Sequence
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


def select_images(images: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
    """Some of the pictures (H, W, C), in the order given: one IMAGE (N, H, W, C), or one a picture if sizes differ."""
    chosen = [images[index] for index in indices]
    if len({image.shape for image in chosen}) == 1:
        return [torch.stack(chosen)]
    return [image[None] for image in chosen]


def all_pictures(batches: Sequence[Tensor]) -> list[Tensor]:
    """The pictures (H, W, C) of a list of IMAGE batches (N, H, W, C), one after the other.

    Raises:
        ValueError: something is not an IMAGE.
    """
    for batch in batches:
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
            raise ValueError(f"got an image of shape {tuple(batch.shape)}; expected (N, height, width, 1, 3 or 4).")
    return [picture.expand(*picture.shape[:2], max(picture.shape[2], 3)) for batch in batches for picture in batch]


def select_from_list(
    values: Sequence[Any],
    select: Callable[[Any, Sequence[int], int], Any],
    indices: Sequence[int],
    counts: Sequence[int],
) -> list[Any]:
    """What belongs to some of the pictures of a list of batches.

    Args:
        values: LATENTs or MASKs: one for all pictures together, or one for each batch.
        select: `select_latents` or `select_masks`.
        indices: of the pictures, over all batches.
        counts: pictures in each batch.

    Returns:
        One value for all the pictures, or one for each of them.

    Raises:
        ValueError: there is neither one value nor one for each batch.
    """
    if len(values) == 1:
        return [select(values[0], indices, sum(counts))]
    if len(values) != len(counts):
        raise ValueError(f"got a list of {len(values)} for a list of {len(counts)} images; expected one for each.")
    places = [(batch, index) for batch, count in enumerate(counts) for index in range(count)]
    return [select(values[batch], [index], counts[batch]) for batch, index in (places[i] for i in indices)]


def single(values: Sequence[Any] | None, name: str) -> Any | None:
    """The one value of an optional input that ComfyUI gives as a list; None where nothing is connected.

    Raises:
        ValueError: there are several.
    """
    if not values:
        return None
    if len(values) > 1:
        raise ValueError(f"got a list of {len(values)} at {name}; expected one for all pictures.")
    return values[0]
