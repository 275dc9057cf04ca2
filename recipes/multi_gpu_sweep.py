"""The best picture of each prompt of a file, on every GPU of one or more machines; goes on where it was stopped.

accelerate launch recipes/multi_gpu_sweep.py prompts.txt --pipeline ID --out sweep/
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline

import iqguide


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path, help="one prompt a line; empty ones are left out")
    parser.add_argument("--pipeline", required=True, help="folder or hub id")
    parser.add_argument("-n", type=int, default=8, help="candidates of each prompt")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True)
    args, state = parser.parse_args(arguments), PartialState()
    args.out.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
    pipe = DiffusionPipeline.from_pretrained(args.pipeline, torch_dtype=dtype).to(state.device)
    reward, own_lines = iqguide.create_model("tiny", device=state.device), []
    prompts = [line for line in enumerate(args.prompts.read_text().splitlines()) if line[1].strip()]
    for index, prompt in prompts[state.process_index :: state.num_processes]:
        if not (path := args.out / f"{index:05}.png").exists():
            top = iqguide.best_of_n(pipe, reward, n=args.n, halving=True, prompt=prompt, num_inference_steps=args.steps)
            iqguide.save_image(top.best, path)
            own_lines.append(f"{path}  {top.scores.max():.3f}  {prompt}")
    if (lines := gather_object(own_lines)) and state.is_main_process:
        print(*sorted(lines), sep="\n")


if __name__ == "__main__":
    main()
