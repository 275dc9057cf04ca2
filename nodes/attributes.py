"""Node: Attribute Guidance."""

from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..guidance import RewardGuidance
from ..guidance.comfy.patch import patch_model
from ..models.adjectives import read_pairs
from ..rewards import Attributes, Resize
from .load import DEFAULT, FOLDER, load_quality_model, time_of
from .parse_attributes import EXAMPLE, parse_attributes
from .quality_model import QualityModel
from .steering import steering_inputs, window_problem

DIMENSIONS = tuple(dict.fromkeys(dimension for dimension, _, _ in read_pairs()))
"""Of BPCLIP's adjectives."""
MODEL = "bpclip-mini"
"""Which judges dimensions."""


def judge_of(
    attributes: str, weights: str, download: bool, dimensions: Mapping[str, float]
) -> tuple[Attributes, QualityModel]:
    """The reward that a user describes, and the quality model inside it.

    Raises:
        ValueError: both pairs and dimensions are given, or neither; a line cannot be read; weights are missing.
    """
    wanted = {name: weight for name, weight in dimensions.items() if weight}
    if wanted and attributes.strip():
        raise ValueError(f"got pairs and dimensions ({', '.join(wanted)}); empty the attributes, or set these to 0.")
    if wanted:
        quality = load_quality_model(MODEL, weights, "float32", True, download)
        return Attributes(quality.reward, wanted), quality
    pairs, shares = parse_attributes(attributes)
    quality = load_quality_model("clipiqa", weights, "float32", True, download, pairs=pairs)
    named = {" / ".join(pair): share for pair, share in zip(pairs, shares, strict=True)}
    return Attributes(quality.reward, named), quality


class AttributeGuidance(io.ComfyNode):
    """A MODEL that steers its sampling by words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        known = FOLDER in folder_paths.folder_names_and_paths
        return io.Schema(
            node_id="IQGuideAttributeGuidance",
            display_name="Attribute Guidance",
            category="iqguide",
            description="Steer sampling by pairs of opposite words that CLIP reads, or by dimensions of quality.",
            search_aliases=[
                "clip guidance",
                "antonym",
                "attribute slider",
                "reward guidance",
                "image quality",
                "bpclip",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; it is not changed, the output is a copy."),
                io.String.Input(
                    "attributes",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip="One pair a line: wanted / unwanted, and perhaps = weight; one below 0 turns it round. "
                    "Empty to steer by the dimensions.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[DEFAULT, *folder_paths.get_filename_list(FOLDER)] if known else [DEFAULT],
                    default=DEFAULT,
                    tooltip="Of CLIP RN50: default is that of OpenAI (408 MB), or a whole CLIP in models/iqa. Of "
                    f"{MODEL}, which judges dimensions: default, or a file of it in models/iqa.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Fetch the default CLIP if it is not on this machine.",
                ),
                *steering_inputs(),
                *(
                    io.Float.Input(
                        dimension,
                        default=0.0,
                        min=-10.0,
                        max=10.0,
                        step=0.05,
                        tooltip=f"Weight of the dimension {dimension}, as {MODEL} sees it; below 0 for less of it. "
                        "attributes must be empty.",
                    )
                    for dimension in DIMENSIONS
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE; needed if there is no tiny decoder."),
            ],
            outputs=[io.Model.Output("model", tooltip="For any sampler; Guidance Report shows what it did.")],
            is_experimental=True,
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None = DEFAULT, **inputs: Any) -> float:
        """Load again when the file has changed."""
        return time_of(weights)

    @classmethod
    def validate_inputs(
        cls, attributes: str | None = None, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """The attributes can be read, and the window is not empty; what is linked is None.

        ComfyUI checks itself what is not named here, and marks everything that is for one mistake: no dimensions.
        """
        if attributes is not None and attributes.strip():
            try:
                parse_attributes(attributes)
            except ValueError as error:
                return str(error)
        return window_problem(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        attributes: str,
        weights: str,
        download: bool,
        strength: float,
        start_percent: float,
        end_percent: float,
        decoder: str,
        vae: Any | None = None,
        **dimensions: float,
    ) -> io.NodeOutput:
        """Patch a clone."""
        attributes, quality = judge_of(attributes, weights, download, dimensions)
        reward = Resize(attributes, quality.size)
        patched = patch_model(
            model,
            RewardGuidance(reward, scale=strength),
            patchers=quality.get_models(),
            vae=vae,
            decoder=decoder,
            percent=(start_percent, end_percent),
        )
        return io.NodeOutput(patched)
