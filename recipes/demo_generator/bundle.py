"""Put a trained demo generator together for shipping: half precision, another decoder if wanted, tidy config files.

python recipes/demo_generator/bundle.py --pipeline runs/demo/pipeline --vae runs/vae-sharp --out models/assets/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autoencoder import tidy
from diffusers import AutoencoderTiny, StableDiffusionPipeline


def spell_out(folder: Path) -> None:
    """Write the vocabulary and the merges as files of their own too, which transformers 4 reads."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True, help="what generator.py wrote")
    parser.add_argument("--vae", type=Path, help="autoencoder with the same encoder; without it the pipeline's own")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline)
    if args.vae:
        pipe.vae = AutoencoderTiny.from_pretrained(args.vae)
    for network in (pipe.vae, pipe.unet):  # diffusers reads them back as float32, transformers would keep half
        network.half()
    pipe.save_pretrained(args.out)
    tidy(args.out)
    spell_out(args.out / "tokenizer")


if __name__ == "__main__":
    main()
