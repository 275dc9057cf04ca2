"""Pipelines and decoders by name: bundled, from a folder, or from the hub."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..errors import one_line
from ..models.cache import ASSETS, is_offline

DEMO = ASSETS / "demo"
DEMO_CALL = {"num_inference_steps": 25, "guidance_scale": 3.0}  # what the bundled generator is made for


def load_pipeline(name: str, device: torch.device, dtype: str | None = None) -> Any:
    """A diffusers pipeline, quiet and on its device.

    Args:
        name: "demo" (bundled), a folder made by `save_pretrained`, or the id of a model on the Hugging Face hub.
        device: where to.
        dtype: "float32", "bfloat16" or "float16"; None for float32 on a CPU and a fast half elsewhere.

    Raises:
        ValueError: it is not there, cannot be read or cannot be downloaded.
    """
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    if name == "demo":
        from diffusers import StableDiffusionPipeline as Pipeline

        if not (DEMO / "model_index.json").is_file():
            raise ValueError(f"{DEMO}, which comes with the package, is missing; install the package again.")
    else:
        from diffusers import DiffusionPipeline as Pipeline
    place = DEMO if name == "demo" else Path(name).expanduser()
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    keyword = "dtype" if version >= (0, 42) else "torch_dtype"
    local = place.is_dir()
    try:
        with _hushed() if name == "demo" else nullcontext():  # it knows that its autoencoder is a tiny one
            pipe = Pipeline.from_pretrained(
                place if local else name,
                local_files_only=local or is_offline(),
                **{keyword: getattr(torch, dtype) if dtype else _usual_dtype(device)},
            )
    except Exception as error:  # a damaged folder makes diffusers raise almost any type
        raise ValueError(
            f"cannot load the pipeline {name!r} ({one_line(error)}); expected 'demo', a folder made by save_pretrained,"
            " or the id of a model on the Hugging Face hub that can be downloaded."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def _hushed() -> Iterator[None]:
    """While open, diffusers says nothing but errors."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_call(pipe: Any, call: dict[str, Any]) -> None:
    """Refuse an option that this pipeline does not have."""
    known = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name not in known:
            raise ValueError(f"{type(pipe).__name__} has no {name}; leave out --{name.replace('_', '-')}.")


def _usual_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


def load_decoder(name: str | None, pipe: Any) -> Any:
    """What --decoder names: the pipeline's own autoencoder, or an AutoencoderTiny.

    Raises:
        ValueError: it is not there, or cannot be downloaded.
    """
    if name is None or name == "vae":
        return name and pipe.vae
    from diffusers import AutoencoderTiny

    local = Path(name).expanduser().is_dir()
    try:
        tiny = AutoencoderTiny.from_pretrained(name, local_files_only=local or is_offline())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the decoder {name!r} ({one_line(error)}); expected vae, a folder, or the id of an"
            " AutoencoderTiny on the Hugging Face hub, such as madebyollin/taesdxl."
        ) from error
    return tiny.to(device=pipe.device, dtype=pipe.dtype)
