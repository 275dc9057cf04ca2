"""Ladders that a training step has no time for, made once: codecs, autoencoders, slow smoothing.

    python -m iqguide.training.ladder_cache --data DIR --taef2 DIR/weights --out ladders.safetensors

One crop of a good photograph, clean and at five levels of one kind. A cache holds crops of every photograph, held-out
ones too, each with its name: a training takes those of its own part, a measurement the others.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..errors import WeightsError, make_folder, one_sentence
from ..images import MIN_SIDE
from . import autoencoders, generated_distortions
from .crops import random_crop, read
from .data import GOOD, biq_photographs, clean_photographs, scored_photographs
from .kinds import Kind, ladder
from .options import SEEDS, Parser, parse_within
from .pictures import BIQ_GOOD

LEVELS = 5
CODECS: dict[str, tuple[str, tuple[float, ...]]] = {
    "coded_jpeg": ("JPEG", (45, 27, 17, 10, 5)),
    "coded_jpeg2000": ("JPEG2000", (20, 40, 70, 120, 200)),
    "coded_webp": ("WEBP", (50, 30, 16, 7, 1)),
    "coded_avif": ("AVIF", (45, 32, 22, 14, 7)),
}
"""Pillow's codecs and five qualities (of JPEG 2000 rates) from good to bad."""
SLOW = ("median", "bilateral", "non_local_means", "kuwahara")
"""Kinds of `generated_distortions` that are cached too."""
CODEC_SHARE = 0.5
"""Of the ladders; the rest is of autoencoders and of slow smoothing, in equal parts of each kind."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("count", "batch"), (1, math.inf)), "workers": (0, math.inf), "crop": (MIN_SIDE, math.inf),
    "seed": SEEDS,
}  # fmt: skip


@dataclass(frozen=True)
class LadderCache:
    """Ladders ready made."""

    images: Tensor
    """(M, 1 + LEVELS, 3, s, s) uint8, clean and from weak to severe."""
    severity: Tensor
    """(M, 1 + LEVELS) float32, 0 first."""
    kinds: list[str]
    """M names."""
    groups: list[str]
    """M families."""
    sources: list[str]
    """M names of photographs, as in `Pictures.names`."""

    def part(self, chosen: np.ndarray) -> LadderCache:
        """Some of the ladders, by (M,) bool or indices."""
        rows = np.arange(len(self.kinds))[chosen]
        names = ([values[row] for row in rows] for values in (self.kinds, self.groups, self.sources))
        rows = torch.from_numpy(rows)
        return LadderCache(self.images[rows], self.severity[rows], *names)


def write_cache(cache: LadderCache, path: Path) -> None:
    """Write a file for `read_cache`."""
    names = {"kinds": cache.kinds, "groups": cache.groups, "sources": cache.sources}
    metadata = {name: json.dumps(values) for name, values in names.items()}
    save_file({"images": cache.images.contiguous(), "severity": cache.severity.float()}, path, metadata)


def read_cache(path: Path) -> LadderCache:
    """What `write_cache` has written.

    Raises:
        WeightsError: the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise WeightsError(f"there is no cache of ladders {path}; see docs/training.md.")
    try:
        with safe_open(path, framework="pt") as file:
            names = [json.loads((file.metadata() or {})[name]) for name in ("kinds", "groups", "sources")]
            return LadderCache(file.get_tensor("images"), file.get_tensor("severity"), *names)
    except (KeyError, SafetensorError) as error:
        raise WeightsError(f"{path} is no whole cache of ladders ({error}); make it again.") from error


def code(image: np.ndarray, codec: str, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode (H, W, 3) uint8 with one of Pillow's codecs; JPEG with or without full chroma at random."""
    options: dict[str, Any] = {"quality": round(quality)}
    if codec == "JPEG2000":
        options = {"quality_mode": "rates", "quality_layers": [quality], "irreversible": bool(rng.random() < 0.5)}
    elif codec == "JPEG":
        options["subsampling"] = int(rng.choice([0, 2]))
    elif codec == "AVIF":
        options["speed"] = 8
    file = io.BytesIO()
    Image.fromarray(image).save(file, codec, **options)
    return np.asarray(Image.open(file).convert("RGB"))


def base_crop(path: Path, soft: bool, size: int, rng: np.random.Generator) -> np.ndarray:
    """A clean crop (size, size, 3) uint8; pictures that may be a little soft are reduced more."""
    return np.asarray(random_crop(read(path), size, rng, most=4.0, least=1.5 if soft else 1.0))


def coded_ladder(job: tuple[Path, bool, str, int], size: int) -> np.ndarray:
    """A ladder (1 + LEVELS, size, size, 3) uint8 of one photograph: path, whether it may be soft, kind, seed."""
    path, soft, kind, seed = job
    rng = np.random.default_rng(seed)
    clean = base_crop(path, soft, size, rng)
    codec, values = CODECS[kind]
    return np.stack([clean, *(code(clean, codec, value, rng) for value in values)])


def clean_crop(job: tuple[Path, bool, str, int], size: int) -> np.ndarray:
    """The first rung alone, (size, size, 3) uint8, for kinds that are made a batch at a time."""
    path, soft, _, seed = job
    return base_crop(path, soft, size, np.random.default_rng(seed))


def sources(data: Path) -> list[tuple[Path, bool]]:
    """Photographs that ladders begin at, held-out ones included, and whether each may be a little soft."""
    photographs = [(p.path, False) for p in clean_photographs(data)]
    photographs += [(p.path, True) for p in scored_photographs(data) if p.mos > GOOD]
    return photographs + [(p.path, True) for p in biq_photographs(data) if p.mos > BIQ_GOOD]


@torch.no_grad()
def tensor_ladders(kind: Kind, clean: np.ndarray, device: torch.device, batch: int, seed: int) -> Tensor:
    """Ladders (M, 1 + LEVELS, 3, s, s) uint8 of clean crops (M, s, s, 3) by a kind that works on tensors."""
    generator, ladders = torch.Generator().manual_seed(seed), []
    for part in torch.from_numpy(clean).permute(0, 3, 1, 2).split(batch):
        images = part.to(device).float() / 255
        levels = torch.arange(float(LEVELS)).repeat(len(part))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            degraded = kind.degrade(images.repeat_interleave(LEVELS, 0), levels, generator)
        degraded = (degraded.float().clamp(0, 1) * 255).round().byte().cpu().unflatten(0, (len(part), LEVELS))
        ladders.append(torch.cat([part[:, None], degraded], 1))
    return torch.cat(ladders)


def build(args: argparse.Namespace) -> LadderCache:
    """Make a cache with the settings of the flags."""
    rng, device = np.random.default_rng(args.seed), torch.device(args.device)
    taef2 = autoencoders.read_taef2(args.taef2) if args.taef2 else None
    slow = [ladder(name, "smoothing", *generated_distortions.LADDERS[name]) for name in SLOW]
    if taef2 is not None:
        autoencoded = autoencoders.ladders(taef2.encode, taef2.decode)
        slow += [ladder(name, "autoencoder", *values) for name, values in autoencoded.items()]
    photographs = sources(args.data)
    names = [*CODECS, *(kind.name for kind in slow)]
    shares = [CODEC_SHARE / len(CODECS)] * len(CODECS) + [(1 - CODEC_SHARE) / len(slow)] * len(slow)
    drawn = sorted(rng.choice(names, args.count, p=shares), key=names.index)
    picks = rng.integers(0, len(photographs), args.count)
    jobs = [(*photographs[n], str(kind), int(rng.integers(2**31))) for n, kind in zip(picks, drawn, strict=True)]
    coded = [job for job in jobs if job[2] in CODECS]
    parts = [*_map(partial(coded_ladder, size=args.crop), coded, args.workers, "codecs")]
    images = [torch.from_numpy(np.stack(parts)).permute(0, 1, 4, 2, 3)] if parts else []
    first = _map(partial(clean_crop, size=args.crop), jobs[len(coded) :], args.workers, "crops")
    kinds = {name: ladder(name, "compression", None, values) for name, (_, values) in CODECS.items()}
    kinds |= {kind.name: kind for kind in slow}
    if taef2 is not None:
        taef2.to(device)  # not before the worker processes, which begin as copies of this one
    for kind in tqdm(slow, desc="ladders"):
        rows = [row for row, job in zip(first, jobs[len(coded) :], strict=True) if job[2] == kind.name]
        if rows:
            images.append(tensor_ladders(kind, np.stack(rows), device, args.batch, args.seed))
    levels = torch.arange(float(LEVELS))
    severity = [torch.cat([torch.zeros(1), kinds[job[2]].severity(levels)]) for job in jobs]
    return LadderCache(
        torch.cat(images), torch.stack(severity), [job[2] for job in jobs], [kinds[job[2]].group for job in jobs],
        [f"{job[0].parent.parent.name}/{job[0].name}" for job in jobs],
    )  # fmt: skip


def _map(function: Callable, jobs: list, workers: int, what: str) -> list:
    if not workers:
        return [function(job) for job in tqdm(jobs, desc=what)]
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(function, jobs, chunksize=4), total=len(jobs), desc=what))


def main(arguments: list[str] | None = None) -> None:
    """Write the cache that the command line asks for."""
    flags = Parser(prog="python -m iqguide.training.ladder_cache")
    flags.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/ and biq2021/")
    flags.add_argument("--taef2", type=Path, help="folder with TAEF2's files; none: no damage of autoencoders")
    flags.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    flags.add_argument("--count", type=int, default=1500, help="ladders (%(default)s)")
    flags.add_argument("--crop", type=int, default=256, help="side of the crops, px, a multiple of 8 (%(default)s)")
    flags.add_argument("--batch", type=int, default=4, help="ladders at a time on the device (%(default)s)")
    flags.add_argument("--workers", type=int, default=2, help="processes for the codecs (%(default)s)")
    flags.add_argument("--device", default="cpu", help="where the autoencoder runs (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    args = parse_within(flags, RANGES, arguments)
    with one_sentence():
        make_folder(args.out.parent)
        write_cache(build(args), args.out)


if __name__ == "__main__":
    main()
