"""Train the demo generator, a miniature Stable Diffusion: UNet and text encoder together on the corpus' latents.

    python recipes/demo_generator/generator.py --corpus corpus.npz --vae runs/vae --out runs/demo

v-prediction on a cosine schedule, 15 % of the prompts dropped for classifier-free guidance, weights averaged over the
run. The result, OUT/pipeline, is a folder of diffusers' own StableDiffusionPipeline. `--resume` goes on from the last
checkpoint. With a GPU: `--batch 512 --lr 1e-3 --compile`.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
from autoencoder import LATENT_CHANNELS, add_device, load_pictures, tidy
from corpus import WORDS
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPT_TOKENS = 16
SAID = 0.8  # how often a word that fits is said
EMPTY = 0.15  # share of the prompts that are empty, for classifier-free guidance


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
        block_out_channels=(128, 160), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, time_embedding_dim=256, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def fitting_words(attributes: Tensor) -> Tensor:
    """Per patch and pair of WORDS (N, 4): 1 in the lowest third of the attribute, 2 in the highest, else 0."""
    low, high = torch.quantile(attributes, torch.tensor([1 / 3, 2 / 3]), 0)
    return (attributes <= low).long() + 2 * (attributes >= high).long()


class Words:
    """The words that fit each patch of the corpus, and the tokens of every prompt that can be made of them."""

    def __init__(self, attributes: Tensor, tokenizer: CLIPTokenizer, device: str) -> None:
        self.tokenizer, self.fitting = tokenizer, fitting_words(attributes).to(device)
        lines = []
        for said in product(range(3), repeat=len(WORDS)):
            words = [pair[which - 1] if which else "" for pair, which in zip(WORDS, said, strict=True)]
            lines += [", ".join(filter(None, order)) for order in permutations(words)]
        tokens = tokenizer(
            lines, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        self.table = tokens.view(3 ** len(WORDS), -1, PROMPT_TOKENS).to(device)

    def tokens(self, picks: Tensor) -> Tensor:
        """Token ids (N, 16) of fresh prompts for patches: what fits is said SAID of the time, in any order."""
        said = self.fitting[picks]
        said = said * (torch.rand_like(said, dtype=torch.float) < SAID)
        said = said * (torch.rand(len(said), 1, device=said.device) >= EMPTY)
        row = (said * 3 ** torch.arange(said.shape[1] - 1, -1, -1, device=said.device)).sum(1)
        return self.table[row, torch.randint(self.table.shape[1], row.shape, device=row.device)]


@torch.no_grad()
def encode(images: Tensor, vae: AutoencoderTiny) -> Tensor:
    """Latents of the images (N, 3, 128, 128) uint8 and of their mirror images, (2, N, C, 16, 16) half precision."""
    latents, encoder = [], vae.encoder.to(images.device, memory_format=torch.channels_last)
    for chunk in tqdm(images.split(64), desc="latents", mininterval=5):
        x = (chunk.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            latents.append(torch.stack([encoder(x), encoder(x.flip(-1))]).half())
    return torch.cat(latents, 1)


def loss_of(unet: nn.Module, text: nn.Module, latents: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """v-prediction loss at random timesteps."""
    timesteps = torch.randint(len(alphas), (len(latents),), device=latents.device)
    alpha, sigma = alphas[timesteps].sqrt().view(-1, 1, 1, 1), (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = (alpha * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(latents.device.type, torch.bfloat16):
        prediction = unet(noisy, timesteps, text(tokens).last_hidden_state).sample
    error = (prediction.float() - (alpha * noise - sigma * latents)).square().mean((1, 2, 3))
    # min-SNR weighting (Hang et al. 2023, gamma 5) in v units
    snr = (alpha / sigma).square().view(-1)
    return (error * snr.clamp(max=5) / (snr + 1) * 2).mean()


@dataclass
class State:
    """What a checkpoint holds; `share` of the time is over."""

    model: nn.ModuleDict
    average: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    step: int = 0
    share: float = 0.0


def start(tokenizer: CLIPTokenizer, lr: float, device: str, init: Path | None = None) -> State:
    """Networks from scratch, or those of the pipeline `init`, and their optimiser."""
    if init:
        pipe = StableDiffusionPipeline.from_pretrained(init)
        text, unet = pipe.text_encoder, pipe.unet
    else:
        text, unet = build_text_encoder(tokenizer), build_unet()
    unet.to(memory_format=torch.channels_last)
    model = nn.ModuleDict({"unet": unet, "text": text}).train().to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01)
    return State(model, average, optimiser)


def resume(state: State, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, "cpu", weights_only=True)
    for part in ("model", "average", "optimiser"):
        getattr(state, part).load_state_dict(saved[part])
    state.step, state.share = saved["step"], saved["share"]


def save(state: State, vae: AutoencoderTiny, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the checkpoint and, with the averaged weights, the pipeline; a run that is cut off leaves whole ones."""
    saved = {part: getattr(state, part).state_dict() for part in ("model", "average", "optimiser")}
    torch.save({**saved, "step": state.step, "share": state.share}, out / "checkpoint.new")
    (out / "checkpoint.new").replace(out / "checkpoint.pt")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=state.average["text"], tokenizer=tokenizer, unet=state.average["unet"],
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(out / "pipeline.new")
    tidy(out / "pipeline.new")
    shutil.rmtree(out / "pipeline", ignore_errors=True)
    (out / "pipeline.new").rename(out / "pipeline")


def train_step(
    state: State, unet: nn.Module, latents: Tensor, words: Words, alphas: Tensor, args: argparse.Namespace
) -> Tensor:
    """One step; `unet` is the state's own, perhaps compiled. Returns the loss."""
    for group in state.optimiser.param_groups:
        group["lr"] = args.lr * min(1, (state.step + 1) / 200) * max(0.02, min(1.0, 1.7 * (1 - state.share)))
    picks = torch.randint(latents.shape[1], (args.batch,), device=latents.device)
    x = latents[torch.randint(2, picks.shape, device=picks.device), picks].float()
    loss = loss_of(unet, state.model["text"], x, words.tokens(picks), alphas)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    decay = min(0.999, 1 - 1 / (0.1 * state.step + 1))
    torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    return loss.detach()


def train(state: State, latents: Tensor, words: Words, vae: AutoencoderTiny, args: argparse.Namespace) -> None:
    """Train until `args.minutes` are over, in place, and save."""
    alphas = build_scheduler().alphas_cumprod.to(latents.device)
    unet = torch.compile(state.model["unet"]) if args.compile else state.model["unet"]
    begin, before = time.time(), state.share
    saved, losses = begin, []
    progress = tqdm(total=100, desc="generator", unit="%", mininterval=5)
    while state.share < 1:
        progress.update(int(state.share * 100) - progress.n)
        losses.append(train_step(state, unet, latents, words, alphas, args))
        if state.step % 50 == 0:
            progress.set_postfix(step=state.step, loss=f"{torch.stack(losses[-200:]).mean():.4f}")
        if time.time() - saved > args.save_every:
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
    parser.add_argument("--save-every", type=float, default=240, help="seconds between checkpoints (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet; it takes a minute to start")
    add_device(parser)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the batches have few sizes
    vae = AutoencoderTiny.from_pretrained(args.vae)
    latents = encode(load_pictures(args.corpus, args.device), vae)
    attributes = torch.from_numpy(np.load(args.corpus)["attributes"]).float()
    words = Words(attributes, build_tokenizer(args.out / "words"), args.device)
    state = start(words.tokenizer, args.lr, args.device, args.init)
    if args.resume:
        resume(state, args.out / "checkpoint.pt")
    train(state, latents, words, vae, args)


if __name__ == "__main__":
    main()
