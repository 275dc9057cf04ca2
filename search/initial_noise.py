"""The noise from which a text-to-image pipeline of diffusers starts, in the layout that its `latents=` takes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from ..guidance.diffusers.replace import observed
from .calls import call_arguments, check_count, seeded_generators


def recording_noise(pipe: Callable[..., Any], initial: list[Tensor]) -> AbstractContextManager[None]:
    """Append the latents that a text-to-image pipeline prepares to `initial`; other pipelines do not take them back."""
    if not starts_from_noise(pipe):
        return nullcontext()
    return observed(
        pipe, "prepare_latents", lambda arguments, result: initial.append(_as_taken(pipe, arguments, result))
    )


def starts_from_noise(pipe: Any) -> bool:
    """Whether the pipeline takes the noise from which it starts as `latents=`; not if it starts from a picture."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return "latents" in parameters and "strength" not in parameters and hasattr(pipe, "prepare_latents")


def initial_noise(pipe: Any, seed: int, pipe_kwargs: dict[str, Any]) -> Tensor:
    """The noise from which a call would start with this seed; the call is left before the first evaluation.

    Args:
        pipe: a diffusers pipeline that makes pictures from noise.
        seed: of the generator.
        pipe_kwargs: what the pipeline is called with.

    Returns:
        (1, ...) as `latents=` takes it, in the pipeline's own dtype and on its device.

    Raises:
        ValueError: the pipeline starts from a picture.
    """
    if not starts_from_noise(pipe):
        raise ValueError(
            f"got a {type(pipe).__name__}, which takes no latents= to start from; expected a text-to-image pipeline."
        )
    call = call_arguments(pipe_kwargs, 1)
    try:
        with observed(pipe, "prepare_latents", functools.partial(_leave, pipe)):
            pipe(**call, generator=seeded_generators([seed]))
    except _Prepared as prepared:
        getattr(pipe, "maybe_free_model_hooks", lambda: None)()
        noise = unscaled(pipe, prepared.latents)
    check_count(len(noise), 1)
    return noise.detach()


class _Prepared(Exception):
    """Raised out of the pipeline when its latents are there."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


def _leave(pipe: Any, arguments: Mapping[str, Any], result: Any) -> None:
    raise _Prepared(_as_taken(pipe, arguments, result))


def _as_taken(pipe: Any, arguments: Mapping[str, Any], result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Latents in the layout that `latents=` has, from what `prepare_latents`, called with `arguments`, returns."""
    latents = result if isinstance(result, Tensor) else result[0]  # packed latents come with their positions
    if not any(cls.__name__.startswith("Flux2") for cls in type(pipe).__mro__):
        return latents
    rows = int(arguments["height"]) // (2 * pipe.vae_scale_factor)  # it packs the latents that it is given
    return latents.transpose(1, 2).unflatten(2, (rows, -1))


def unscaled(pipe: Any, latents: Tensor) -> Tensor:
    """Initial latents as the pipeline's `latents=` takes them, that is before it scales them for its scheduler."""
    return latents / getattr(pipe.scheduler, "init_noise_sigma", 1.0)
