"""QualiCLIP+ and CLIP-IQA+: prompts whose context is learned from people's scores, on a CLIP that stays as it is.

A prompt of P tokens is read as [start] ctx_1..8 [prompt] ctx_9..16 [end]; only ctx, 16 vectors per prompt, is learned.
Once learned, the prompts are encoded once, and the model is a QualiCLIP or a CLIP-IQA with other prompts' features.

Source:
    Wang, Chan, Loy (2023), https://arxiv.org/abs/2207.12396 (CLIP-IQA+); Agnolucci et al. (2024),
    https://arxiv.org/abs/2403.11176 (QualiCLIP+). Layout of the files and place of the context: IQA-PyTorch at 01ae427.
    Written anew.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from open_clip import tokenize
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from ..errors import WeightsError
from . import clipiqa, qualiclip
from .antonyms import AntonymScore, read_alpha
from .cache import find_weights
from .catalog import get_spec
from .clip import split_checkpoint, with_activation
from .clip_config import RN50, VIT_L14, ClipConfig
from .clip_towers import random_vision_tower, text_tower, vision_tower
from .seed import fixed_seed
from .weights import check_numbers, load_strict, read_weights

CONTEXT = 16
PREFIX = "prompt_learner."  # of the names in the published files
# With the second full stop, which the published context of CLIP-IQA+ was learned with.
CLIPIQA_TEXTS = ("Good photo..", "Bad photo..")
TEXTS = {"qualiclip+": qualiclip.PROMPTS, "clipiqa+": CLIPIQA_TEXTS}
TEMPERATURES = {"qualiclip+": 2.0, "clipiqa+": 1.0}
CLASSES = {"qualiclip+": qualiclip.QualiCLIP, "clipiqa+": clipiqa.ClipIQA}
CONFIGS = {
    "clipiqa+_rn50_512": dataclasses.replace(RN50, positions=True),
    "clipiqa+_vitL14_512": dataclasses.replace(VIT_L14, positions=True),
}
"""Sizes of the CLIP that the published prompts were learned on, where they are not those of RN50."""


def family_of(name: str) -> str:
    """Which of the two, "qualiclip+" or "clipiqa+", a model such as "qualiclip+-clive" belongs to."""
    return next(family for family in TEXTS if name.startswith(family))


class LearnedPrompts(nn.Module):
    """The embeddings of P prompts with a context that can be learned; the state dict has the published layout.

    Args:
        texts: P prompts.
        tower: the text tower that embeds them, frozen.
        count: vectors of context, an even number.
    """

    def __init__(self, texts: Sequence[str], tower: TextTransformer, count: int = CONTEXT) -> None:
        super().__init__()
        tokens = tokenize([f"{'X ' * count}{text}" for text in texts], context_length=tower.context_length)
        embedded = tower.token_embedding(tokens).detach()
        self.lengths = ((tokenize(list(texts)) != 0).sum(1) - 2).tolist()  # without start and end
        self.ctx = nn.Parameter(torch.randn(len(texts), count, embedded.shape[2]) * 0.02)
        self.register_buffer("token_prefix", embedded[:, :1].clone())
        self.register_buffer("token_suffix", embedded[:, 1 + count :].clone())
        self.register_buffer("ends", tokens.argmax(1), persistent=False)  # the end token has the largest number

    def forward(self, tower: TextTransformer) -> Tensor:
        """Features (P, E) of the prompts, of any length; differentiable in `ctx`."""
        half = self.ctx.shape[1] // 2
        rows = []
        for ctx, start, rest, length in zip(self.ctx, self.token_prefix, self.token_suffix, self.lengths, strict=True):
            rows.append(torch.cat([start, ctx[:half], rest[:length], ctx[half:], rest[length:]]))
        x = torch.stack(rows) + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
        return x[torch.arange(len(x), device=x.device), self.ends] @ tower.text_projection


class PromptTuning(nn.Module):
    """A model whose prompts are being learned: everything is frozen but `prompts.ctx`.

    Args:
        model: QualiCLIP or CLIP-IQA, whose own prompts' features are not used.
        tower: CLIP's text tower.
        prompts: what is learned.
    """

    def __init__(self, model: AntonymScore, tower: TextTransformer, prompts: LearnedPrompts) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tower = tower.requires_grad_(False)
        self.prompts = prompts

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N,) of images (N, 3, H, W) in [0, 1]; differentiable in `prompts.ctx`."""
        return self.model.logits(images, self.prompts(self.tower)).sigmoid().mean(1)

    def train(self, mode: bool = True) -> PromptTuning:
        """Batch normalisation stays as it was: the towers are frozen."""
        super().train(mode)
        self.model.eval()
        return self


def build_plus(
    name: str,
    weights: Path | None,
    *,
    base: str | os.PathLike[str] = "default",
    temperature: float | None = None,
    quick_gelu: bool | None = None,
    seed: int = 0,
    config: ClipConfig | None = None,
) -> AntonymScore:
    """Make a QualiCLIP+ or a CLIP-IQA+ on the CPU in float32, its prompts encoded.

    Args:
        name: of the catalog: "qualiclip+", "clipiqa+" or one of their variants.
        weights: the learned prompts: a file in the published layout (`prompt_learner.ctx` and perhaps
            `.token_prefix`, `.token_suffix`, under `params` or not), or the bare context of CLIP-IQA+; None for random
            weights, which stand for the prompts' features too.
        base: the CLIP they were learned on, with its text tower: "default" for the one in the catalog, or a path.
        temperature: divides the logits; by default 2 for QualiCLIP+ and 1 for CLIP-IQA+.
        quick_gelu: whether that CLIP was trained with QuickGELU; None for what is told beside its file, else True.
        seed: of random weights.
        config: sizes of the towers; None for those of the published ones.

    Raises:
        ValueError: a temperature that is not positive.
        WeightsError: a file cannot be read or has another layout, or the prompts were learned for other texts.
    """
    if weights is None:
        family, config = family_of(name), config or CONFIGS.get(name, RN50)
        with fixed_seed(seed):
            features = torch.randn(len(TEXTS[family]), config.embed_dim)
            tower = random_vision_tower(config)
        return CLASSES[family](tower, features, 100.0, TEMPERATURES[family] if temperature is None else temperature)
    tuning = start_tuning(name, base=base, temperature=temperature, quick_gelu=quick_gelu, config=config)
    load_prompts(tuning.prompts, weights)
    with torch.no_grad():
        tuning.model.prompts_features.copy_(tuning.prompts(tuning.tower))
    return tuning.model


def start_tuning(
    name: str,
    *,
    base: str | os.PathLike[str] = "default",
    temperature: float | None = None,
    quick_gelu: bool | None = None,
    seed: int = 0,
    config: ClipConfig | None = None,
) -> PromptTuning:
    """A QualiCLIP+ or CLIP-IQA+ whose context, normal with 0.02, is to be learned; arguments as `build_plus`."""
    family, path = family_of(name), find_weights(get_spec(name).base, base)
    config = with_activation(config or CONFIGS.get(name, RN50), path, quick_gelu)
    state = split_checkpoint(read_weights(path)[0], config, path)
    if not state.text:
        raise WeightsError(f"{path} has no text tower, which {name} needs to read its prompts; give a whole CLIP.")
    temperature = TEMPERATURES[family] if temperature is None else temperature
    with fixed_seed(seed):
        tower, visual = text_tower(config), vision_tower(config)
        load_strict(tower, state.text, path)
        load_strict(visual, state.picture, path)
        prompts = LearnedPrompts(TEXTS[family], tower)
    features = torch.zeros(len(TEXTS[family]), config.embed_dim)
    model = CLASSES[family](visual, features, read_alpha(state.rest, path), temperature)
    return PromptTuning(model.eval(), tower.eval(), prompts)


def load_prompts(prompts: LearnedPrompts, path: str | os.PathLike[str]) -> None:
    """Copy the context of a file into prompts; a context for all prompts together is given to each of them.

    Raises:
        WeightsError: the file cannot be read, has another layout, or its prompts are others than these.
    """
    state = _read(Path(path))
    ctx = state.pop("ctx", None)
    if ctx is None or ctx.shape[-2:] != prompts.ctx.shape[1:] or ctx.ndim not in (2, 3):
        shape = "none" if ctx is None else tuple(ctx.shape)
        raise WeightsError(f"{path} has a context of shape {shape}; expected {tuple(prompts.ctx.shape)}.")
    if ctx.ndim == 3 and len(ctx) != len(prompts.ctx):
        raise WeightsError(f"{path} has context for {len(ctx)} prompts; expected {len(prompts.ctx)}.")
    for name, tensor in state.items():
        expected = getattr(prompts, name, None) if name.startswith("token_") else None
        if expected is None:
            raise WeightsError(f"{path} has a tensor {name!r} that is not expected.")
        alike = expected.shape == tensor.shape and torch.allclose(expected, tensor.to(expected), rtol=1e-2, atol=1e-3)
        if not alike:
            raise WeightsError(f"{path} was learned for other prompts, or on another CLIP: its {name} differs.")
    with torch.no_grad():
        prompts.ctx.copy_(ctx.expand_as(prompts.ctx))


def save_prompts(prompts: LearnedPrompts, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write learned prompts in the published layout: `{"params": {"prompt_learner.ctx": ...}}`, by torch.save."""
    state = {f"{PREFIX}{name}": tensor.detach().cpu() for name, tensor in prompts.state_dict().items()}
    torch.save({"params": state}, path)


def _read(path: Path) -> dict[str, Tensor]:
    """Names without prefix -> tensors of a file of learned prompts."""
    if path.suffix == ".safetensors":
        state: object = read_weights(path)[0]
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise WeightsError(f"{path} cannot be read as learned prompts; it is damaged: get it again.") from error
    if isinstance(state, Mapping) and isinstance(state.get("params"), Mapping):
        state = state["params"]
    state = {"ctx": state} if isinstance(state, Tensor) else state
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no tensors by name; expected learned prompts.")
    check_numbers(state, path)
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in state.items()}
