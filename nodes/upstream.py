"""Where the inputs of a node come from in a prompt of ComfyUI. Needs no ComfyUI."""

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any


def nearest_upstream(prompt: Mapping[str, Any], node: str, name: str, wanted: Collection[str]) -> str | None:
    """The nearest node before one input of a node, along the links, that is wanted.

    Args:
        prompt: node id -> {"inputs": {name: value, or a link [node id, number of the output]}}.
        node: id of the node.
        name: of its input.
        wanted: ids; "12.0.3" is a node inside "12", which was expanded while it ran.

    Returns:
        Its id in `wanted`, the last one that fits; None if there is none.
    """
    waiting, seen = deque([prompt[node]["inputs"].get(name)]), set()
    while waiting:
        link = waiting.popleft()
        if not _is_link(link, prompt) or link[0] in seen:
            continue
        seen.add(link[0])
        for known in reversed(list(wanted)):
            if known == link[0] or known.startswith(f"{link[0]}."):
                return known
        waiting.extend(prompt[link[0]]["inputs"].values())
    return None


def _is_link(value: Any, prompt: Mapping[str, Any]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt
