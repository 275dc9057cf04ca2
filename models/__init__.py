"""Quality models: what there is, and how to make one. Listing needs no torch; what needs it loads on first use."""

from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from .bpclip_config import BPCLIPConfig
from .cache import is_cached
from .catalog import MODELS, ModelSpec, list_models
from .clip_config import ClipConfig
from .describe import Description

if TYPE_CHECKING:
    from .public import BPCLIP, ClipIQA, QualiCLIP, create_model, save_bpclip, save_model

__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    "create_model",
    "list_models",
    "ModelSpec",
    "MODELS",
    "is_cached",
    "WeightsError",
    "QualiCLIP",
    "ClipIQA",
    "ClipConfig",
    "BPCLIP",
    "BPCLIPConfig",
    "save_bpclip",
    "save_model",
    "Description",
]


def __getattr__(name: str) -> Any:
    """A public name that needs torch, from public.py (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import public

    return getattr(public, name)
