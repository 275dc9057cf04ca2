"""`create_model`: a quality model by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .cache import find_weights
from .catalog import get_spec, nearest
from .hub import HubModel
from .seed import fixed_seed

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def create_model(
    name: str,
    *,
    weights: str | os.PathLike[str] = "default",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> nn.Module:
    """Make a quality model: frozen, in evaluation mode, differentiable in the pictures.

    The model is called with images (N, 3, H, W), RGB in [0, 1], sides of at least 32 px, of any floating dtype, and
    returns scores (N,), higher is better. `margin(images)`, (N,), is the same without saturation, in units of its
    spread over clean photographs; guidance differentiates it. Neither resizes: `model.spec` is the `ModelSpec`, whose
    working size `iqguide.rank`, the command and the nodes apply. A picture has the same score alone and in a batch. A
    full-reference model ("bpclip-fr") takes images and a reference; `iqguide.FullReference(model, reference)` makes it
    a `Reward`.

    Works inside `torch.inference_mode()` too: the parameters are ordinary tensors, so gradients can be taken later.

    Args:
        name: one of `list_models()`.
        weights: "default" (bundled, or downloaded once into the cache), "random", or the path of a file.
        device: where to put the model; None for torch's default device.
        dtype: of the network: float32, bfloat16, float16 or float64. The head always runs in float32 or better.
        options: of the model: `pairs`, `temperature` for "clipiqa"; `preset`, `temperature` for "qualiclip";
            `base`, `temperature` for "qualiclip+", "clipiqa+";
            `attention`, and for weights="random" `config`, `text`, `backbone` for "bpclip" and its kin; `seed` of
            weights="random".

    Returns:
        An `nn.Module` that is a `Reward`, or becomes one by `FullReference`.

    Raises:
        ValueError: unknown name or dtype, or a bad value of an option.
        TypeError: an option that this model does not have.
        WeightsError: the weights are missing, damaged or cannot be fetched.

    Example:
        >>> model = create_model("qualiclip", weights="random")
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2])
    """
    spec = get_spec(name)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(str(known) for known in DTYPES)}.")
    with torch.inference_mode(False):
        build = _builder(name)
        _check_options(name, build, options)
        path = None if weights == "random" else find_weights(spec, weights)
        device = torch.empty(0).device if device is None else device  # torch 2.4 tells the default no other way
        with torch.device("cpu"):  # files are read there; the move comes last
            model = build(path, **options)
        model.spec = spec
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _builder(name: str) -> Callable[..., nn.Module]:
    """The function that makes a model from a file (None: random weights) and its options.

    Imported here, so that no model pays for what another one needs.
    """
    if name == "tiny":
        from .tiny import Tiny

        return partial(_build_plain, Tiny)
    if name == "lite":
        from .lite import Lite

        return partial(_build_plain, Lite)
    if name == "qualiclip":
        from .qualiclip import build

        return build
    if name == "clipiqa":
        from .clipiqa import build

        return build
    if name.startswith(("qualiclip+", "clipiqa+")):
        from .learned_prompts import build_plus

        return partial(build_plus, name)
    from .bpclip_config import SIZES
    from .bpclip_files import build

    return partial(build, SIZES[name])


def _build_plain(kind: type[HubModel], weights: Path | None, *, seed: int = 0) -> nn.Module:
    """A model whose class has no settings."""
    if weights is not None:
        return kind.load(weights)
    with fixed_seed(seed):
        return kind()


def _check_options(name: str, build: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    known = [parameter for parameter in inspect.signature(build).parameters if parameter != "weights"]
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}.{nearest(option, known)} Options: {', '.join(known)}.")
