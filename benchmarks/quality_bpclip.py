"""`bpclip-mini` on ten splits, and what its parts are good for: everything above the pooling's masks, fitted anew.

Backbone and masks are those of a trained `bpclip-mini` and stand still, so their maps are computed once; all variants
see the same maps.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_protocol import WHOLE, Pictures, Record, cached, collect, digest, figures, split_keys
from torch import Tensor
from tqdm import tqdm

from iqguide import create_model
from iqguide.models.bpclip import BPCLIP
from iqguide.models.bpclip_config import MINI, BPCLIPConfig
from iqguide.models.cache import find_weights
from iqguide.models.catalog import get_spec
from iqguide.training import fit_bpclip
from iqguide.training.batches import EACH
from iqguide.training.crops import read, to_tensor
from iqguide.training.data import clean_photographs, split

SEEN = ("--small", "70", "--large", "4", "--large-crop", "192", "--scored-crop", "192")
FIT = ("--lr", "6e-4", "--ladders", "10", "--scored", "16", "--steps", "200")
SMALL = dataclasses.replace(MINI, width=128)
ABLATIONS = {
    "bottom-up, weight branch, adjectives": SMALL,
    "top-down": dataclasses.replace(SMALL, direction="top-down"),
    "no weight branch": dataclasses.replace(SMALL, weight_branch=False),
    "plain regression head": dataclasses.replace(SMALL, anchors="none"),
}
SEEDS = 3


def parse(settings: tuple[str, ...], **more: object) -> argparse.Namespace:
    flags = [f"--{name}={value}" for name, value in more.items()]
    return fit_bpclip.parse([*settings, "--data=", "--init=", "--out=", *flags])


def whole_pictures(eyes: BPCLIP, paths: list[Path]) -> list[Tensor]:
    """Pooled maps (1, C, h, w) of each picture."""
    images = (to_tensor(read(path))[None].float() / 255 for path in tqdm(paths, desc="whole pictures"))
    return [fit_bpclip.gated(eyes, image) for image in images]


def maps(eyes: BPCLIP, data: Path, known: Pictures, crops: tuple[str, ...]) -> dict[str, Any]:
    """What backbone and masks see: of ladders, of crops of all scored pictures, and of whole pictures."""
    args, rng = parse(crops), np.random.default_rng(0)
    ladders = fit_bpclip.gather_ladders(eyes, split(clean_photographs(data))[0], args, rng)
    return {
        "ladders": [vars(part) for part in ladders],
        "crops": fit_bpclip.gather_scored(eyes, known.scored, args.scored_crop, rng),
        "scored": whole_pictures(eyes, [photograph.path for photograph in known.scored]),
        "tid": whole_pictures(eyes, list(known.tid.values())),
    }


def fresh(eyes: BPCLIP, config: BPCLIPConfig, seed: int) -> BPCLIP:
    """A model of these sizes that has the eyes' backbone and masks, and random weights above them."""
    model = create_model("bpclip-mini", weights="random", config=config, seed=seed)
    model.backbone.load_state_dict(eyes.backbone.state_dict())
    for own, theirs in zip(model.pools, eyes.pools, strict=True):
        own.mask.load_state_dict(theirs.mask.state_dict())
    return model


@torch.no_grad()
def judged(model: BPCLIP, seen: list[Tensor]) -> np.ndarray:
    with torch.autocast("cpu", torch.bfloat16):
        return np.array([model.judge(fit_bpclip.vectors(model, part.float())).item() for part in seen])


def fitted(eyes: BPCLIP, seen: dict[str, Any], known: Pictures, key: Record, settings: tuple[str, ...]) -> BPCLIP:
    """A model fitted on one split: `key` names the variant, the split and the seed."""
    config = ABLATIONS.get(key["variant"], eyes.config)
    args, model = parse(settings, seed=key["seed"]), fresh(eyes, config, key["seed"])
    kept = np.repeat(~known.held_out(key["split"]), EACH)
    labels = torch.from_numpy(np.repeat(known.opinions, EACH)[kept])
    ladders = [fit_bpclip.Ladders(**part) for part in seen["ladders"]]
    torch.manual_seed(key["seed"])
    fit_bpclip.fit(model, fit_bpclip.Known(ladders, seen["crops"][torch.from_numpy(kept)], labels), args)
    return model


def run(
    part: str,
    data: Path,
    out: Path,
    known: Pictures,
    weights: str,
    splits: int,
    crops: tuple[str, ...] = SEEN,
    settings: tuple[str, ...] = FIT,
) -> list[Record]:
    """Records of the file itself and of "bpclip-mini" on `splits` splits, or of the "ablations" on the first."""
    mark = digest(find_weights(get_spec("bpclip-mini"), weights), crops)
    eyes = create_model("bpclip-mini", weights=weights).to(memory_format=torch.channels_last)
    seen = cached(out / f"bpclip-{mark}.pt", lambda: maps(eyes, data, known, crops))
    if part == "ablations":
        keys = [{"variant": name, "split": 0, "seed": seed} for seed in range(SEEDS) for name in ABLATIONS]
    else:
        keys = split_keys("bpclip-mini", splits)

    def record(key: Record) -> Record:
        model = eyes if key["variant"].endswith(WHOLE) else fitted(eyes, seen, known, key, settings)
        aside = known.held_out(key["split"])
        scores = judged(model, [part for part, apart in zip(seen["scored"], aside, strict=True) if apart])
        parameters = sum(p.numel() for p in model.parameters())
        return figures(known, key["split"], scores, judged(model, seen["tid"])) | {"parameters": parameters}

    return collect(out / f"bpclip-{mark}-{digest(settings, ABLATIONS)}.json", keys, record)
