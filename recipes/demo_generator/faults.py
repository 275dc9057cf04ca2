"""Ladders of what goes wrong in generated pictures, made with the demo generator: for training and measuring `lite`.

    python recipes/demo_generator/faults.py --data DIR --pipeline runs/demo/pipeline --out faults.safetensors

Each ladder begins at a clean crop. Sampling faults: one-step predictions from ever more noise; denoising in ever fewer
steps; ever more classifier-free guidance; noise that is left over. Autoencoder faults: those of
`iqguide.training.autoencoders` with the generator's own. The file is a cache of `iqguide.training.ladder_cache`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from corpus import WORDS
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from iqguide.guidance.prediction import denoised_from_output
from iqguide.training.autoencoders import ladders
from iqguide.training.kinds import ladder
from iqguide.training.ladder_cache import LEVELS, LadderCache, base_crop, sources, tensor_ladders, write_cache

FIRST_LEVEL = 0.6
"""Noise level from which pictures are redrawn: their composition stays, their texture is the generator's."""
STEPS = 8
"""Of redrawing where the number of steps is not what varies."""
LADDERS: dict[str, tuple[float, ...]] = {
    "one_step": (0.15, 0.3, 0.45, 0.6, 0.78),
    "few_steps": (24, 8, 4, 2, 1),
    "too_much_guidance": (2, 4, 7, 11, 16),
    "left_over_noise": (0.06, 0.11, 0.18, 0.28, 0.42),
}
"""Noise level, steps, guidance scale, noise level; from weak to severe."""


def severity(level: Tensor) -> Tensor:
    """How much a sampling fault hurts, see `Kind.severity`: the generator's own texture is much already."""
    return 1.8 + 0.6 * level


class Faults:
    """A generator that makes mistakes on purpose.

    Args:
        pipe: a miniature Stable Diffusion as generator.py makes it.
        device: where to run it.
    """

    def __init__(self, pipe: StableDiffusionPipeline, device: torch.device) -> None:
        self.pipe, self.device = pipe.to(device), device
        alphas = pipe.scheduler.alphas_cumprod.to(device)
        self.alpha, self.sigma = alphas.sqrt(), (1 - alphas).sqrt()
        self.level = self.sigma / (self.alpha + self.sigma)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images (N, 3, H, W) in [0, 1]."""
        return self.pipe.vae.encode(images * 2 - 1).latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return ((self.pipe.vae.decode(latents).sample + 1) / 2).clamp(0, 1)

    def timestep(self, noise_level: float) -> int:
        """The timestep whose noise level is nearest."""
        return int((self.level - noise_level).abs().argmin())

    def words(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Embeddings of random prompts, then of empty ones, (2 count, T, C)."""
        picks = torch.randint(0, 2, (count, len(WORDS)), generator=generator).tolist()
        prompts = [" ".join(pair[pick] for pair, pick in zip(WORDS, row, strict=True)) for row in picks]
        tokens = self.pipe.tokenizer(prompts + [""] * count, padding="max_length", return_tensors="pt").input_ids
        return self.pipe.text_encoder(tokens.to(self.device)).last_hidden_state

    def denoise(self, latents: Tensor, timestep: int, words: Tensor, guidance: Tensor | None) -> Tensor:
        """Prediction of the clean latents; with a guidance scale (N,) classifier-free guidance."""
        n = len(latents)
        alpha, sigma = self.alpha[timestep].item(), self.sigma[timestep].item()
        twice = torch.cat([latents, latents]) if guidance is not None else latents
        output = self.pipe.unet(twice, timestep, words if guidance is not None else words[n:]).sample.float()
        if guidance is not None:
            scale = guidance.to(output).view(-1, 1, 1, 1)
            output = output[n:] + scale * (output[:n] - output[n:])
        return denoised_from_output(output, latents, alpha, sigma, self.pipe.scheduler.config.prediction_type)

    def redraw(
        self, latents: Tensor, noise: Tensor, steps: int, last: float, words: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """DDIM from `FIRST_LEVEL` down to noise level `last`; what is left of the noise stays in."""
        levels = torch.linspace(FIRST_LEVEL, last, steps + 1).tolist()
        times = [self.timestep(level) for level in levels]
        x = self.alpha[times[0]] * latents + self.sigma[times[0]] * noise
        for here, there in itertools.pairwise(times):
            clean = self.denoise(x, here, words, guidance)
            eps = (x - self.alpha[here] * clean) / self.sigma[here]
            x = self.alpha[there] * clean + self.sigma[there] * eps
        return x

    def ladder(self, name: str) -> Callable[[Tensor, Tensor, torch.Generator | None], Tensor]:
        """A distortion (images, strengths, generator) of one of `LADDERS`; rungs of one picture share their noise."""

        def distortion(images: Tensor, strength: Tensor, generator: torch.Generator | None) -> Tensor:
            latents = self.encode(images)
            photos = len(images) // LEVELS
            noise = torch.randn((photos, *latents.shape[1:]), generator=generator).to(latents)
            noise = noise.repeat_interleave(LEVELS, 0)
            out = torch.empty_like(images)
            for value in strength.unique().tolist():
                rows = (strength == value).nonzero()[:, 0].to(images.device)
                words = self.words(len(rows), generator)
                out[rows] = self.decode(self._drawn(name, value, latents[rows], noise[rows], words)).to(out)
            return out

        return distortion

    def _drawn(self, name: str, value: float, latents: Tensor, noise: Tensor, words: Tensor) -> Tensor:
        if name == "one_step":
            time = self.timestep(value)
            return self.denoise(self.alpha[time] * latents + self.sigma[time] * noise, time, words, None)
        if name == "few_steps":
            return self.redraw(latents, noise, round(value), 0.0, words)
        if name == "too_much_guidance":
            return self.redraw(latents, noise, STEPS, 0.0, words, torch.full((len(latents),), value))
        return self.redraw(latents, noise, STEPS, value, words)


@torch.no_grad()
def build(args: argparse.Namespace) -> LadderCache:
    """The cache that the flags ask for."""
    rng, device = np.random.default_rng(args.seed), torch.device(args.device)
    faults = Faults(StableDiffusionPipeline.from_pretrained(args.pipeline, safety_checker=None), device)
    kinds = [
        dataclasses.replace(ladder(name, "sampling", faults.ladder(name), values), severity=severity)
        for name, values in LADDERS.items()
    ]
    own = ladders(faults.encode, faults.decode)
    kinds += [ladder(f"demo_{name}", "autoencoder", *values) for name, values in own.items()]
    photographs, levels = sources(args.data), torch.arange(float(LEVELS))
    columns: dict[str, list] = {"images": [], "severity": [], "kinds": [], "groups": [], "sources": []}
    for kind in kinds:
        each = args.each if kind.group == "sampling" else args.each // 3
        picks = [photographs[n] for n in rng.integers(0, len(photographs), each)]
        clean = np.stack([base_crop(path, soft, 128, rng) for path, soft in tqdm(picks, desc=kind.name)])
        columns["images"].append(tensor_ladders(kind, clean, device, args.batch, args.seed))
        columns["severity"] += [torch.cat([torch.zeros(1), kind.severity(levels)])] * each
        columns["kinds"] += [kind.name] * each
        columns["groups"] += [kind.group] * each
        columns["sources"] += [f"{path.parent.parent.name}/{path.name}" for path, _ in picks]
    return LadderCache(torch.cat(columns.pop("images")), torch.stack(columns.pop("severity")), **columns)


def main(arguments: list[str] | None = None) -> None:
    """Write the cache that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/, live-challenge/, biq2021/")
    parser.add_argument("--pipeline", type=Path, required=True, help="a demo generator's pipeline folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=200, help="ladders of each sampling fault (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="ladders at a time (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    write_cache(build(args), args.out)


if __name__ == "__main__":
    main()
