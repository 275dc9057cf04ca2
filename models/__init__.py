"""Quality models: what there is, and how to make one. The names load on first use, so listing needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .catalog import MODELS, ModelSpec, list_models

_HOMES = {
    "BPCLIP": ".bpclip",
    "BPCLIPConfig": ".bpclip",
    "ClipConfig": ".clip",
    "ClipIQA": ".clipiqa",
    "Description": ".describe",
    "QualiCLIP": ".qualiclip",
    "WeightsError": "..errors",
    "create_model": ".create",
    "is_cached": ".weights",
    "save_bpclip": ".bpclip_files",
    "save_model": ".save",
}

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

if TYPE_CHECKING:
    from ..errors import WeightsError
    from .bpclip import BPCLIP, BPCLIPConfig
    from .bpclip_files import save_bpclip
    from .clip import ClipConfig
    from .clipiqa import ClipIQA
    from .create import create_model
    from .describe import Description
    from .qualiclip import QualiCLIP
    from .save import save_model
    from .weights import is_cached


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
