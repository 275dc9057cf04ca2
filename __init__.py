"""Image-quality guidance: score images, pick the best, and steer diffusion sampling by the score.

The public names load on first use, so that `import iqguide` (and `iqguide --help`) does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"  # help pages of the ComfyUI nodes

_HOMES = {
    "Attributes": ".rewards",
    "FullReference": ".rewards",
    "ModelSpec": ".models",
    "Ranking": ".rerank",
    "Reward": ".rewards",
    "RewardGuidance": ".guidance",
    "SearchResult": ".search.result",
    "Ensemble": ".rewards",
    "WeightedSum": ".rewards",
    "best_of_n": ".search.best_of_n",
    "create_model": ".models.create",
    "fk_steering": ".search.fk_steering",
    "list_models": ".models",
    "load_images": ".images",
    "optimize_noise": ".search.noise",
    "rank": ".rerank",
    "redraw": ".search.redraw",
    "save_image": ".images",
    "zero_order_search": ".search.noise",
}

__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    "create_model",
    "list_models",
    "ModelSpec",
    "load_images",
    "save_image",
    "rank",
    "Ranking",
    "SearchResult",
    "best_of_n",
    "fk_steering",
    "zero_order_search",
    "optimize_noise",
    "redraw",
    "Reward",
    "WeightedSum",
    "Ensemble",
    "FullReference",
    "Attributes",
    "RewardGuidance",
]

if TYPE_CHECKING:
    from .guidance import RewardGuidance
    from .images import load_images, save_image
    from .models import ModelSpec, list_models
    from .models.create import create_model
    from .rerank import Ranking, rank
    from .rewards import Attributes, Ensemble, FullReference, Reward, WeightedSum
    from .search.best_of_n import best_of_n
    from .search.fk_steering import fk_steering
    from .search.noise import optimize_noise, zero_order_search
    from .search.redraw import redraw
    from .search.result import SearchResult


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


async def comfy_entrypoint() -> Any:
    """Called by ComfyUI when this folder is one of its custom nodes; nothing of ComfyUI is imported before."""
    try:
        from .nodes.extension import IQGuideExtension
    except ImportError as error:
        raise ImportError(f"{error}; install the requirements.txt of this folder into ComfyUI's Python.") from error
    return IQGuideExtension()
