"""Flux with and without guidance, from the same seed, side by side in one picture.

python recipes/guided_flux.py "a lighthouse at dusk" --tiny-decoder madebyollin/taef1
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FluxPipeline

from iqguide import RewardGuidance, create_model, save_image
from iqguide.guidance.diffusers import guided


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--pipeline", default="black-forest-labs/FLUX.1-dev", help="folder or hub id")
    parser.add_argument("--tiny-decoder", help="AutoencoderTiny of the same latents, a folder or hub id")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--scale", type=float, default=RewardGuidance.scale, help="strength (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("flux.png"))
    args = parser.parse_args(arguments)

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = FluxPipeline.from_pretrained(args.pipeline, torch_dtype=dtype).to(device)
    decoder = AutoencoderTiny.from_pretrained(args.tiny_decoder).to(device, dtype) if args.tiny_decoder else None
    guidance = RewardGuidance(create_model("tiny", device=device), scale=args.scale, decoder=decoder)
    call = {"prompt": args.prompt, "num_inference_steps": args.steps, "output_type": "pt"}
    call |= {"height": args.size, "width": args.size}
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    with guided(pipe, guidance):
        steered = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    save_image(torch.cat([plain, steered], -1), args.out)


if __name__ == "__main__":
    main()
