"""Node: Quality Guidance."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..guidance import RewardGuidance
from ..guidance.comfy.patch import patch_model
from .quality_model import IQ_MODEL, QualityModel
from .steering import steering_inputs, window_problem


class QualityGuidance(io.ComfyNode):
    """A MODEL that steers its sampling towards a higher quality score."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideQualityGuidance",
            display_name="Quality Guidance",
            category="iqguide",
            description="Steer sampling by the gradient of a quality score, with any sampler and scheduler.",
            search_aliases=["reward guidance", "classifier guidance", "image quality", "iqa", "gradient guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; it is not changed, the output is a copy."),
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model; tiny is made for this."),
                *steering_inputs(),
                io.Int.Input(
                    "crop",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    tooltip="Side in pixels of the part that is decoded, at a new place each time; saves time and "
                    "memory. 0: everything with a tiny decoder, 512 with a VAE.",
                    advanced=True,
                ),
                io.Int.Input(
                    "every",
                    default=RewardGuidance.every,
                    min=1,
                    max=100,
                    tooltip="A new gradient at every n-th step only; the steps between use the last one. Saves time.",
                    advanced=True,
                ),
                io.Int.Input(
                    "views",
                    default=RewardGuidance.samples,
                    min=1,
                    max=16,
                    tooltip="Slightly different views over which a gradient is averaged. More is steadier and slower.",
                    advanced=True,
                ),
                io.Float.Input(
                    "max_drift",
                    default=RewardGuidance.max_drift,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The farthest that all pushes together may move the latent, in its own units. 0: no limit.",
                    advanced=True,
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE; needed if there is no tiny decoder."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of the size that is sampled, for models that compare with a reference.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="For any sampler; Guidance Report shows what it did.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        """The window must not be empty. ComfyUI checks itself what is not named here; what is linked is None."""
        return window_problem(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        quality_model: QualityModel,
        strength: float,
        start_percent: float,
        end_percent: float,
        decoder: str,
        crop: int,
        every: int,
        views: int,
        max_drift: float,
        vae: Any | None = None,
        reference: Tensor | None = None,
    ) -> io.NodeOutput:
        """Patch a clone."""
        guidance = RewardGuidance(
            quality_model.reward_for(reference),
            scale=strength,
            every=every,
            samples=views,
            max_drift=max_drift or None,
        )
        patched = patch_model(
            model,
            guidance,
            patchers=quality_model.get_models(),
            vae=vae,
            decoder=decoder,
            percent=(start_percent, end_percent),
            crop_pixels=crop,
            whole_picture=quality_model.full_reference,
        )
        return io.NodeOutput(patched)
