"""A QualiCLIP at reduced width, trained from random weights as QualiCLIP is: on ladders alone, without any opinion."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from quality_protocol import Pictures, Record, cached, collect, digest, figures
from tqdm import tqdm

from iqguide import create_model
from iqguide.training import finetune
from iqguide.training.config import FinetuneConfig
from iqguide.training.crops import read, to_tensor
from iqguide.training.run_settings import Started

SIZES = {"layers": [1, 1, 1, 1], "width": 16, "embed_dim": 128}
CONFIG = FinetuneConfig(
    model="qualiclip", options={"config": SIZES}, prompt_weight=1.0, twins="own", levels=5, ladders=3, crop=128, cut=4,
    steps=600, lr=1e-3, checkpoint_every=250, ranking_weight=0.0, severity_weight=0.0, mos_weight=0.0,
    alignment_weight=0.0, penalty_weight=0.0, attack_weight=0.0,
)  # fmt: skip


@torch.no_grad()
def margins(model: torch.nn.Module, paths: list[Path]) -> np.ndarray:
    values = (model.margin(to_tensor(read(path))[None] / 255).item() for path in tqdm(paths, desc="scoring"))
    return np.array(list(values))


def run(data: Path, out: Path, known: Pictures, splits: int, config: FinetuneConfig = CONFIG) -> list[Record]:
    """Records of one model on the held-out parts of `splits` splits; people's scores play no part in its training."""
    folder = out / f"qualiclip-{digest(config)}"
    config = dataclasses.replace(config, data=data, out=folder)
    if not (folder / "run.json").is_file():
        finetune.train(config, Started(resume=any(folder.glob("checkpoint-*"))))
    model = create_model("qualiclip", weights=folder / "qualiclip.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    wanted = np.flatnonzero(np.any([known.held_out(number) for number in range(splits)], axis=0))

    def judged() -> dict[str, torch.Tensor]:
        scores = np.full(len(known.scored), np.nan)
        scores[wanted] = margins(model, [known.scored[number].path for number in wanted])
        return {"scored": torch.from_numpy(scores), "tid": torch.from_numpy(margins(model, list(known.tid.values())))}

    seen = {name: scores.numpy() for name, scores in cached(folder / f"scores-{splits}.pt", judged).items()}

    def measure(key: Record) -> Record:
        scores = seen["scored"][known.held_out(key["split"])]
        return figures(known, key["split"], scores, seen["tid"]) | {"parameters": parameters}

    keys = [{"variant": "qualiclip, reduced", "split": number, "seed": config.seed} for number in range(splits)]
    return collect(folder / "records.json", keys, measure)
