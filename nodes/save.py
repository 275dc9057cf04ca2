"""Node: Score and Save."""

import csv
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..images import save_image, to_pil
from ..spreadsheets import safe_row
from .naming import picture_names, table_name
from .quality_model import IQ_MODEL, QualityModel, score_images
from .select import all_pictures, single
from .text import show, summary

COLUMNS = ("file", "score", "model")


def append_rows(path: str, rows: list[Mapping[str, Any]]) -> None:
    """Add rows to a CSV; a new file begins with the names of the columns."""
    is_new = not os.path.exists(path)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(dict(zip(row, safe_row(row.values()), strict=True)) for row in rows)


def as_saved(picture: Tensor) -> Image.Image:
    """A picture (H, W, C) as Save Image has it, with its alpha channel where it has one; NaN becomes 0."""
    whole = picture.nan_to_num(0.0).float().clamp(0, 1).movedim(-1, 0)
    image = to_pil(whole[:3] if len(whole) >= 3 else whole[:1].expand(3, -1, -1))
    if len(whole) == 4:
        image.putalpha(to_pil(whole[3:].expand(3, -1, -1)).getchannel("R"))
    return image


class ScoreAndSave(io.ComfyNode):
    """Pictures with their scores in the file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideScoreAndSave",
            display_name="Score and Save",
            category="iqguide",
            description="Save pictures as PNG with their scores in the metadata, and add the scores to a CSV.",
            search_aliases=["save image", "score metadata", "csv", "image quality"],
            is_input_list=True,
            inputs=[
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model."),
                io.Image.Input("images", tooltip="A batch, or a list of pictures of any sizes."),
                io.String.Input(
                    "filename_prefix",
                    default="iqguide",
                    tooltip="As in Save Image; the CSV beside the pictures is called after it.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Pictures scored at once: memory and speed only.",
                    advanced=True,
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of the same size, for models that compare with a reference.",
                ),
            ],
            outputs=[io.Float.Output("scores", is_output_list=True, tooltip="A list, one score per picture.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        quality_model: list[QualityModel],
        images: list[Tensor],
        filename_prefix: list[str],
        batch_size: list[int],
        reference: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Score all pictures of a list together, then save; ComfyUI gives every input as a list."""
        model, pictures = quality_model[0], all_pictures(images)
        scores = score_images(model, pictures, batch_size=batch_size[0], reference=single(reference, "reference"))
        scores = scores.tolist()
        height, width = pictures[0].shape[:2]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix[0], folder_paths.get_output_directory(), width, height
        )
        names, rows = picture_names(folder, name, counter, len(scores)), []
        for file, picture, score in zip(names, pictures, scores, strict=True):
            known = score if math.isfinite(score) else None
            save_image(as_saved(picture), os.path.join(folder, file), cls._metadata(model.name, known))
            rows.append({"file": file, "score": known, "model": model.name})
        append_rows(os.path.join(folder, table_name(name)), rows)
        show(cls, summary(scores))
        saved = [ui.SavedResult(row["file"], subfolder, io.FolderType.output) for row in rows]
        return io.NodeOutput(scores, ui=ui.SavedImages(saved))

    @classmethod
    def _metadata(cls, model: str, score: float | None) -> dict[str, str]:
        metadata = {"iqguide": json.dumps({"model": model, "score": score})}
        if args.disable_metadata:
            return metadata
        if cls.hidden.prompt is not None:
            metadata["prompt"] = json.dumps(cls.hidden.prompt)
        for key, value in (cls.hidden.extra_pnginfo or {}).items():
            metadata[key] = json.dumps(value)
        return metadata
