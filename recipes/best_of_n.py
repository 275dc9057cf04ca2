"""Draw several pictures of one prompt and keep the best.

python recipes/best_of_n.py "a lighthouse at dusk" --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 -n 8
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import iqguide


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--pipeline", required=True, help="folder or hub id")
    parser.add_argument("-n", type=int, default=8, help="candidates")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--halving", action="store_true", help="drop the worse half at 40 and at 70 %% of the steps")
    parser.add_argument("--out", type=Path, default=Path("best.png"))
    args = parser.parse_args(arguments)

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, torch_dtype=dtype).to(device)
    reward = iqguide.create_model("tiny", device=device)
    call = {"prompt": args.prompt, "num_inference_steps": args.steps, "halving": args.halving}
    ranking = iqguide.best_of_n(pipe, reward, n=args.n, **call)
    for index in ranking.order.tolist():
        print(f"seed {ranking.seeds[index]}: {ranking.scores[index]:.3f}")
    iqguide.save_image(ranking.best, args.out)


if __name__ == "__main__":
    main()
