"""Batches of ladders for `lite` and `tiny`: live kinds of degradations, and those of caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import distortions
from .kinds import Kind, all_kinds
from .ladder_cache import LadderCache
from .pictures import Pictures, crops

CACHED_SHARE = 0.35
"""Of the ladders, where there are caches."""
RECOMPRESSED = 0.2
"""Share of the ladders whose rungs, the clean one too, all pass a mild JPEG."""
NOT_LIVE = ("jpeg2000", "published_jpeg2000", "median", "bilateral", "non_local_means", "kuwahara")
"""Kinds that would hold up a step; caches have them."""
WEIGHTS = {"gaussian_blur": 3.0, "jpeg": 4.0, "white_noise": 2.0, "grain": 2.0, "lens_blur": 2.0}
"""How often a live kind is drawn, 1 for those not named: what photographs and web pictures suffer from most."""


@dataclass(frozen=True)
class Ladders:
    """Some ladders of increasingly degraded crops."""

    images: Tensor
    """(P, L, 3, s, s) in [0, 1], the cleanest first."""
    severity: Tensor
    """(P, L): how much each degradation hurts, about 0 to 4.5; 0 first."""


class Drawer:
    """Draws ladders from photographs and caches.

    Args:
        pictures: photographs; those of `ladder_bases` are degraded.
        caches: ready ladders; those of held-out photographs are left out.
        without: groups of kinds that must not be drawn.
        size: side of the crops, px; of caches, windows of this size where they are larger.
        rungs: crops per ladder, the clean one included.
        seed: of everything random.
    """

    def __init__(
        self,
        pictures: Pictures,
        caches: Sequence[LadderCache],
        without: Sequence[str],
        size: int,
        rungs: int,
        seed: int,
    ) -> None:
        self.pictures, self.size, self.rungs = pictures, size, rungs
        self.bases = pictures.ladder_bases()
        device = pictures.images[0].device
        usable = {name for name, kept in zip(pictures.names, pictures.kept, strict=True) if kept}
        self.caches = []
        for cache in caches:
            pairs = zip(cache.groups, cache.sources, strict=True)
            chosen = np.array([group not in without and source in usable for group, source in pairs])
            if chosen.any():
                part = cache.part(chosen)
                self.caches.append((part.images.to(device), part.severity.to(device)))
        self.kinds = [kind for kind in all_kinds() if kind.group not in without and kind.name not in NOT_LIVE]
        weights = np.array([WEIGHTS.get(kind.name, 1.0) for kind in self.kinds])
        self.shares = weights / weights.sum()
        self.recompressed = 0.0 if "compression" in without else RECOMPRESSED
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def draw(self, photos: int) -> Ladders:
        """`photos` ladders of one kind."""
        if self.caches and self.rng.random() < CACHED_SHARE:
            return self._cached(photos)
        kind = self.kinds[self.rng.choice(len(self.kinds), p=self.shares)]
        return self._live(kind, photos)

    def _cached(self, photos: int) -> Ladders:
        sizes = np.array([len(images) for images, _ in self.caches])
        images, severity = self.caches[self.rng.choice(len(sizes), p=sizes / sizes.sum())]
        rows = torch.from_numpy(self.rng.integers(0, len(images), photos)).to(images.device)
        steps = images.shape[1] - 1
        picks = [0, *(1 + np.sort(self.rng.permutation(steps)[: self.rungs - 1])).tolist()]
        side = min(self.size, images.shape[-1])
        y, x = self.rng.integers(0, images.shape[-1] - side + 1, 2) // 8 * 8
        cropped = images[rows][:, picks, :, y : y + side, x : x + side].float() / 255
        return Ladders(cropped.flip(4) if self.rng.random() < 0.5 else cropped, severity[rows][:, picks])

    def _live(self, kind: Kind, photos: int) -> Ladders:
        rows = self.rng.choice(self.bases, photos)
        scale = float(np.exp(self.rng.uniform(0, np.log(2.0))))
        clean = crops(self.pictures, rows, self.size, scale, self.rng)
        shape = (photos, self.rungs - 1)
        if kind.whole:
            level = np.stack([np.sort(self.rng.permutation(5)[: self.rungs - 1]) for _ in range(photos)])
        else:
            level = np.sort(self.rng.uniform(0, 4, shape), 1)
        level = torch.from_numpy(level).float()
        degraded = kind.degrade(clean.repeat_interleave(self.rungs - 1, 0), level.flatten(), self.generator)
        images = torch.cat([clean[:, None], degraded.float().unflatten(0, shape)], 1)
        severity = torch.cat([torch.zeros(photos, 1), kind.severity(level.flatten()).view(shape)], 1)
        if self.rng.random() < self.recompressed:
            quality = torch.full((images.shape[0] * images.shape[1],), float(self.rng.uniform(55, 92)))
            images = distortions.jpeg(images.flatten(0, 1), quality).unflatten(0, images.shape[:2])
        return Ladders(images, severity.to(images.device))
