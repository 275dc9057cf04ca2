"""Where a training of a BPCLIP begins and ends: the flags that all of them have, the model, and what is written."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..models.bpclip import BPCLIP
from ..models.bpclip_config import LITE, SIZES
from ..models.create import create_model
from ..models.hub import save_model
from .calibrate import held_out_crops, measure
from .config import FinetuneConfig
from .options import Parser, json_object
from .parts import checked_parts
from .pretrained import load_pretrained, pretrained_file
from .run_record import RECORD, listed, write_record
from .run_settings import WORKING_SIDE

BEST = {"live-challenge": 100, "biq2021": 1}
"""Folder of human-scored photographs -> its best score; the worst is 0."""


def add_start(parser: Parser) -> None:
    """The flags that say what is trained from where."""
    folders = ", ".join(f"{name}/" for name in ("pristine", *BEST))
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {folders}")
    parser.add_argument("--out", type=Path, required=True, help="folder for MODEL.safetensors and run.json")
    parser.add_argument("--model", default="bpclip-mini", choices=("bpclip-mini", "bpclip"), help="(%(default)s)")
    parser.add_argument("--init", type=Path, help="a file of that model to go on from")
    parser.add_argument("--trunk", type=Path, help="state dict of the backbone's ImageNet weights")
    parser.add_argument("--text", type=Path, help="CLIP checkpoint that encodes the adjectives, for bpclip")
    parser.add_argument(
        "--sizes", type=json_object, default={}, help="of the config, as JSON, in place of the model's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")


def start(args: argparse.Namespace) -> BPCLIP:
    """The model that a training starts from: a trained file, or pretrained parts under fresh layers.

    Fresh masks weigh every place alike.

    Raises:
        ValueError: a file is given that the model has no use for.
        WeightsError: a file is missing, damaged or of another network.
    """
    if args.init:
        return create_model(args.model, weights=args.init)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in args.sizes.items()}
    config = dataclasses.replace(SIZES[args.model], **given)
    options = {} if config.backbone == LITE else {"backbone": args.trunk or "imagenet", "text": args.text}
    model = create_model(args.model, weights="random", config=config, seed=args.seed, **options)
    if model.config.backbone == LITE:
        load_pretrained(model.backbone, args.trunk or pretrained_file())
    for pool in model.pools:
        nn.init.zeros_(pool.mask[-1].weight)
        nn.init.zeros_(pool.mask[-1].bias)
    return model


def finish(model: BPCLIP, args: argparse.Namespace, last: dict[str, float]) -> None:
    """Calibrate, write and measure a trained model; `last` is what the training ended with."""
    parts = checked_parts(FinetuneConfig(data=args.data))
    crops = held_out_crops(parts.clean_held_out, args.crop, args.seed)
    model.calibrate_margin(crops.to(model.margin_mean.device).split(32))
    save_model(model, args.out / f"{args.model}.safetensors")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    sizes = {"size": WORKING_SIDE, "crop": args.crop, "seed": args.seed}
    figures = measure(model, parts.held_out, parts.clean_held_out, **sizes)
    write_record(args.out / RECORD, settings=settings, last=last, held_out=figures)
    tqdm.write(listed(figures))
