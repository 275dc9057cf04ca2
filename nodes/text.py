"""A line of text on a node while and after it runs."""

from comfy_api.latest import io
from server import PromptServer

from .tables import number


def show(cls: type[io.ComfyNode], text: str) -> None:
    """Write on the node; in both of ComfyUI's renderers, without any JavaScript. Nothing where there is no server."""
    if cls.hidden is not None and cls.hidden.unique_id and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)


def summary(scores: list[float]) -> str:
    """Scores in one line, at most eight of them."""
    shown = ", ".join(map(number, scores[:8]))
    return shown + (f", … ({len(scores)} in all)" if len(scores) > 8 else "")
