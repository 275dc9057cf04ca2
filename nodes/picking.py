"""Taking some samples out of ComfyUI's LATENT, MASK and IMAGE batches. Knows no host."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..images import to_pil, to_tensor


def pick_latents(latents: Mapping[str, Any], indices: Sequence[int], count: int) -> dict[str, Any]:
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
    picked = {**latents, "samples": samples[list(indices)]}
    numbers = latents.get("batch_index", range(count))
    if len(numbers) < count:
        raise ValueError(
            f"the batch_index of these latents has {len(numbers)} numbers for {count} latents; expected one for each; "
            "check the node that made them."
        )
    picked["batch_index"] = [numbers[index] for index in indices]
    if latents.get("noise_mask") is not None:
        picked["noise_mask"] = pick_masks(latents["noise_mask"], indices, count)
    return picked


def pick_masks(masks: Tensor, indices: Sequence[int], count: int) -> Tensor:
    """Masks of some samples; fewer masks than samples repeat from the first, as ComfyUI has it, and one serves all."""
    if len(masks) == 0:
        raise ValueError(f"got no masks for {count} pictures; connect at least one, or nothing.")
    if len(masks) == 1:
        return masks.clone()
    if len(masks) > count:
        raise ValueError(f"got {len(masks)} masks for {count} pictures; expected no more than pictures.")
    return masks[[index % len(masks) for index in indices]]


def chosen(scores: Sequence[float], order: Sequence[int], keep: int, min_score: float) -> tuple[list[int], list[int]]:
    """Indices of the best and of the rest, best first: at most `keep`, and none below `min_score`."""
    best = [index for index in order[:keep] if scores[index] >= min_score]
    return best, [index for index in order if index not in best]


def labelled(image: Tensor, text: str) -> Tensor:
    """A picture (H, W, C) in [0, 1] with a line of text in its corner; (H, W, 3)."""
    picture = to_pil(image[..., :3].movedim(-1, 0).float().clamp(0, 1))
    write(picture, (4, 4), text)
    return to_tensor(picture)[0].movedim(0, -1)


def write(picture: Image.Image, corner: tuple[int, int], text: str) -> None:
    """White text on black, so that it can be read on anything."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox(corner, text)
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(0, 0, 0))
    draw.text(corner, text, fill=(255, 255, 255))


def stack(images: Tensor, indices: Sequence[int]) -> Tensor:
    """Some pictures of a batch (N, H, W, C), in the order given."""
    return torch.stack([images[index] for index in indices])
