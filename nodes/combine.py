"""Node: Combine Quality Models."""

from comfy_api.latest import io

from ..rewards import Ensemble, WeightedSum
from .quality_model import IQ_MODEL, QualityModel

WAYS = ("weighted sum", "mean rank", "careful mean")


def combine(
    first: QualityModel,
    second: QualityModel,
    way: str,
    first_weight: float,
    second_weight: float,
    penalty: float = Ensemble.PENALTY,
) -> QualityModel:
    """Two models as one.

    Raises:
        ValueError: a model compares with a reference, or a sum has a part that only ranks or no weight at all.
    """
    if first.full_reference or second.full_reference:
        raise ValueError("a model that compares with a reference cannot be combined; use it alone.")
    name = f"{way} of {first.name} and {second.name}"
    if way == "mean rank":
        return QualityModel(name, members=(first, second))
    patchers = (*first.patchers, *second.patchers)
    if way == "careful mean":
        return QualityModel(name, Ensemble([first.reward_for(), second.reward_for()], penalty), patchers)
    if not (first_weight or second_weight):
        raise ValueError("both weights are 0, so every picture would score 0; set first_weight or second_weight.")
    terms = ((first.reward_for(), first_weight), (second.reward_for(), second_weight))
    return QualityModel(name, WeightedSum(*terms), patchers)


class CombineQualityModels(io.ComfyNode):
    """Two quality models as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideCombineQualityModels",
            display_name="Combine Quality Models",
            category="iqguide",
            description="Use two quality models together, which is harder to fool than one. Chain it for more.",
            search_aliases=["ensemble", "merge scores", "weighted score", "image quality"],
            inputs=[
                IQ_MODEL.Input("first", tooltip="A quality model."),
                IQ_MODEL.Input("second", tooltip="Another quality model."),
                io.Combo.Input(
                    "combine_by",
                    options=list(WAYS),
                    default=WAYS[0],
                    tooltip="weighted sum: of the scores; for guidance, too. mean rank: the mean place within the "
                    "batch, 1 for a picture that both put first; needs no weights and cannot guide. "
                    "careful mean: of the scores, less a penalty where the models disagree; for guidance, too.",
                ),
                io.Float.Input(
                    "first_weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight in the sum; below 0 turns the score into a penalty.",
                ),
                io.Float.Input(
                    "second_weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight in the sum; below 0 turns the score into a penalty.",
                ),
                io.Float.Input(
                    "penalty",
                    default=Ensemble.PENALTY,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of careful mean: standard deviations that are taken off; 1 gives the lower of two scores.",
                ),
            ],
            outputs=[IQ_MODEL.Output("quality_model", tooltip="Both as one model.")],
        )

    @classmethod
    def execute(
        cls,
        first: QualityModel,
        second: QualityModel,
        combine_by: str,
        first_weight: float,
        second_weight: float,
        penalty: float = Ensemble.PENALTY,
    ) -> io.NodeOutput:
        """Combine."""
        return io.NodeOutput(combine(first, second, combine_by, first_weight, second_weight, penalty))
