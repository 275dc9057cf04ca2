"""Latents of the corpus as the demo generator leaves them: noised to a random level and denoised again.

    python recipes/demo_generator/redrawn.py --corpus corpus.npz --pipeline runs/demo/pipeline --out redrawn.pt

decoder.py learns from them to decode what it will be given. The file holds `latents` (N, C, 16, 16) half precision and
`images` (N, 3, 128, 128) uint8, the patches that the latents were before noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from autoencoder import add_device
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

STEPS = 25
FIRST_STEPS = (11, 22)
"""The range of the step, of STEPS, at which denoising begins: what is done anew is texture, not the scene."""


@torch.no_grad()
def redraw(pipe: StableDiffusionPipeline, images: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """Encode images (N, 3, H, W) in [0, 1], add the noise of step `first` and denoise from there, without a prompt."""
    pipe.scheduler.set_timesteps(STEPS, device=images.device)
    timesteps = pipe.scheduler.timesteps[first:]
    tokens = pipe.tokenizer([""] * len(images), padding="max_length", return_tensors="pt").input_ids.to(images.device)
    context = pipe.text_encoder(tokens).last_hidden_state
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = pipe.vae.encoder(images * 2 - 1).float()
        noise = torch.randn(latents.shape, generator=generator).to(images.device)
        latents = pipe.scheduler.add_noise(latents, noise, timesteps[:1].expand(len(latents)))
        for timestep in timesteps:
            velocity = pipe.unet(latents, timestep, context).sample.float()
            latents = pipe.scheduler.step(velocity, timestep, latents).prev_sample
    return latents


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--pipeline", type=Path, required=True, help="the demo generator's pipeline folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    add_device(parser)
    args = parser.parse_args(arguments)
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline).to(args.device)
    generator = torch.Generator().manual_seed(0)
    corpus = np.load(args.corpus)["images"]
    images = torch.from_numpy(corpus[np.random.default_rng(0).permutation(len(corpus))[: args.pictures]])
    latents = []
    for chunk in tqdm(images.split(args.batch), desc="drawing again"):
        first = torch.randint(*FIRST_STEPS, (), generator=generator).item()
        latents.append(redraw(pipe, chunk.to(args.device) / 255, first, generator).half().cpu())
    torch.save({"latents": torch.cat(latents), "images": images}, args.out)


if __name__ == "__main__":
    main()
