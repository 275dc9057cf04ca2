"""Node: Rank Images."""

import json
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rerank import best_first
from .labels import labelled
from .quality_model import IQ_MODEL, QualityModel, score_images
from .select import best_and_rest, select_images, select_latents, select_masks
from .text import show

NO_LIMIT = -1000.0


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
            inputs=[
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model."),
                io.Image.Input("images", tooltip="The candidates, a batch."),
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
                io.Image.Output("best", tooltip="The pictures that are kept, best first."),
                io.Image.Output(
                    "rest", tooltip="All the others, best first; nothing runs behind it if there are none."
                ),
                io.Latent.Output("best_latents", tooltip="Latents of the kept pictures, with their batch_index."),
                io.Mask.Output("best_masks", tooltip="Masks of the kept pictures."),
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
        quality_model: QualityModel,
        images: Tensor,
        keep: int,
        min_score: float,
        batch_size: int,
        latents: dict[str, Any] | None = None,
        masks: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> io.NodeOutput:
        """Rank."""
        scores = score_images(quality_model, images, batch_size=batch_size, reference=reference)
        order = best_first(scores).tolist()
        scores = scores.tolist()
        best, rest = best_and_rest(scores, order, keep, min_score)
        rows = [
            {"rank": rank, "index": index, "score": scores[index], "kept": index in best}
            for rank, index in enumerate(order, 1)
        ]
        table = json.dumps({"model": quality_model.name, "images": rows}, indent=1)
        show(cls, f"kept {len(best)} of {len(scores)}, best {scores[order[0]]:.3f}, worst {scores[order[-1]]:.3f}")
        preview = ui.PreviewImage(
            select_images(
                [labelled(images[index], f"#{rank} {scores[index]:.3f}") for rank, index in enumerate(order, 1)],
                range(len(order)),
            ),
            cls=cls,
        )
        nothing = ExecutionBlocker(None)
        return io.NodeOutput(
            select_images(images, best) if best else nothing,
            select_images(images, rest) if rest else nothing,
            select_latents(latents, best, len(images)) if latents is not None and best else _absent(best, "latents"),
            select_masks(masks, best, len(images)) if masks is not None and best else _absent(best, "masks"),
            [scores[index] for index in order],
            order,
            table,
            ui=preview,
        )


def _absent(best: list[int], name: str) -> ExecutionBlocker:
    """Stops what is connected: silently if nothing was kept, with a message if the input is missing."""
    return ExecutionBlocker(f"Rank Images has nothing at its input {name}." if best else None)
