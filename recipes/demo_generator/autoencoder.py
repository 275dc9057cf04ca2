"""Train the demo generator's autoencoder, a small diffusers AutoencoderTiny (f8, 16 latent channels).

    python recipes/demo_generator/autoencoder.py --corpus corpus.npz --teacher squeezenet.pt --out runs/vae

Losses: L1 at full and quarter size, the local energy of three detail bands (so that noise and texture keep their
strength where their exact shape cannot be coded), and the maps of a SqueezeNet. Two things make the latents easy to
generate: noise of a random strength before they are decoded, and, one time in four, latents of half the size, which
have to give the picture of half the size (EQ-VAE, arXiv 2502.09509). The pictures stay soft; decoder.py sharpens the
decoder for the same latents, so a generator can train on them meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from losses import log_energy_loss, perceptual_loss
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from iqguide.training.teacher import Squeezenet

LATENT_CHANNELS = 16
LATENT_NOISE = 0.25  # the strongest, of latents of spread 1
HALVED = 0.25  # share of the batches that are decoded at half of their size
LEARNING_RATE = 1.5e-3


def build() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(48, 48, 48, 48),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(6, 6, 3, 1),
    )


def batch(corpus: Tensor, size: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random crops of random patches, (size, 3, crop, crop) in [0, 1]."""
    picks = torch.randint(len(corpus), (size,), generator=generator).to(corpus.device)
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


def with_noise(latents: Tensor) -> Tensor:
    """Latents (N, C, h, w) with noise of a random strength each, so that what decodes them is smooth."""
    strength = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    return latents + strength * torch.randn_like(latents)


def reconstruct(vae: AutoencoderTiny, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of images in [0, 1], what the decoder makes of them, and what it should, at full or at half size."""
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = coded = vae.encoder(images * 2 - 1)
        if torch.rand(()).item() < HALVED:
            coded, images = F.avg_pool2d(coded, 2), F.avg_pool2d(images, 2)
        decoded = (vae.decoder(with_noise(coded)) + 1) / 2  # the decoder answers in [-1, 1]
    return latents, decoded.float(), images


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


def train(vae: AutoencoderTiny, teacher: Squeezenet, args: argparse.Namespace) -> None:
    """Train for `args.minutes`, in place."""
    generator, corpus = torch.Generator().manual_seed(0), load_pictures(args.corpus, args.device)
    vae.to(args.device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-3)
    start, saved, step = time.time(), time.time(), 0
    progress = tqdm(total=100, desc="autoencoder", unit="%", mininterval=5)
    while (share := (time.time() - start) / (args.minutes * 60)) < 1:
        progress.update(int(share * 100) - progress.n)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warm_up_and_decay(step, share)
        latents, decoded, images = reconstruct(vae, batch(corpus, args.batch, args.crop, generator))
        error = decoded - images
        perceptual = perceptual_loss(teacher, decoded, images)
        loss = (
            error.abs().mean()
            + F.avg_pool2d(error, 4).abs().mean()
            + args.energy * log_energy_loss(decoded, images)
            + args.perceptual * perceptual
            + 0.02 * channel_balance(latents)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            progress.set_postfix(
                step=step, l1=f"{error.abs().mean().item():.3f}", perceptual=f"{perceptual.item():.3f}"
            )
        if time.time() - saved > 120:
            save(vae, args.out / "checkpoint")
            saved = time.time()


def add_device(parser: argparse.ArgumentParser) -> None:
    """The flag --device: a GPU where there is one."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def load_pictures(corpus: Path, device: str) -> Tensor:
    """The pictures of a corpus (N, 3, 128, 128) uint8, on the device."""
    return torch.from_numpy(np.load(corpus)["images"]).to(device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet 1.0 state dict")
    parser.add_argument("--out", type=Path, required=True, help="folder for the autoencoder")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train; the learning rate follows")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="side of the training crops, px: 64 or 128")
    parser.add_argument("--energy", type=float, default=0.04, help="weight of the local energy (%(default)s)")
    parser.add_argument("--perceptual", type=float, default=0.12, help="weight of the teacher's maps (%(default)s)")
    parser.add_argument("--init", type=Path, help="go on from this autoencoder")
    add_device(parser)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the batches have few sizes
    vae = AutoencoderTiny.from_pretrained(args.init) if args.init else build()
    train(vae, Squeezenet(args.teacher).to(args.device), args)
    save(vae, args.out)


if __name__ == "__main__":
    main()
