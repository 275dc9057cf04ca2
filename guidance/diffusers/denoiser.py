"""A pipeline's denoiser: count what goes through it, or let it answer nothing where its answer is known already."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .replace import replaced

_NAMES = ("unet", "transformer", "transformer_2")


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """The networks that a diffusers pipeline samples with."""
    modules = [getattr(pipe, name, None) for name in _NAMES]
    return [module for module in modules if isinstance(module, nn.Module)]


@contextmanager
def counted_rows(pipe: Any) -> Iterator[list[int]]:
    """A list that gets the number of rows of each evaluation of the denoiser inside the block."""
    rows: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(vars(module).get("forward"), _Silence):
            rows.append(len(_first_tensor(args, kwargs)))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in denoisers_of(pipe)]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def silenced(pipe: Any, like: Tensor) -> Iterator[None]:
    """While open, the denoiser answers zeros (rows of its input, ...) in place of being evaluated.

    Args:
        pipe: a diffusers pipeline.
        like: (N, ...) an answer, for shape and dtype.
    """
    with ExitStack() as stack:
        for module in denoisers_of(pipe):
            stack.enter_context(replaced(module, "forward", _Silence(module.forward, like)))
        yield


@contextmanager
def checkpointed(pipe: Any) -> Iterator[None]:
    """While open, the denoiser keeps no activations for a backward pass but computes them again."""
    modules = [m for m in denoisers_of(pipe) if getattr(m, "_supports_gradient_checkpointing", False)]
    modules = [module for module in modules if not module.is_gradient_checkpointing]
    for module in modules:
        module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module in modules:
            module.disable_gradient_checkpointing()


class _Silence:
    def __init__(self, forward: Any, like: Tensor) -> None:
        functools.update_wrapper(self, forward, updated=())  # pipelines may ask for its signature
        self._like = like

    def __call__(self, *args: Any, **kwargs: Any) -> "_Answer":
        sample = _first_tensor(args, kwargs)
        return _Answer([sample.new_zeros(len(sample), *self._like.shape[1:], dtype=self._like.dtype)])


class _Answer(tuple):
    """Both of the forms in which pipelines take the answer of a network."""

    sample = property(lambda self: self[0])


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
