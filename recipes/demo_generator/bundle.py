"""Put a trained demo generator together for shipping: half precision, another decoder if wanted, tidy config files.

    python recipes/demo_generator/bundle.py --pipeline runs/demo/pipeline --vae runs/vae-sharp --out models/assets/demo

A generator that went on from another (`generator.py --init`) may also stop between the two: with `--before OTHER
--way 0.7` their weights are averaged, and with them how many clean and degraded pictures they draw.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from autoencoder import tidy
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import nn


def spell_out(folder: Path) -> None:
    """Write the vocabulary and the merges as files of their own too, which transformers 4 reads."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


@torch.no_grad()
def interpolate(network: nn.Module, before: nn.Module, way: float) -> None:
    """Move the weights back to those of `before` and from there `way` (0 to 1) of what they had come, in place."""
    for parameter, first in zip(network.parameters(), before.parameters(), strict=True):
        parameter.copy_(torch.lerp(first.float(), parameter.float(), way))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True, help="what generator.py wrote")
    parser.add_argument("--vae", type=Path, help="autoencoder with the same encoder; without it the pipeline's own")
    parser.add_argument("--before", type=Path, help="pipeline from which this one went on")
    parser.add_argument("--way", type=float, default=1.0, help="share of the way from --before, 0 to 1 (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    if not 0 <= args.way <= 1 or (args.before is None and args.way < 1):
        parser.error(f"--way is {args.way}; expected a share from 0 to 1, together with --before.")
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline)
    if args.before:
        before = StableDiffusionPipeline.from_pretrained(args.before)
        interpolate(pipe.unet, before.unet, args.way)
        interpolate(pipe.text_encoder, before.text_encoder, args.way)
    if args.vae:
        pipe.vae = AutoencoderTiny.from_pretrained(args.vae)
    for network in (pipe.vae, pipe.unet):  # diffusers reads them back as float32, transformers would keep half
        network.half()
    pipe.save_pretrained(args.out)
    tidy(args.out)
    spell_out(args.out / "tokenizer")


if __name__ == "__main__":
    main()
