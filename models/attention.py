"""Scaled dot-product attention by the implementation that one chooses."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)
BACKENDS = ("sdpa", "xformers", "math")


def attend(query: Tensor, key: Tensor, value: Tensor, backend: str = "sdpa") -> Tensor:
    """softmax(query key^T / sqrt(d)) value, each head by itself; the same numbers from every backend.

    Args:
        query: (N, heads, Q, d).
        key: (N, heads, K, d).
        value: (N, heads, K, d).
        backend: "sdpa" (torch's own choice of kernel), "xformers" (memory-efficient attention on CUDA; where it cannot
            run, torch's with a notice), or "math" (the formula itself: slower, but it can be differentiated twice,
            which penalties on the input gradient need).

    Returns:
        (N, heads, Q, d) in the dtype of the arguments. Differentiable.
    """
    if backend == "xformers":
        obstacle = xformers_obstacle(query)
        if obstacle is None:
            try:
                return _xformers(query, key, value)
            except NotImplementedError:
                shape = f"{query.dtype} and heads of {query.shape[-1]}"
                obstacle = f"it has no kernel for {shape} here (python -m xformers.info lists what was built)"
        _notice(obstacle)
    if backend == "math":
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def check_backend(backend: str) -> str:
    """The backend itself.

    Raises:
        ValueError: there is none of that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; expected one of {', '.join(BACKENDS)}.")
    return backend


def xformers_obstacle(query: Tensor) -> str | None:
    """Why xformers cannot attend with this tensor, or None where it can."""
    if query.device.type != "cuda":
        return f"it needs CUDA and the model is on {query.device.type}"
    if query.dtype == torch.float64:
        return "it does not compute in float64"
    return None if _xformers_is_installed() else "it is not installed (pip install xformers)"


@cache
def _xformers_is_installed() -> bool:
    try:
        import xformers.ops  # noqa: F401 - whether it can be imported is the question
    except ImportError:
        return False
    return True


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    # xformers has the heads after the tokens
    heads_last = (x.transpose(1, 2) for x in (query, key, value))
    return memory_efficient_attention(*heads_last).transpose(1, 2)


@cache
def _notice(obstacle: str) -> None:
    logger.warning("attention='xformers' cannot be used, %s; torch's attention takes its place.", obstacle)
