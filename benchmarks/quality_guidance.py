"""What guidance-grade fine-tuning does to a model: before, after as many steps without it, after it.

Agreement with people (split 0, whose held-out part nothing has seen); how well the gradient at a degraded photograph
points back to the clean one, on held-out photographs; and what guidance by the model does to the demo generator's
pictures, judged by judges that never steered.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_pictures import Plan, fingerprint, generate, pipeline_modules
from demo_statistics import compare
from judges import judges, load, measure
from quality_protocol import Pictures, Record, collect, digest, figures
from quality_qualiclip import margins

from iqguide import RewardGuidance, create_model
from iqguide.cli.pipelines import load_pipeline
from iqguide.models.cache import find_weights
from iqguide.models.catalog import get_spec
from iqguide.training import batches, finetune, objectives
from iqguide.training.batches import Crops
from iqguide.training.config import FinetuneConfig
from iqguide.training.data import clean_photographs, split
from iqguide.training.run_settings import Started

GUIDANCE_GRADE = {"alignment_weight": 1.0, "penalty_weight": 0.02, "attack_weight": 1.0, "denoised_weight": 1.0}
CONFIGS = {
    "tiny": FinetuneConfig(model="tiny", steps=100, lr=1e-4, warmup=20, cut=4, ema=0.98),
    "bpclip-mini": FinetuneConfig(
        model="bpclip-mini", steps=100, lr=1e-4, warmup=20, cut=4, ema=0.98, scored_crop=256, freeze=("backbone.",)
    ),
}
WAYS = ("before", "as many steps without it", "guidance-grade")
SEEDS, PAIRS = 32, 64


def tuned(config: FinetuneConfig, way: str, data: Path, out: Path, weights: str, denoised: Path | None) -> Path:
    """The file of a model after one of the `WAYS`."""
    start = find_weights(get_spec(config.model), weights)
    if way == "before":
        return start
    option = GUIDANCE_GRADE if way == "guidance-grade" else dict.fromkeys(GUIDANCE_GRADE, 0.0)
    config = dataclasses.replace(config, data=data, init=start, denoised=denoised, **option)
    config = dataclasses.replace(
        config, out=out / f"{config.model}-{way.replace(' ', '-')}-{digest(config, start, denoised or '')}"
    )
    if not (config.out / "run.json").is_file():
        finetune.train(config, Started(resume=any(config.out.glob("checkpoint-*"))))
    return config.out / f"{config.model}.safetensors"


def way_back(model: torch.nn.Module, data: Path, count: int, side: int) -> float:
    """Mean cosine of the margin's gradient at degraded crops with the way back to the clean ones."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    crops = Crops(split(clean_photographs(data))[1], side + 16, 2, rng)
    degraded, clean, _ = batches.pairs(crops, count, side, rng, generator)
    if hasattr(model, "set_attention"):
        model.set_attention("math")  # the only one that can be differentiated twice
    parts = zip(degraded.split(8), clean.split(8), strict=True)
    return 1 - float(torch.cat([objectives.restoration(model.margin, *part)[0].detach() for part in parts]).mean())


def transfer(model: torch.nn.Module, pipe: Any, out: Path, seeds: int) -> dict[str, dict[str, float]]:
    """What guidance changes in the reward and in the judges' verdict, in deviations of the unguided pictures."""
    plan, measured = Plan(tuple(range(seeds)), best_of=1), []
    for name, how in (("unguided", None), ("guided", RewardGuidance(model))):
        folder = out / name if how is None else out / name / fingerprint(model)
        generate(pipe, plan, how, folder)
        images = load([folder / f"{seed}-0.png" for seed in plan.seeds])
        measured.append(measure(images, {"reward": model.margin, **judges()}))
    return {name: compare(*(part[name].numpy() for part in measured)) for name in ("reward", *judges())}


def run(
    data: Path,
    out: Path,
    known: Pictures,
    weights: dict[str, str],
    denoised: Path | None,
    pipeline: str = "demo",
    configs: dict[str, FinetuneConfig] = CONFIGS,
    seeds: int = SEEDS,
) -> list[Record]:
    """Records of each model and way; with `denoised`, a cache of denoised predictions, it takes part in the option."""
    files = [find_weights(get_spec(name), weights[name]) for name in configs]
    pipe = load_pipeline(pipeline, torch.device("cpu")) if seeds else None
    drawn_by = fingerprint(*pipeline_modules(pipe)) if pipe else ""
    path = out / f"guidance-{digest(*files, denoised or '', configs, seeds, drawn_by)}.json"

    def record(key: Record) -> Record:
        name = key["model"]
        file = tuned(configs[name], key["way"], data, out, weights[name], denoised)
        model = create_model(name, weights=file)
        aside = known.held_out(0)
        held_out = [photograph.path for photograph, apart in zip(known.scored, aside, strict=True) if apart]
        record = figures(known, 0, margins(model, held_out), margins(model, list(known.tid.values())))
        record["way_back"] = way_back(model, data, PAIRS, configs[name].crop)
        return record | ({"transfer": transfer(model, pipe, out / "pictures", seeds)} if seeds else {})

    return collect(path, [{"model": name, "way": way} for name in configs for way in WAYS], record)
