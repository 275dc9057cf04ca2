"""Node: Guidance Report."""

from dataclasses import asdict
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..guidance import Evaluation
from ..guidance.comfy.patch import Patch, patches_of
from ..images import to_tensor
from .plot import draw_log, notice, said_of
from .tables import to_json
from .text import show
from .upstream import nearest_upstream


class GuidanceReport(io.ComfyNode):
    """What guidance did in the sampling from which an input comes."""

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
                io.AnyType.Input(
                    "after", tooltip="Anything that comes from the sampler: its latents, or the picture made of them."
                ),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="Score and size of the changes over the noise level."),
                io.String.Output("log", tooltip="JSON: every evaluation of the model; null where nothing is known."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, after: Any) -> io.NodeOutput:
        """Report."""
        patches = patches_of(model)
        if not patches:
            return cls._unguided()
        logs = [cls._log_of(patch) for patch in patches]
        show(cls, "; ".join(map(said_of, logs)))
        plots = torch.cat([to_tensor(draw_log(log)).movedim(1, -1) for log in logs])
        text = to_json([[asdict(entry) for entry in log] for log in logs])
        return io.NodeOutput(plots, text, ui=ui.PreviewImage(plots, cls=cls))

    @classmethod
    def _log_of(cls, patch: Patch) -> list[Evaluation]:
        """The log of the sampler from which `after` comes; of the latest one where the prompt is not known."""
        if cls.hidden is None or not cls.hidden.prompt or not patch.logs:
            log = patch.log
        else:
            sampler = nearest_upstream(cls.hidden.prompt, cls.hidden.unique_id, "after", patch.logs)
            log = patch.logs.get(sampler, [])
        if not log:
            raise ValueError(
                "no sampler from which the input after comes has used this MODEL; connect after to the output of the"
                " sampler that uses it."
            )
        return log

    @classmethod
    def _unguided(cls) -> io.NodeOutput:
        """Of a MODEL whose Quality Guidance is bypassed, for comparison: an error would stop the whole prompt."""
        text = "no guidance on this MODEL"
        show(cls, text)
        picture = to_tensor(notice(text)).movedim(1, -1)
        return io.NodeOutput(picture, "[]", ui=ui.PreviewImage(picture, cls=cls))
