"""Node: Attribute Guidance."""

from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..guidance import RewardGuidance
from ..guidance.comfy import patch_model
from ..rewards import Resize
from .load import DEFAULT, FOLDER, load_quality_model
from .steering import steering_inputs, window_problem
from .words import EXAMPLE, WeightedPairs, parse_attributes


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
            description="Steer sampling by pairs of opposite words, such as sharp and blurry, as CLIP reads them.",
            search_aliases=["clip guidance", "antonym", "attribute slider", "reward guidance", "image quality"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; it is not changed, the output is a copy."),
                io.String.Input(
                    "attributes",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip="One pair a line: wanted / unwanted, and perhaps = weight; one below 0 turns it round.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[DEFAULT, *folder_paths.get_filename_list(FOLDER)] if known else [DEFAULT],
                    default=DEFAULT,
                    tooltip="CLIP RN50: default is that of OpenAI (408 MB), or a whole CLIP in models/iqa.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Fetch the default CLIP if it is not on this machine.",
                ),
                *steering_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE; needed if there is no tiny decoder."),
            ],
            outputs=[io.Model.Output("model", tooltip="For any sampler; Guidance Report shows what it did.")],
            is_experimental=True,
        )

    @classmethod
    def validate_inputs(
        cls, attributes: str = EXAMPLE, start_percent: float = 0.0, end_percent: float = 1.0, **inputs: object
    ) -> bool | str:
        """The attributes can be read, and the window is not empty."""
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
    ) -> io.NodeOutput:
        """Patch a clone."""
        pairs, shares = parse_attributes(attributes)
        quality = load_quality_model("clipiqa", weights, "float32", True, download, pairs=pairs)
        reward = Resize(WeightedPairs(quality.reward, tuple(shares)), quality.short_side, enlarge=False)
        patched = patch_model(
            model,
            RewardGuidance(reward, scale=strength),
            patchers=quality.get_models(),
            vae=vae,
            decoder=decoder,
            percent=(start_percent, end_percent),
        )
        return io.NodeOutput(patched)
