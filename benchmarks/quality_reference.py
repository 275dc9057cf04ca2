"""A full-reference BPCLIP of the size of `bpclip-mini`, trained on ladders alone, next to models without a reference.

Without a reference a model has to guess how good the photograph was to begin with; with one it only has to say how much
was lost. So besides the steps along a ladder it is asked for the order over different photographs: at one distortion,
does a stronger level get a lower score whatever is in the picture?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from quality_protocol import Pictures, Record, collect, digest
from scipy.stats import spearmanr
from tiny_quality import flat, ladder_scores, tid_steps
from torch import Tensor
from tqdm import tqdm

from iqguide import create_model
from iqguide.images import load_images
from iqguide.models import save_model
from iqguide.models.bpclip_config import MINI
from iqguide.models.cache import find_weights
from iqguide.models.catalog import get_spec
from iqguide.training import finetune
from iqguide.training.config import FinetuneConfig
from iqguide.training.data import clean_photographs, split
from iqguide.training.run_settings import Started

CONFIG = FinetuneConfig(
    model="bpclip-fr", steps=300, lr=6e-4, warmup=30, cut=4, crop=96, ladders=8, ladder_levels=4, ema=0.98,
    freeze=("backbone.",), ranking_weight=1.0, severity_weight=0.0, mos_weight=0.0, alignment_weight=0.0,
    penalty_weight=0.0, attack_weight=0.0, checkpoint_every=100,
)  # fmt: skip
PHOTOGRAPHS, SIDE = 20, 192
Score = Callable[[Tensor, Tensor], Tensor]


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """In dB, (N,) of images (N, 3, H, W) and their references or one for all."""
    return -10 * (images - reference).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def trained(data: Path, out: Path, weights: str, config: FinetuneConfig) -> Path:
    """The file of a model that begins with the backbone of `bpclip-mini`; people's scores play no part."""
    eyes = find_weights(get_spec("bpclip-mini"), weights)
    folder = out / f"bpclip-fr-{digest(config, eyes)}"
    start = folder / "start.safetensors"
    config = dataclasses.replace(config, data=data, init=start, out=folder)
    if not (folder / "run.json").is_file():
        sizes = dataclasses.replace(MINI, full_reference=True)
        model = create_model("bpclip-fr", weights="random", config=sizes, seed=config.seed)
        model.backbone.load_state_dict(create_model("bpclip-mini", weights=eyes).backbone.state_dict())
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, start)
        finetune.train(config, Started(resume=any(folder.glob("checkpoint-*"))))
    return folder / "bpclip-fr.safetensors"


@torch.no_grad()
def on_ladders(score: Score, paths: list[Path], side: int = SIDE) -> Record:
    """Share of the steps down from the clean picture at which the score falls; the order of levels over photographs.

    The clean picture has no part in the order: a model with a reference always puts it on top.
    """
    scores = np.array(list(ladder_scores(score, paths, side).values()))  # distortions, photographs, 6
    level = np.tile(np.arange(5), len(paths))
    orders = [-spearmanr(kind[:, 1:].flatten(), level).statistic for kind in scores]
    return {
        "falls": float((np.diff(scores, axis=-1) < 0).mean()),
        "order": float(np.mean(orders)),
        "worst": min(orders),
    }


@torch.no_grad()
def on_tid(score: Score, known: Pictures) -> Record:
    """Steps and order on the series of tid2013-6ref; its printed scores are a reconstruction and play no part."""
    reference_of = {row["image"]: row["reference"] for row in known.rows}
    images = {name: load_images(path) for name, path in known.tid.items()}
    scores = {
        name: score(image, images[reference_of.get(name, name)]).item()
        for name, image in tqdm(images.items(), desc="tid2013-6ref")
    }
    steps = tid_steps(known.rows, scores)
    orders = []
    for kind in sorted({row["distortion"] for row in known.rows}):
        rows = [row for row in known.rows if row["distortion"] == kind]
        values = [scores[row["image"]] for row in rows]
        flat_scores = len(set(values)) == 1  # of a model that has learnt no order
        orders.append(0.0 if flat_scores else -spearmanr(values, [int(row["level"]) for row in rows]).statistic)
    fell = [step for series in steps.values() for step in flat(series)]
    return {"tid_falls": float(np.mean(fell)), "tid_order": float(np.mean(orders))}


def run(
    data: Path, out: Path, known: Pictures, weights: dict[str, str], config: FinetuneConfig = CONFIG, side: int = SIDE
) -> list[Record]:
    """Records of PSNR, of the bundled models without a reference, and of the one with it."""
    files = {name: find_weights(get_spec(name), weights[name]) for name in ("tiny", "bpclip-mini")}
    held_out = [photograph.path for photograph in split(clean_photographs(data))[1]][:PHOTOGRAPHS]

    def score_of(name: str) -> Score:
        if name == "psnr":
            return psnr
        if name in files:
            margin = create_model(name, weights=files[name]).margin
            return lambda images, reference: margin(images)
        return create_model("bpclip-fr", weights=trained(data, out, weights["bpclip-mini"], config)).margin

    def record(key: Record) -> Record:
        score = score_of(key["model"])
        return on_ladders(score, held_out, side) | on_tid(score, known)

    path = out / f"reference-{digest(*files.values(), config, side)}.json"
    return collect(path, [{"model": name} for name in ("psnr", *files, "bpclip-fr")], record)
