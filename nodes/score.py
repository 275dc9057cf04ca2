"""Node: Score Images."""

import math

from comfy_api.latest import io
from torch import Tensor

from .quality_model import IQ_MODEL, QualityModel, explain, score_images
from .select import all_pictures, single
from .tables import to_json
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
            is_input_list=True,
            inputs=[
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model."),
                io.Image.Input("images", tooltip="A batch, or a list of pictures of any sizes."),
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
        cls,
        quality_model: list[QualityModel],
        images: list[Tensor],
        batch_size: list[int],
        reference: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Score all pictures of a list together; ComfyUI gives every input as a list."""
        model, pictures = quality_model[0], all_pictures(images)
        scores = score_images(model, pictures, batch_size=batch_size[0], reference=single(reference, "reference"))
        mean, scores = float(scores.nanmean()), scores.tolist()
        rows = [{"index": index, "score": score} for index, score in enumerate(scores)]
        for row, image in zip(rows, pictures, strict=True):
            parts = explain(model, image) if math.isfinite(row["score"]) else {}
            if parts:
                row["parts"] = parts
        table = to_json({"model": model.name, "images": rows})
        show(cls, summary(scores))
        return io.NodeOutput(scores, mean, table, ui={"text": [table]})
