"""Stable Diffusion XL with and without guidance, from the same seed, side by side in one picture.

python recipes/guided_sdxl.py "a lighthouse at dusk" --scale 0.1
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from iqguide import RewardGuidance, create_model, save_image
from iqguide.guidance.diffusers import guided


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--pipeline", default="stabilityai/stable-diffusion-xl-base-1.0", help="folder or hub id")
    parser.add_argument("--scale", type=float, default=RewardGuidance.scale, help="strength (%(default)s)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("guided.png"))
    args = parser.parse_args(arguments)

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableDiffusionXLPipeline.from_pretrained(args.pipeline, torch_dtype=dtype).to(device)
    guidance = RewardGuidance(create_model("tiny", device=device), scale=args.scale)
    call = {"prompt": args.prompt, "num_inference_steps": args.steps, "output_type": "pt"}
    plain = pipe(**call, generator=torch.Generator().manual_seed(args.seed)).images[0]
    with guided(pipe, guidance):
        steered = pipe(**call, generator=torch.Generator().manual_seed(args.seed)).images[0]
    save_image(torch.cat([plain, steered], -1), args.out)


if __name__ == "__main__":
    main()
