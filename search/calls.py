"""How a search calls a diffusers pipeline: the arguments, one generator for each picture, guidance, the progress bar.

A pipeline is anything that is called like those of diffusers (`generator`, a list with one per picture;
`num_images_per_prompt`; `output_type="pt"`; a result with `.images`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guidance.diffusers.guided import guided
from ..guidance.reward_guidance import RewardGuidance

_DECIDED_HERE = {
    "generator": "every candidate has a generator of its own: give seeds=[...]",
    "latents": "all candidates would start from the same noise: give seeds=[...]",
    "num_images_per_prompt": "it is set from batch_size",
    "output_type": "candidates are scored and returned as float tensors: convert result.best afterwards",
    "return_dict": "the result is a SearchResult",
}


def chunks(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive parts of at most `size`."""
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def size_of(pipe_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Height and width of a call, where it names both."""
    size = {name: pipe_kwargs.get(name) for name in ("height", "width")}
    return size if all(size.values()) else {}


def call_arguments(pipe_kwargs: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What every call of the pipeline gets besides its generators.

    Pipelines repeat a prompt themselves, but only some of them repeat embeddings; so these are repeated here.
    """
    for name in _DECIDED_HERE.keys() & pipe_kwargs.keys():
        raise ValueError(f"got {name}=; the search decides it: {_DECIDED_HERE[name]}.")
    if isinstance(pipe_kwargs.get("prompt"), (list, tuple)):
        raise ValueError(
            f"prompt is a list of {len(pipe_kwargs['prompt'])}; expected one string: search once for each prompt."
        )
    embeddings = {name: value for name, value in pipe_kwargs.items() if "prompt" in name and isinstance(value, Tensor)}
    for name, value in embeddings.items():
        if value.shape[_axis_of_prompts(name)] != 1:
            count = value.shape[_axis_of_prompts(name)]
            raise ValueError(f"{name} holds {count} prompts; expected one, of shape (1, ...).")
    repeated = {name: x.repeat_interleave(batch_size, _axis_of_prompts(name)) for name, x in embeddings.items()}
    call = pipe_kwargs | repeated
    if not embeddings and batch_size > 1:
        call["num_images_per_prompt"] = batch_size
    return call | {"output_type": "pt"}


def _axis_of_prompts(name: str) -> int:
    """Those of HiDream's Llama come as (layers, N, ...)."""
    return 1 if name.endswith("llama3") else 0


def guided_calls(
    pipe: Callable[..., Any], guidance: RewardGuidance | None, call: Mapping[str, Any]
) -> AbstractContextManager[Any]:
    """`guided(pipe, guidance)` for calls with these arguments; for None a context that does nothing."""
    if guidance is None:
        return nullcontext()
    return guided(pipe, guidance, height=call.get("height"), width=call.get("width"))


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator on the CPU for each seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def pictures_of(result: Any) -> Tensor:
    """What a pipeline has made: pictures (N, 3, H, W), or videos (N, F, 3, H, W)."""
    return result.frames if hasattr(result, "frames") else result.images


def check_count(made: int, expected: int) -> None:
    """Raise `ValueError` if a pipeline samples another number of pictures than it has generators."""
    if made != expected:
        raise ValueError(f"the pipeline made {made} images; expected {expected}: give one prompt or picture.")


def progress_bar(pipe: Any) -> Callable[..., Any]:
    """`tqdm`, silent where the pipeline's own bar is switched off."""
    disabled = getattr(pipe, "_progress_bar_config", {}).get("disable", False)
    return functools.partial(tqdm, disable=disabled or None)
