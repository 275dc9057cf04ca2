"""Train the demo generator's autoencoder, a small diffusers AutoencoderTiny (f8, 32 latent channels).

    python recipes/demo_generator/autoencoder.py --corpus corpus.npz --out runs/vae

Losses: L1 at full and quarter size, and the local energy of three detail bands (so that noise and texture keep their
strength where their exact shape cannot be coded). Latents get a little noise, so that the decoder is smooth. It stays
soft; decoder.py sharpens it for the same latents, so a generator can train on them meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

LATENT_CHANNELS = 32
LEARNING_RATE = 1.5e-3


def build() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(48, 48, 48, 48),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(4, 4, 2, 0),
    )


def detail_bands(images: Tensor, levels: int = 3) -> list[Tensor]:
    """Laplacian pyramid without its last, smooth level."""
    bands = []
    for _ in range(levels):
        low = F.avg_pool2d(images, 2)
        bands.append(images - F.interpolate(low, scale_factor=2, mode="bilinear"))
        images = low
    return bands


def energy_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 distance of the local RMS (8x8 windows at the band's own size) of the detail bands."""
    loss = decoded.new_zeros(())
    for a, b in zip(detail_bands(decoded), detail_bands(images), strict=True):
        rms_a, rms_b = ((F.avg_pool2d(band.square(), 8, 4) + 1e-4).sqrt() for band in (a, b))
        loss = loss + (rms_a - rms_b).abs().mean()
    return loss


def batch(corpus: Tensor, size: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random crops of random patches, (size, 3, crop, crop) in [0, 1]."""
    picks = torch.randint(len(corpus), (size,), generator=generator)
    # crops start on the 8-pixel grid, as the blocks of photographs that were JPEG files do
    x, y = (torch.randint(0, (128 - crop) // 8 + 1, (), generator=generator).item() * 8 for _ in "xy")
    return (corpus[picks, :, y : y + crop, x : x + crop].float() / 255).contiguous(memory_format=torch.channels_last)


def channel_balance(latents: Tensor) -> Tensor:
    """Keep every channel near mean 0 and spread 1: the diffusion model and the decoder's tanh(x / 3) * 3 expect it."""
    variance, mean = torch.var_mean(latents.float(), (0, 2, 3))
    return ((variance - 1).square() + mean.square()).mean()


def warm_up_and_decay(step: int, share: float) -> float:
    """Factor of the learning rate: up over 100 steps, level for half of the time, then down to 3 %."""
    return min(1.0, (step + 1) / 100) * max(0.03, min(1.0, 2 * (1 - share)))


def reconstruct(vae: AutoencoderTiny, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of images in [0, 1], and what the decoder makes of them with a little noise."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encoder(images * 2 - 1)
        noisy = latents + 0.1 * torch.randn_like(latents)
        decoded = (vae.decoder(noisy) + 1) / 2  # the decoder answers in [-1, 1]
    return latents, decoded.float()


@torch.no_grad()
def grow(model: nn.Module, narrower: nn.Module) -> None:
    """Copy the weights of the same network with fewer latent channels; inputs from the new channels start at zero."""
    for new, old in zip(model.parameters(), narrower.parameters(), strict=True):
        if new.ndim > 1 and new.shape[1] > old.shape[1]:
            new[:, old.shape[1] :] = 0
        new[tuple(slice(extent) for extent in old.shape)] = old


def tidy(folder: Path) -> None:
    """Take from the config files below a saved folder what only warns when it is read, and paths of this machine."""
    for path in (*folder.rglob("config.json"), *folder.glob("model_index.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if config.get("_class_name") == "AutoencoderTiny":
            config.pop("block_out_channels", None)  # diffusers writes it and does not expect it back
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save(vae: AutoencoderTiny, folder: Path) -> None:
    """Write diffusers' format."""
    vae.save_pretrained(folder)
    tidy(folder)


def train(vae: AutoencoderTiny, corpus: Tensor, args: argparse.Namespace, anchor: nn.Module | None = None) -> None:
    """Train for `args.minutes`, in place.

    The first latent channels stay near what the encoder `anchor` answers, so a generator of those can go on from there.
    """
    generator = torch.Generator().manual_seed(0)
    vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-3)
    start, saved, step = time.time(), 0.0, 0
    progress = tqdm(total=100, desc="autoencoder", unit="%")
    while (share := (time.time() - start) / (args.minutes * 60)) < 1:
        progress.update(int(share * 100) - progress.n)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warm_up_and_decay(step, share)
        images = batch(corpus, args.batch, args.crop, generator)
        latents, decoded = reconstruct(vae, images)
        error, energy = decoded - images, energy_loss(decoded, images)
        loss = (
            error.abs().mean()
            + F.avg_pool2d(error, 4).abs().mean()
            + args.energy * energy
            + 0.02 * channel_balance(latents)
        )
        if anchor is not None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                kept = anchor(images * 2 - 1).float()
            loss = loss + 0.2 * F.mse_loss(latents[:, : kept.shape[1]].float(), kept)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            progress.set_postfix(step=step, l1=f"{error.abs().mean().item():.3f}", energy=f"{energy.item():.3f}")
        if time.time() - saved > 120:
            save(vae, args.out / "checkpoint")
            saved = time.time()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the autoencoder")
    parser.add_argument("--minutes", type=float, default=10, help="how long to train; the learning rate follows")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="side of the training crops, px; a multiple of 8")
    parser.add_argument("--energy", type=float, default=0.1, help="weight of the local energy (%(default)s)")
    parser.add_argument("--init", type=Path, help="go on from this autoencoder, of as many latent channels or fewer")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    corpus = torch.from_numpy(np.load(args.corpus)["images"])
    vae, anchor = build(), None
    if args.init:
        before = AutoencoderTiny.from_pretrained(args.init)
        grow(vae, before)
        anchor = before.encoder.requires_grad_(False)
    train(vae, corpus, args, anchor)
    save(vae, args.out)


if __name__ == "__main__":
    main()
