"""The part of ComfyUI's V3 node API that the schemas of this package use, so that they can be read without ComfyUI.

A test on the real ComfyUI compares what both make of every node.
"""

from . import io, ui

__all__ = ["ComfyExtension", "io", "ui"]


class ComfyExtension:
    async def on_load(self):
        pass
