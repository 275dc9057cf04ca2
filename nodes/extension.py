"""What ComfyUI asks this package for."""

from comfy_api.latest import ComfyExtension, io

from .attributes import AttributeGuidance
from .best_of_n import BestOfNSampler
from .combine import CombineQualityModels
from .guide import QualityGuidance
from .load import LoadQualityModel, add_model_folder
from .rank import RankImages
from .report import GuidanceReport
from .save import ScoreAndSave
from .score import ScoreImages

NODES: list[type[io.ComfyNode]] = [
    LoadQualityModel,
    CombineQualityModels,
    ScoreImages,
    RankImages,
    ScoreAndSave,
    QualityGuidance,
    AttributeGuidance,
    BestOfNSampler,
    GuidanceReport,
]


class IQGuideExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def on_load(self) -> None:
        """Tell ComfyUI of the folder models/iqa."""
        add_model_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order of the menu."""
        return NODES
