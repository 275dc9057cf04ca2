"""`guidance=` of the searches: the one door from the host-free searches to the adapter of the pipeline's host."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .reward_guidance import RewardGuidance


def steered(pipe: Any, guidance: RewardGuidance | None, given: dict[str, Any]) -> AbstractContextManager[Any]:
    """`guided(pipe, guidance)` for a call with these arguments; for None a context that does nothing."""
    if guidance is None:
        return nullcontext()
    from .diffusers import guided  # here, so that searches without guidance need no host

    return guided(pipe, guidance, height=given.get("height"), width=given.get("width"))
