"""Training batches: ladders of degraded crops, human-scored crops, denoised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import distortions, published_distortions
from .data import Photograph, random_crop, random_crops, read, read_with_reference, to_tensor
from .teacher import Squeezenet, ridge_predictions

# How much a full ladder of each kind hurts, next to blur, noise and blocks; ours, by eye.
SEVERITY = {
    "quantize": 0.7, "desaturate": 0.45, "oversaturate": 0.7, "flatten_contrast": 0.7, "harsh_contrast": 0.7,
    "darken": 0.8, "brighten": 0.8, "sharpen": 0.8, "color_shift": 0.7,
}  # fmt: skip
LADDER_KINDS = tuple(distortions.LADDERS)
# what can be undone in principle: the direction back is the same for everyone who looks
RESTORABLE = tuple(kind for kind in LADDER_KINDS if kind not in ("color_shift", "jpeg2000"))
# how often a kind is drawn, 4 for those not named; codecs, blur and noise are what web pictures suffer from
WEIGHTS = {"jpeg2000": 8.0, "jpeg": 16.0, "gaussian_blur": 8.0, "white_noise": 7.0, "grain": 8.0, "pixelate": 6.0}
EACH = 3  # crops per scored photograph
Values = TypeVar("Values", float, np.ndarray, Tensor)


def _draw(kinds: tuple[str, ...], rng: np.random.Generator) -> str:
    weights = np.array([WEIGHTS.get(kind, 4.0) for kind in kinds])
    return kinds[rng.choice(len(kinds), p=weights / weights.sum())]


def severity(kind: str, level: Tensor) -> Tensor:
    """Severity of levels (N,) in [0, 4] of one kind: about 0 for untouched pictures, 4.5 for the worst."""
    return SEVERITY.get(kind, 1.0) * (0.7 + 0.95 * level)


@dataclass(frozen=True)
class ScoredCrops:
    """Human-scored crops and their labels."""

    images: Tensor
    """(N, 3, s, s) uint8."""
    labels: Tensor
    """(N,) float32 in the model's raw units."""
    references: Tensor | None = None
    """The same squares of their references, like `images`, for a full-reference model."""

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Random crops (size, 3, s, s) in [0, 1], their labels (size,) and, where there are any, their references."""
        picks = torch.from_numpy(rng.integers(0, len(self.labels), size))
        references = None if self.references is None else self.references[picks].float() / 255
        return self.images[picks].float() / 255, self.labels[picks], references


RAW_UNIT = 14.0
"""Of MOS; see `raw_units`."""


def raw_units(mos: Values) -> Values:
    """MOS 0 to 100 -> the model's raw units, where a clean photograph is near 0 and a ruined one near -4.5."""
    return (mos - 75.0) / RAW_UNIT


class Crops:
    """Clean crops, cut ahead of time: decoding a photograph costs more than a training step's share of it.

    Args:
        photographs: what to cut.
        size: side of the crops in px.
        each: crops of each photograph; 0 cuts nothing ahead, for folders that do not fit into memory.
        rng: decides places and scales.
    """

    def __init__(self, photographs: list[Photograph], size: int, each: int, rng: np.random.Generator) -> None:
        self.photographs, self.size = photographs, size
        self.images = None
        if each == 0:
            return
        crops = []
        for photograph in tqdm(photographs, desc="clean crops"):
            picture = read(photograph.path)
            crops += [to_tensor(random_crop(picture, size, rng)) for _ in range(each)]
        self.images = torch.stack(crops)

    def batch(self, size: int, rng: np.random.Generator) -> Tensor:
        """Random crops, (size, 3, s, s) in [0, 1]."""
        if self.images is None:
            picks = [self.photographs[n] for n in rng.integers(0, len(self.photographs), size)]
            return torch.stack([to_tensor(random_crop(read(p.path), self.size, rng)) for p in picks]).float() / 255
        return self.images[torch.from_numpy(rng.integers(0, len(self.images), size))].float() / 255


def overlapping(crop: Tensor, size: int, count: int, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """`count` random windows of `size` px in a crop (..., H, W); they overlap because the crop is little larger."""
    reach = crop.shape[-1] - size + 1
    return [tuple(slice(o, o + size) for o in rng.integers(0, reach, 2)) for _ in range(count)]


def ladders(
    crops: Crops, photos: int, levels: int, size: int, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Ladders of increasingly degraded, overlapping crops; each photograph is degraded in one way.

    Args:
        crops: what to degrade; a little larger than `size`.
        photos: number of ladders.
        levels: crops per ladder, the clean one included.
        size: side of the results in px.
        rng: decides photographs, kinds, levels and places.
        generator: of the noise in the degradations.

    Returns:
        images: (photos * levels, 3, size, size).
        originals: the same crops before they were degraded.
        severities: (photos, levels), the first of each row 0.
    """
    images, originals, severities = [], [], []
    for clean in crops.batch(photos, rng):
        kind = _draw(LADDER_KINDS, rng)
        level = torch.from_numpy(np.sort(rng.uniform(0, 4, levels - 1))).float()
        degraded = distortions.distort(clean.expand(levels - 1, -1, -1, -1), kind, level, generator)
        stack = torch.cat([clean[None], degraded])
        windows = overlapping(clean, size, levels, rng)
        images += [x[:, a, b] for x, (a, b) in zip(stack, windows, strict=True)]
        originals += [clean[:, a, b] for a, b in windows]
        severities.append(torch.cat([torch.zeros(1), severity(kind, level)]))
    return torch.stack(images), torch.stack(originals), torch.stack(severities)


def twin_ladders(
    crops: Crops,
    size: int,
    levels: int,
    rng: np.random.Generator,
    generator: torch.Generator,
    *,
    published: bool = False,
) -> tuple[Tensor, Tensor]:
    """Two overlapping crops of one photograph, degraded in one way at increasing levels, for the losses of QualiCLIP.

    The kind is any of the ladders; the levels are evenly spaced from the weakest to the most severe. How much the crops
    overlap is not published; here it follows from the crop that they are cut from.

    Args:
        crops: what to degrade; a little larger than `size`.
        size: side of the results in px.
        levels: L.
        rng: decides photograph, kind and places.
        generator: of the noise in the degradations.
        published: degrade by one of the 24 published distortions, at their whole levels, so `levels` is at most 5.

    Returns:
        twins: (2, L, 3, size, size), from weak to severe.
        order: (L,), places in the order of strength, equal for levels of which neither is worse.
    """
    clean = crops.batch(1, rng).expand(levels, -1, -1, -1)
    strengths = torch.linspace(0, 4, levels)
    if published:
        kind = str(rng.choice(list(published_distortions.LADDERS)))
        strengths = strengths.round()
        degraded = published_distortions.distort(clean, kind, strengths, generator)
        order = published_distortions.severity(kind, strengths)
    else:
        degraded, order = distortions.distort(clean, _draw(LADDER_KINDS, rng), strengths, generator), strengths
    return torch.stack([degraded[..., a, b] for a, b in overlapping(degraded, size, 2, rng)]), order


def pairs(
    crops: Crops, count: int, size: int, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Degraded and clean twins, each degraded in one restorable way; arguments as `ladders`.

    Returns:
        degraded, clean: (count, 3, size, size).
        severity: (count,).
    """
    clean, degraded, severities = crops.batch(count, rng), [], []
    for x in clean:
        kind, level = _draw(RESTORABLE, rng), torch.from_numpy(rng.uniform(0.5, 4, 1)).float()
        degraded.append(distortions.distort(x[None], kind, level, generator))
        severities.append(severity(kind, level))
    a, b = overlapping(clean, size, 1, rng)[0]
    return torch.cat(degraded)[..., a, b], clean[..., a, b], torch.cat(severities)


def scored_crops(
    photographs: list[Photograph], teacher: Path | None, size: int, rng: np.random.Generator
) -> ScoredCrops:
    """Human-scored crops, with a teacher's score of each crop where there is one.

    A crop of a scored photograph is labelled with people's score of the whole and the teacher's score of the crop, half
    and half.

    Args:
        photographs: human-scored ones; `EACH` crops are cut from each, and from its reference where it has one.
        teacher: SqueezeNet 1.0 state dict (`teacher.Squeezenet`), or None for people's scores alone.
        size: side of the crops in px.
        rng: decides the crops.

    Raises:
        ValueError: a picture cannot be read, or differs in size from its reference.
    """
    crops, mos = [], []
    for photograph in tqdm(photographs, desc="scored crops"):
        pictures = read_with_reference(photograph)
        crops += [[to_tensor(crop) for crop in random_crops(pictures, size, rng, most=1.4)] for _ in range(EACH)]
        mos += [photograph.mos] * EACH
    stack, *references = (torch.stack(views) for views in zip(*crops, strict=True))
    labels = np.array(mos)
    if teacher is not None:
        network = Squeezenet(teacher)
        features = np.concatenate([network(x.float() / 255).numpy() for x in tqdm(stack.split(16), desc="teacher")])
        second = ridge_predictions(features, labels, np.arange(len(labels)) // EACH)
        labels = (labels + second) / 2
    return ScoredCrops(stack, torch.from_numpy(raw_units(labels)).float(), *references)
