"""Node: Guidance Report."""

from dataclasses import asdict
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..guidance.comfy.patch import patches_of
from ..images import to_tensor
from .plot import draw_log, notice
from .tables import to_json
from .text import show


class GuidanceReport(io.ComfyNode):
    """What guidance did in the latest sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideGuidanceReport",
            display_name="Guidance Report",
            category="iqguide",
            description="Plot and log of what Quality Guidance did in the sampling before this node.",
            search_aliases=["guidance log", "plot", "debug guidance", "image quality"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that Quality Guidance gave, as it went into the sampler."),
                io.AnyType.Input("after", tooltip="Anything that comes from the sampler, so that this runs after it."),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="Score and size of the changes over the noise level."),
                io.String.Output("log", tooltip="JSON: every evaluation of the model; null where nothing is known."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """The log changes with every sampling, so never reuse an old report."""
        return float("nan")

    @classmethod
    def execute(cls, model: ModelPatcher, after: Any) -> io.NodeOutput:
        """Report."""
        patches = patches_of(model)
        if not patches:
            return cls._unguided()
        logs = [patch.log for patch in patches]
        if not all(logs):
            raise ValueError("this MODEL has not sampled yet; connect after to the output of the sampler that uses it.")
        changed = [sum(entry.skipped is None for entry in log) for log in logs]
        show(cls, "; ".join(f"changed {count} of {len(log)} steps" for count, log in zip(changed, logs, strict=True)))
        plots = torch.cat([to_tensor(draw_log(log)).movedim(1, -1) for log in logs])
        text = to_json([[asdict(entry) for entry in log] for log in logs])
        return io.NodeOutput(plots, text, ui=ui.PreviewImage(plots, cls=cls))

    @classmethod
    def _unguided(cls) -> io.NodeOutput:
        """Of a MODEL whose Quality Guidance is bypassed, for comparison: an error would stop the whole prompt."""
        text = "no guidance on this MODEL"
        show(cls, text)
        picture = to_tensor(notice(text)).movedim(1, -1)
        return io.NodeOutput(picture, "[]", ui=ui.PreviewImage(picture, cls=cls))
