"""Cache denoised predictions of degraded patches and of their clean twins, for guidance-grade training.

    python recipes/demo_generator/denoised.py --data DIR --pipeline runs/demo/pipeline --out denoised.pt

Clean patches are degraded, both twins are encoded, meet the same noise at a random level from 0.02 to 0.8, more than
guidance's default window, and are denoised in one step. What comes out is what a reward sees while it guides.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from corpus import DEGRADATIONS, crop
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from iqguide.guidance.prediction import denoised_from_output
from iqguide.training.data import clean_photographs, good_photographs, scored_photographs, split

NOISE_LEVELS = (0.02, 0.8)


@torch.no_grad()
def predict(
    pipe: StableDiffusionPipeline, images: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Decoded one-step predictions of the clean latents, (N, 3, H, W) in [0, 1]."""
    alphas = pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    tokens = pipe.tokenizer([""] * len(images), padding="max_length", return_tensors="pt").input_ids
    context = pipe.text_encoder(tokens).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        latents = pipe.vae.encoder(images * 2 - 1).float()
        noisy = alpha * latents + sigma * noise
        output = pipe.unet(noisy, timesteps, context).sample.float()
        samples = zip(output, noisy, alpha.flatten().tolist(), sigma.flatten().tolist(), strict=True)
        kind = pipe.scheduler.config.prediction_type
        clean = torch.stack([denoised_from_output(*sample, kind) for sample in samples])
        return ((pipe.vae.decoder(clean) + 1) / 2).float().clamp(0, 1)


def degrade(clean: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Degrade every image in one random way of the corpus, at strengths (N,) from 0 (weakest) to 1."""
    kinds = torch.randint(len(DEGRADATIONS), (len(clean),), generator=generator)
    degraded = []
    for image, kind, share in zip(clean, kinds.tolist(), strength, strict=True):
        function, low, high = DEGRADATIONS[kind]
        degraded.append(function(image[None], low + (high - low) * share[None], generator))
    return torch.cat(degraded)


def noise_levels(pipe: StableDiffusionPipeline) -> torch.Tensor:
    """The noise level, sigma / (alpha + sigma), of every training timestep."""
    alphas = pipe.scheduler.alphas_cumprod
    sigma = ((1 - alphas) / alphas).sqrt()
    return sigma / (1 + sigma)


def build_cache(pipe: StableDiffusionPipeline, patches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Denoised predictions of clean patches (N, 3, 128, 128) uint8 and of their degraded twins.

    Returns:
        `clean`, `degraded`: like `patches`; `severity`: (N,) from 1 to 3; `noise_level`: (N,).
    """
    generator, level_of = torch.Generator().manual_seed(0), noise_levels(pipe)
    cache: dict[str, list[torch.Tensor]] = {"clean": [], "degraded": [], "severity": [], "noise_level": []}
    for chunk in tqdm(patches.split(32), desc="denoised predictions"):
        clean = chunk.float() / 255
        strength = torch.rand(len(clean), generator=generator)
        degraded = degrade(clean, strength, generator)
        wanted = torch.empty(len(clean)).uniform_(*NOISE_LEVELS, generator=generator)
        timesteps = (level_of[None] - wanted[:, None]).abs().argmin(1)
        side = clean.shape[-1] // pipe.vae_scale_factor
        noise = torch.randn((len(clean), pipe.unet.config.in_channels, side, side), generator=generator)
        for key, images in (("clean", clean), ("degraded", degraded)):
            cache[key].append((predict(pipe, images, timesteps, noise) * 255).round().byte())
        cache["severity"].append(1 + 2 * strength)
        cache["noise_level"].append(level_of[timesteps])
    return {key: torch.cat(values) for key, values in cache.items()}


def training_patches(data: Path, count: int) -> torch.Tensor:
    """Clean patches (count, 3, 128, 128) uint8 of the photographs of the corpus that no reward is measured on."""
    good = good_photographs(split(scored_photographs(data))[0])
    photographs, rng = split(clean_photographs(data))[0] + good, np.random.default_rng(0)
    each = math.ceil(count / len(photographs))
    patches = np.concatenate([crop(photograph, each, rng) for photograph in tqdm(photographs, desc="patches")])
    return torch.from_numpy(rng.permutation(patches)[:count]).permute(0, 3, 1, 2)


def corpus_patches(path: Path, count: int) -> torch.Tensor:
    """The like from a corpus; held-out photographs are among them."""
    corpus = np.load(path)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(corpus["kinds"] == 0))[:count]
    return torch.from_numpy(corpus["images"][rows])


def main(arguments: list[str] | None = None) -> None:
    """Write the cache that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with pristine/ and live-challenge/; held-out ones stay out")
    source.add_argument("--corpus", type=Path, help="what corpus.py wrote, held-out photographs included")
    parser.add_argument("--pipeline", type=Path, required=True, help="a demo generator's pipeline folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3000)
    args = parser.parse_args(arguments)
    patches = training_patches(args.data, args.pairs) if args.data else corpus_patches(args.corpus, args.pairs)
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline)
    torch.save(build_cache(pipe, patches), args.out)


if __name__ == "__main__":
    main()
