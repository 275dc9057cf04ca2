"""Steer sampling by words, each with a weight: more of the first, less of what has a weight below 0.

python recipes/attribute_guidance.py "a lighthouse" --pipeline ID --pair "Sharp photo." "Blurry photo." 1
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import iqguide
from iqguide.guidance.diffusers import guided


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--pipeline", required=True, help="folder or hub id")
    parser.add_argument("--pair", nargs=3, action="append", required=True, metavar=("WORDS", "OPPOSITE", "WEIGHT"))
    parser.add_argument("--target", type=float, help="stop at this value, in logits (default: never)")
    parser.add_argument("--weights", default="default", help="of CLIP RN50 (408 MB), or a file")
    parser.add_argument("--scale", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("attributes.png"))
    args = parser.parse_args(arguments)

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, torch_dtype=dtype).to(device)
    pairs = [(words, opposite) for words, opposite, _ in args.pair]
    clip = iqguide.create_model("clipiqa", weights=args.weights, pairs=pairs, device=device)
    reward = iqguide.Attributes(clip, {words: float(weight) for words, _, weight in args.pair})
    with guided(pipe, iqguide.RewardGuidance(reward, scale=args.scale, target=args.target)):
        image = pipe(args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).images[0]
    iqguide.save_image(image, args.out)


if __name__ == "__main__":
    main()
