"""Node: Rank Images."""

import math
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rerank import best_first
from .labels import ranked_labels
from .quality_model import IQ_MODEL, QualityModel, score_images
from .select import (
    all_pictures,
    best_and_rest,
    select_from_list,
    select_images,
    select_latents,
    select_masks,
    single,
)
from .tables import number, to_json
from .text import show

NO_LIMIT = -1000.0
NOTHING = [ExecutionBlocker(None)]
"""Stops what is connected, silently."""


class RankImages(io.ComfyNode):
    """The best of a batch, and what belongs to them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideRankImages",
            display_name="Rank Images (Best of N)",
            category="iqguide",
            description="Sort a batch by quality and keep the best, with their latents and masks.",
            search_aliases=["best of n", "pick best", "filter images", "select best", "sort images", "image quality"],
            is_input_list=True,
            inputs=[
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model."),
                io.Image.Input("images", tooltip="The candidates: a batch, or a list of pictures of any sizes."),
                io.Int.Input(
                    "keep", default=1, min=1, max=4096, tooltip="How many to keep; more than there are is all."
                ),
                io.Float.Input(
                    "min_score",
                    default=NO_LIMIT,
                    min=NO_LIMIT,
                    max=1000.0,
                    step=0.01,
                    tooltip="Keep none below this score. If none is left, what follows the best outputs does not run.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Pictures scored at once: memory and speed only.",
                    advanced=True,
                ),
                io.Latent.Input("latents", optional=True, tooltip="One per picture; picked along with the pictures."),
                io.Mask.Input("masks", optional=True, tooltip="One per picture, or one for all; picked along."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of the same size, for models that compare with a reference.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "best",
                    is_output_list=True,
                    tooltip="The pictures that are kept, best first: a batch, or a list if their sizes differ.",
                ),
                io.Image.Output(
                    "rest",
                    is_output_list=True,
                    tooltip="All the others, best first; nothing runs behind it if there are none.",
                ),
                io.Latent.Output(
                    "best_latents",
                    is_output_list=True,
                    tooltip="Latents of the kept pictures, with their batch_index.",
                ),
                io.Mask.Output("best_masks", is_output_list=True, tooltip="Masks of the kept pictures."),
                io.Float.Output("scores", is_output_list=True, tooltip="All scores, best first, as a list."),
                io.Int.Output("indices", is_output_list=True, tooltip="Places in the batch, best first, as a list."),
                io.String.Output("table", tooltip="JSON: rank, index, score, kept or not."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        quality_model: list[QualityModel],
        images: list[Tensor],
        keep: list[int],
        min_score: list[float],
        batch_size: list[int],
        latents: list[dict[str, Any]] | None = None,
        masks: list[Tensor] | None = None,
        reference: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Rank all pictures of a list together; ComfyUI gives every input as a list."""
        model, pictures, counts = quality_model[0], all_pictures(images), [len(batch) for batch in images]
        scores = score_images(model, pictures, batch_size=batch_size[0], reference=single(reference, "reference"))
        order = best_first(scores).tolist()
        scores = scores.tolist()
        best, rest = best_and_rest(scores, order, keep[0], min_score[0])
        rows = [
            {"rank": rank, "index": index, "score": scores[index], "kept": index in best}
            for rank, index in enumerate(order, 1)
        ]
        table = to_json({"model": model.name, "images": rows})
        without = sum(not math.isfinite(score) for score in scores)
        ends = f"best {number(scores[order[0]])}, worst {number(scores[order[-1 - without]])}"
        show(cls, f"kept {len(best)} of {len(scores)}, {ends}" + (f", {without} without a score" if without else ""))
        ranked = [scores[index] for index in order]
        return io.NodeOutput(
            select_images(pictures, best) or NOTHING,
            select_images(pictures, rest) or NOTHING,
            _selected(latents, select_latents, best, counts, "latents"),
            _selected(masks, select_masks, best, counts, "masks"),
            ranked,
            order,
            table,
            ui=ui.PreviewImage(ranked_labels([pictures[index] for index in order], ranked), cls=cls),
        )


def _selected(
    values: list[Any] | None, select: Callable[..., Any], best: list[int], counts: list[int], name: str
) -> list[Any]:
    """What belongs to the best; or stops what is connected, with a message if it is for a missing input."""
    if not best:
        return NOTHING
    if not values:
        return [ExecutionBlocker(f"Rank Images has nothing at its input {name}.")]
    return select_from_list(values, select, best, counts)
