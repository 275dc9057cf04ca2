"""Node: Score Images."""

import json

from comfy_api.latest import io
from torch import Tensor

from .quality_model import IQ_MODEL, QualityModel, explain, score_images
from .text import show, summary


class ScoreImages(io.ComfyNode):
    """A score for every picture of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideScoreImages",
            display_name="Score Images",
            category="iqguide",
            description="Score every picture of a batch. Higher is better; 0 to 1 for the models of this pack.",
            search_aliases=["image quality", "iqa", "rate images", "aesthetic score"],
            inputs=[
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model."),
                io.Image.Input("images", tooltip="A batch of any size."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of the same size, for models that compare with a reference.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Pictures scored at once: memory and speed only.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Float.Output("scores", is_output_list=True, tooltip="A list: nodes behind it run once per picture."),
                io.Float.Output("mean", tooltip="Mean of the scores."),
                io.String.Output("table", tooltip="JSON: index, score and, where the model has it, an explanation."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, quality_model: QualityModel, images: Tensor, batch_size: int, reference: Tensor | None = None
    ) -> io.NodeOutput:
        """Score."""
        scores = score_images(quality_model, images, batch_size=batch_size, reference=reference).tolist()
        rows = [{"index": index, "score": score} for index, score in enumerate(scores)]
        for row, image in zip(rows, images, strict=True):
            parts = explain(quality_model, image)
            if parts:
                row["parts"] = parts
        table = json.dumps({"model": quality_model.name, "images": rows}, indent=1)
        show(cls, summary(scores))
        return io.NodeOutput(scores, sum(scores) / len(scores), table, ui={"text": [table]})
