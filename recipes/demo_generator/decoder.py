"""Sharpen the decoder of the demo generator's autoencoder; its latents stay what they are.

    python recipes/demo_generator/decoder.py --corpus corpus.npz --vae runs/vae --teacher squeezenet.pt --out runs/sharp

A pixel loss alone answers with the mean of what the latents leave open, and that mean is blurred. Three losses ask for
the texture instead: the local energy of the detail bands, the feature maps of a SqueezeNet, and a hinge discriminator
that sees the latents beside the picture, so that what is coded as blurred or noisy stays so. `--redrawn` adds latents
as the generator leaves them (redrawn.py), which are softer than the encoder's.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch
from autoencoder import LATENT_CHANNELS, add_device, batch, load_pictures, save, warm_up_and_decay, with_noise
from diffusers import AutoencoderTiny
from losses import log_energy_loss, perceptual_loss
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from iqguide.training.teacher import Squeezenet

LEARNING_RATE = 8e-4


class Discriminator(nn.Module):
    """Patch discriminator that sees pictures and, at their own size, the latents they belong to.

    Returns its verdicts and the features of its layers.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm
        sizes = (3, width, width * 2, width * 4)
        self.layers = nn.ModuleList(spectral(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(sizes))
        self.both = spectral(nn.Conv2d(sizes[-1] + LATENT_CHANNELS, sizes[-1], 3, padding=1))
        self.head = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, images: Tensor, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        features, x = [], images * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        x = F.leaky_relu(self.both(torch.cat([x, latents.to(x.dtype)], 1)), 0.2)
        return self.head(x), features


def adversarial_loss(judge: Discriminator, decoded: Tensor, images: Tensor, latents: Tensor, redrawn: bool) -> Tensor:
    """What the decoder is to lower: the judge's doubt, and its features' distance from those of the very picture."""
    judge.requires_grad_(False)
    with torch.autocast(images.device.type, torch.bfloat16):
        verdict, features = judge(decoded, latents)
        with torch.no_grad():
            wanted = judge(images, latents)[1]
    judge.requires_grad_(True)
    loss = -0.4 * verdict.float().mean()
    if redrawn:
        return loss
    return loss + sum((a.float() - b.float()).abs().mean() for a, b in zip(features, wanted, strict=True))


def judge_step(
    judge: Discriminator, optimiser: torch.optim.Optimizer, decoded: Tensor, images: Tensor, latents: Tensor
) -> Tensor:
    """One step of the judge with the hinge loss; returns the loss."""
    with torch.autocast(images.device.type, torch.bfloat16):
        real, fake = judge(images, latents)[0], judge(decoded.detach(), latents)[0]
    loss = F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


class Pairs:
    """Latents and the pictures they are to become: the encoder's, or those of `redrawn.py`."""

    def __init__(self, vae: AutoencoderTiny, args: argparse.Namespace) -> None:
        self.encoder, self.size, self.crop = vae.encoder, args.batch, args.crop
        self.corpus = load_pictures(args.corpus, args.device)
        self.redrawn = torch.load(args.redrawn, args.device, weights_only=True) if args.redrawn else None
        self.generator = torch.Generator().manual_seed(0)

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Latents with a little noise, so that the decoder is smooth, and images in [0, 1]."""
        images = batch(self.corpus, self.size, self.crop, self.generator)
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
            latents = self.encoder(images * 2 - 1).float()
        return with_noise(latents), images

    def drawn_again(self) -> tuple[Tensor, Tensor]:
        """The generator's latents and the images that they were before noise."""
        latents, images = self.redrawn["latents"], self.redrawn["images"]
        picks = torch.randint(len(latents), (self.size,), generator=self.generator).to(latents.device)
        side = self.crop // 8
        x, y = (torch.randint(latents.shape[-1] - side + 1, (), generator=self.generator).item() for _ in "xy")
        crops = images[picks, :, 8 * y : 8 * y + self.crop, 8 * x : 8 * x + self.crop].float() / 255
        return (
            latents[picks, :, y : y + side, x : x + side].float(),
            crops.contiguous(memory_format=torch.channels_last),
        )


def train(vae: AutoencoderTiny, teacher: Squeezenet, args: argparse.Namespace) -> None:
    """Train the decoder for `args.minutes`, in place."""
    vae.to(args.device, memory_format=torch.channels_last).encoder.requires_grad_(False)
    pairs, judge = Pairs(vae, args), Discriminator().to(args.device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.decoder.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-3)
    judge_optimiser = torch.optim.AdamW(judge.parameters(), 4e-4, betas=(0.5, 0.95))
    start, saved, step = time.time(), time.time(), 0
    progress = tqdm(total=100, desc="decoder", unit="%", mininterval=5)
    while (share := (time.time() - start) / (args.minutes * 60)) < 1:
        progress.update(int(share * 100) - progress.n)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warm_up_and_decay(step, share)
        redrawn = bool(args.redrawn) and torch.rand((), generator=pairs.generator).item() < args.redrawn_share
        latents, images = pairs.drawn_again() if redrawn else pairs.encoded()
        with torch.autocast(images.device.type, torch.bfloat16):
            decoded = ((vae.decoder(latents) + 1) / 2).float()  # the decoder answers in [-1, 1]
        error = decoded - images
        perceptual = perceptual_loss(teacher, decoded, images)
        loss = (
            (0.3 if redrawn else 1.0) * error.abs().mean()  # a redrawn picture differs in detail
            + F.avg_pool2d(error, 4).abs().mean()
            + args.energy * log_energy_loss(decoded, images)
            + args.perceptual * perceptual
            + args.adversarial * adversarial_loss(judge, decoded, images, latents, redrawn)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimiser.step()
        verdict = judge_step(judge, judge_optimiser, decoded, images, latents)
        step += 1
        if step % 50 == 0:
            l1 = error.abs().mean().item()
            progress.set_postfix(
                step=step, l1=f"{l1:.3f}", perceptual=f"{perceptual.item():.3f}", judge=f"{verdict.item():.3f}"
            )
        if time.time() - saved > 120:
            save(vae, args.out / "checkpoint")
            saved = time.time()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--vae", type=Path, required=True, help="what autoencoder.py wrote, or this script")
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet 1.0 state dict")
    parser.add_argument("--redrawn", type=Path, help="what redrawn.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the autoencoder")
    parser.add_argument("--minutes", type=float, default=30, help="how long to train; the learning rate follows")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="side of the training crops, px; a multiple of 8")
    parser.add_argument("--energy", type=float, default=0.04, help="weight of the local energy (%(default)s)")
    parser.add_argument("--perceptual", type=float, default=0.12, help="weight of the teacher's maps (%(default)s)")
    parser.add_argument("--adversarial", type=float, default=0.08, help="weight of the judge (%(default)s)")
    parser.add_argument("--redrawn-share", type=float, default=0.4, help="of the batches (%(default)s)")
    add_device(parser)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the batches have few sizes
    vae = AutoencoderTiny.from_pretrained(args.vae)
    train(vae, Squeezenet(args.teacher).to(args.device), args)
    save(vae, args.out)


if __name__ == "__main__":
    main()
