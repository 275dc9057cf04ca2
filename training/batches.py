"""Training batches: ladders of degraded crops, human-scored crops, denoised predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..models.raw_scale import raw_units
from . import arniqa_distortions, distortions
from .crops import random_crop, random_crops, read, reduced, to_tensor
from .data import Photograph, read_with_reference
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


def _draw(kinds: tuple[str, ...], rng: np.random.Generator) -> str:
    weights = np.array([WEIGHTS.get(kind, 4.0) for kind in kinds])
    return kinds[rng.choice(len(kinds), p=weights / weights.sum())]


def severity(kind: str, level: Tensor) -> Tensor:
    """Severity of levels (N,) in [0, 4] of one kind: about 0 for untouched pictures, 4.5 for the worst."""
    return SEVERITY.get(kind, 1.0) * (0.7 + 0.95 * level)


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
        kind = str(rng.choice(list(arniqa_distortions.LADDERS)))
        strengths = strengths.round()
        degraded = arniqa_distortions.distort(clean, kind, strengths, generator)
        order = arniqa_distortions.severity(kind, strengths)
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


class ScoredPictures:
    """Human-scored pictures, of which a crop is cut anew at every visit.

    Pictures are kept decoded, as far as `MEMORY` goes; the others are read again at every visit.

    Args:
        photographs: human-scored ones, with a reference or without.
        size: side of the crops in px.
        short_side: larger pictures are reduced to this short side in px first; 0 for never.
        vertical: crops are mirrored upside down too, half of the time.
    """

    MEMORY = 4 * 2**30
    """Bytes."""

    def __init__(self, photographs: list[Photograph], size: int, short_side: int = 0, vertical: bool = False) -> None:
        self.photographs, self.size, self.short_side, self.vertical = photographs, size, short_side, vertical
        self.labels = raw_units(torch.tensor([p.mos for p in photographs], dtype=torch.float32))
        self.kept: dict[int, list[Image.Image]] = {}
        self.room = self.MEMORY

    def __len__(self) -> int:
        return len(self.photographs)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """A random crop (1, 3, s, s) in [0, 1] of one picture, its label (1,), and the same crop of its reference."""
        crops = random_crops(self._pictures(index), self.size, rng, most=1.4, vertical=self.vertical)
        crop, *reference = (to_tensor(picture)[None].float() / 255 for picture in crops)
        return crop, self.labels[index : index + 1], reference[0] if reference else None

    def _pictures(self, index: int) -> list[Image.Image]:
        """A picture and its reference, at their working size."""
        if index in self.kept:
            return self.kept[index]
        side = self.short_side
        pictures = [reduced(picture, side) for picture in read_with_reference(self.photographs[index], side)]
        size = sum(3 * picture.width * picture.height for picture in pictures)
        if size <= self.room:
            self.kept[index] = pictures
            self.room -= size
        return pictures


class LabelledCrops:
    """Crops of human-scored pictures, each labelled half by people's score of the whole, half by a teacher's of it.

    Args:
        photographs: human-scored ones; `EACH` crops are cut from each, and from its reference where it has one.
        teacher: SqueezeNet 1.0 state dict (`teacher.Squeezenet`).
        size: side of the crops in px.
        rng: decides the crops.
        short_side: larger pictures are reduced to this short side in px first; 0 for never.

    Raises:
        ValueError: a picture cannot be read, or differs in size from its reference.
        WeightsError: the teacher's file cannot be used.
    """

    def __init__(
        self, photographs: list[Photograph], teacher: Path, size: int, rng: np.random.Generator, short_side: int = 0
    ) -> None:
        network = Squeezenet(teacher)
        stack, references = scored_crops(photographs, size, rng, short_side)
        mos = np.repeat([p.mos for p in photographs], EACH)
        features = np.concatenate([network(x.float() / 255).numpy() for x in tqdm(stack.split(16), desc="teacher")])
        second = ridge_predictions(features, mos, np.arange(len(mos)) // EACH)
        self.images, self.references = stack, references
        self.labels = torch.from_numpy(raw_units((mos + second) / 2)).float()

    def __len__(self) -> int:
        return len(self.labels) // EACH

    def draw(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """One of the crops of a picture, as `ScoredPictures.draw`."""
        row = slice(pick := index * EACH + int(rng.integers(EACH)), pick + 1)
        reference = None if self.references is None else self.references[row].float() / 255
        return self.images[row].float() / 255, self.labels[row], reference


def scored_crops(
    photographs: list[Photograph], size: int, rng: np.random.Generator, short_side: int = 0
) -> tuple[Tensor, Tensor | None]:
    """`EACH` crops (N EACH, 3, size, size) uint8 of pictures, those of one side by side, and of their references."""
    crops = []
    for photograph in tqdm(photographs, desc="scored crops"):
        pictures = [reduced(picture, short_side) for picture in read_with_reference(photograph, short_side)]
        crops += [[to_tensor(crop) for crop in random_crops(pictures, size, rng, most=1.4)] for _ in range(EACH)]
    stack, *references = (torch.stack(column) for column in zip(*crops, strict=True))
    return stack, references[0] if references else None


def visit(seed: int, kind: int, place: int, count: int) -> int:
    """Which of `count` pictures is seen at a place of a run: each once in every pass, in an order of its own."""
    order = np.random.default_rng([seed, kind, place // count]).permutation(count)
    return int(order[place % count])
