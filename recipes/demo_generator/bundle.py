"""Put a trained demo generator together for shipping: half precision, the finer decoder, tidy config files.

python recipes/demo_generator/bundle.py --pipeline runs/demo/pipeline --vae runs/vae-fine --out models/assets/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoencoder import tidy
from diffusers import AutoencoderTiny, StableDiffusionPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True, help="what generator.py wrote")
    parser.add_argument("--vae", type=Path, help="autoencoder with the same encoder; without it the pipeline's own")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline)
    if args.vae:
        pipe.vae = AutoencoderTiny.from_pretrained(args.vae)
    for network in (pipe.vae, pipe.unet, pipe.text_encoder):
        network.half()
    pipe.save_pretrained(args.out)
    tidy(args.out)


if __name__ == "__main__":
    main()
