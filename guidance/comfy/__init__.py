"""Guidance in ComfyUI: `patch_model` makes a MODEL that guides its own sampling."""

from .patch import patch_model, patches_of

__all__ = ["patch_model", "patches_of"]
