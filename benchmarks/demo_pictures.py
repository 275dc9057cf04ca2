"""Pictures of the demo benchmark: generated in batches, kept as PNG, made again only when their settings changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from iqguide.cli.pipelines import DEMO_CALL
from iqguide.guidance import RewardGuidance

PROMPTS = ("", "dark", "bright", "grey", "colourful", "smooth", "busy", "cool", "warm")
SEED_STRIDE = 1_000_000  # candidate k of seed s has the seed s + k * SEED_STRIDE, so candidate 0 is the seed itself


@dataclass(frozen=True)
class Plan:
    """What is drawn for one benchmark."""

    seeds: tuple[int, ...]
    best_of: int = 8
    batch: int = 8
    steps: int = DEMO_CALL["num_inference_steps"]
    guidance_scale: float = DEMO_CALL["guidance_scale"]
    """Of classifier-free guidance."""
    prompts: tuple[str, ...] = PROMPTS

    def prompt(self, seed: int) -> str:
        return self.prompts[seed % len(self.prompts)]

    def call(self) -> dict[str, Any]:
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}


def fingerprint(*modules: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(
                name.encode() + tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:12]


def pipeline_modules(pipe: Any) -> list[nn.Module]:
    return [module for _, module in sorted(pipe.components.items()) if isinstance(module, nn.Module)]


def plain(guidance: RewardGuidance) -> dict[str, Any]:
    """Its settings, without reward and decoder."""
    return {f.name: getattr(guidance, f.name) for f in fields(guidance) if f.name not in ("reward", "decoder")}


def settings_of(pipe: Any, plan: Plan, guidance: RewardGuidance | None) -> dict[str, Any]:
    """What a picture depends on besides its seed, as JSON keeps it."""
    settings = {"pipeline": fingerprint(*pipeline_modules(pipe)), "prompts": list(plan.prompts), **plan.call()}
    if guidance is not None:
        settings |= {"guidance": plain(guidance), "reward": fingerprint(guidance.reward)}
    return json.loads(json.dumps(settings))


def generate(pipe: Any, plan: Plan, guidance: RewardGuidance | None, folder: Path) -> dict[str, float]:
    """Draw every candidate of every seed that `folder` does not hold yet, as SEED-K.png.

    Returns:
        Seconds per picture, by file stem. A picture of a batch has its share of the batch's time. The file
        settings.json has these, and the same in processor time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "settings.json"
    log = {"settings": settings_of(pipe, plan, guidance), "seconds": {}, "processor": {}}
    if log_file.exists():
        before = json.loads(log_file.read_text())
        if before["settings"] == log["settings"]:
            log |= before
        else:
            tqdm.write(f"{folder}: other settings than before, the pictures are made again")
            for picture in folder.glob("*.png"):
                picture.unlink()
    wanted = [(seed, k) for k in range(plan.best_of) for seed in plan.seeds]
    # a run that was killed may have left pictures whose times it had not written down
    kept = {name for name in log["processor"] if (folder / f"{name}.png").exists()}
    missing = [(seed, k) for seed, k in wanted if f"{seed}-{k}" not in kept]
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=folder.name, unit="picture") as progress:
        for start in range(0, len(missing), plan.batch):
            batch = missing[start : start + plan.batch]
            images, seconds, processor = draw(pipe, plan, guidance, batch)
            for (seed, k), image in zip(batch, images, strict=True):
                image.save(folder / f"{seed}-{k}.png")
                log["seconds"][f"{seed}-{k}"] = round(seconds / len(batch), 4)
                log["processor"][f"{seed}-{k}"] = round(processor / len(batch), 4)
            log_file.write_text(json.dumps(log))
            progress.update(len(batch))
    return log["seconds"]


def draw(
    pipe: Any, plan: Plan, guidance: RewardGuidance | None, candidates: Sequence[tuple[int, int]]
) -> tuple[list[Image.Image], float, float]:
    """One batch of (seed, k) candidates: 8-bit pictures, the seconds the call took, and those of processor time."""
    from iqguide.guidance.diffusers import guided

    generators = [torch.Generator().manual_seed(seed + k * SEED_STRIDE) for seed, k in candidates]
    prompts = [plan.prompt(seed) for seed, _ in candidates]
    with guided(pipe, guidance) if guidance is not None else nullcontext():
        start = time.perf_counter(), time.process_time()
        images = pipe(prompts, generator=generators, **plan.call()).images
        return images, time.perf_counter() - start[0], time.process_time() - start[1]


def copy_choice(choice: dict[int, int], candidates: Path, folder: Path) -> list[Path]:
    """Copy candidate choice[seed] of every seed to folder/SEED.png."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return [Path(shutil.copy(candidates / f"{seed}-{k}.png", folder / f"{seed}.png")) for seed, k in choice.items()]


def contact_sheet(rows: dict[str, list[Path]], path: Path, columns: int = 16, side: int = 128) -> None:
    """Rows of pictures, one under the other: bands of `columns`, with the methods of `rows` in order in each band."""
    count = len(next(iter(rows.values())))
    bands = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    gap = 6
    height = len(bands) * (len(rows) * side + gap)
    sheet = Image.new("RGB", (min(columns, count) * side, height), "white")
    for band, picks in enumerate(bands):
        for row, paths in enumerate(rows.values()):
            for column, index in enumerate(picks):
                picture = Image.open(paths[index]).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(picture, (column * side, band * (len(rows) * side + gap) + row * side))
    sheet.save(path, optimize=True)
