"""Train the demo generator, a miniature Stable Diffusion: UNet and text encoder together on the corpus' latents.

    python recipes/demo_generator/generator.py --corpus corpus.npz --vae runs/vae --out runs/demo

v-prediction on a cosine schedule, 15 % of the prompts dropped for classifier-free guidance, weights averaged over the
run. The result, OUT/pipeline, is a folder of diffusers' own StableDiffusionPipeline. `--resume` goes on from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from autoencoder import LATENT_CHANNELS, grow, tidy
from corpus import WORDS
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPT_TOKENS = 16


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with the few merges that spell our words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in sum(WORDS, ()):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = ["".join(pieces[:2])]
            tokens.append(pieces[0])
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=PROMPT_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 192), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4,
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def prompts(attributes: np.ndarray, thirds: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Words for the outer thirds of each attribute, each said four times in five; 15 % of the prompts are empty."""
    low, high = thirds
    said = rng.random(attributes.shape) < 0.8
    dropped = rng.random(len(attributes)) < 0.15
    lines = []
    for values, say, drop in zip(attributes, said, dropped, strict=True):
        words = [
            pair[int(value >= h)]
            for pair, value, keep, lo, h in zip(WORDS, values, say, low, high, strict=True)
            if keep and (value <= lo or value >= h)
        ]
        rng.shuffle(words)
        lines.append("" if drop else ", ".join(words))
    return lines


@torch.no_grad()
def encode(images: np.ndarray, vae: AutoencoderTiny) -> Tensor:
    """Latents of the images and of their mirror images, (2, N, C, 16, 16) half precision."""
    latents, encoder = [], vae.encoder.to(memory_format=torch.channels_last)
    for chunk in tqdm(torch.from_numpy(images).split(32), desc="latents"):
        x = (chunk.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(torch.stack([encoder(x), encoder(x.flip(-1))]).half())
    return torch.cat(latents, 1)


def loss_of(unet: nn.Module, text: nn.Module, latents: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """v-prediction loss at random timesteps."""
    timesteps = torch.randint(len(alphas), (len(latents),))
    alpha, sigma = alphas[timesteps].sqrt().view(-1, 1, 1, 1), (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    with torch.autocast("cpu", torch.bfloat16):
        context = text(tokens).last_hidden_state
        prediction = unet(alpha * latents + sigma * noise, timesteps, context).sample
    error = (prediction.float() - (alpha * noise - sigma * latents)).square().mean((1, 2, 3))
    # min-SNR weighting (Hang et al. 2023, gamma 5) in v units
    snr = (alpha / sigma).square().view(-1)
    return (error * snr.clamp(max=5) / (snr + 1) * 2).mean()


@dataclass(frozen=True)
class Words:
    """What is known of the corpus' patches in words."""

    attributes: np.ndarray
    thirds: np.ndarray
    tokenizer: CLIPTokenizer

    def tokens(self, picks: Tensor, rng: np.random.Generator) -> Tensor:
        """Token ids of fresh prompts for the patches `picks`."""
        return self.tokenizer(
            prompts(self.attributes[picks.numpy()], self.thirds, rng),
            padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt",
        ).input_ids  # fmt: skip


@dataclass
class State:
    """What a checkpoint holds; `share` of the time is over."""

    model: nn.ModuleDict
    average: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    step: int = 0
    share: float = 0.0


def start(tokenizer: CLIPTokenizer, lr: float) -> State:
    text, unet = build_text_encoder(tokenizer), build_unet().to(memory_format=torch.channels_last)
    model = nn.ModuleDict({"unet": unet, "text": text})
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01)
    return State(model, average, optimiser)


def resume(state: State, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    for part in ("model", "average", "optimiser"):
        getattr(state, part).load_state_dict(saved[part])
    state.step, state.share = saved["step"], saved["share"]


def save(state: State, vae: AutoencoderTiny, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the checkpoint and, with the averaged weights, the pipeline."""
    saved = {part: getattr(state, part).state_dict() for part in ("model", "average", "optimiser")}
    torch.save({**saved, "step": state.step, "share": state.share}, out / "checkpoint.pt")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=state.average["text"], tokenizer=tokenizer, unet=state.average["unet"],
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(out / "pipeline")
    tidy(out / "pipeline")


def train_step(
    state: State, latents: Tensor, words: Words, alphas: Tensor, args: argparse.Namespace, rng: np.random.Generator
) -> float:
    for group in state.optimiser.param_groups:
        group["lr"] = args.lr * min(1, (state.step + 1) / 200) * max(0.02, min(1.0, 1.7 * (1 - state.share)))
    picks = torch.randint(latents.shape[1], (args.batch,))
    tokens = words.tokens(picks, rng)
    x = latents[torch.randint(2, (args.batch,)), picks].float()
    loss = loss_of(state.model["unet"], state.model["text"], x, tokens, alphas)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    decay = min(0.999, 1 - 1 / (0.1 * state.step + 1))
    torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    return loss.item()


def train(state: State, latents: Tensor, words: Words, vae: AutoencoderTiny, args: argparse.Namespace) -> None:
    """Train until `args.minutes` are over, in place, and save."""
    rng, alphas = np.random.default_rng(0), build_scheduler().alphas_cumprod
    begin, before = time.time(), state.share
    saved, losses = begin, []
    progress = tqdm(total=100, desc="generator", unit="%")
    while state.share < 1:
        progress.update(int(state.share * 100) - progress.n)
        losses.append(train_step(state, latents, words, alphas, args, rng))
        if state.step % 25 == 0:
            progress.set_postfix(step=state.step, loss=f"{np.mean(losses[-200:]):.4f}")
        if time.time() - saved > 240:
            save(state, vae, words.tokenizer, args.out)
            saved = time.time()
        state.share = before + (time.time() - begin) / (args.minutes * 60)
    save(state, vae, words.tokenizer, args.out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--vae", type=Path, required=True, help="what autoencoder.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="how long to train; the learning rate follows")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--init", type=Path, help="start from the UNet and the text encoder of this pipeline")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    corpus = np.load(args.corpus)
    vae = AutoencoderTiny.from_pretrained(args.vae)
    latents = encode(corpus["images"], vae)
    attributes = np.nan_to_num(corpus["attributes"], neginf=-10.0)
    thirds = np.quantile(attributes, (1 / 3, 2 / 3), axis=0)
    words = Words(attributes, thirds, build_tokenizer(args.out / "words"))
    state = start(words.tokenizer, args.lr)
    if args.init:
        pipe = StableDiffusionPipeline.from_pretrained(args.init)
        for model in (state.model, state.average):
            grow(model["unet"], pipe.unet)
            grow(model["text"], pipe.text_encoder)
    if args.resume:
        resume(state, args.out / "checkpoint.pt")
    train(state, latents, words, vae, args)


if __name__ == "__main__":
    main()
