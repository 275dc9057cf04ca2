"""Node: Guidance Report."""

import json
from dataclasses import asdict
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance import Evaluation
from ..guidance.comfy import patches_of
from ..images import to_tensor
from .plot import BLUE, ORANGE, above_each_other, line_plot
from .text import show


def draw_log(log: list[Evaluation]) -> Tensor:
    """Score before and after, and size of the changes, over the noise level; an IMAGE (1, H, W, 3)."""
    scored = [entry for entry in log if entry.score_before]
    changed = [entry for entry in log if entry.change]
    levels = [entry.noise_level for entry in log]
    x_range = (max(levels), min(levels))
    before = [(entry.noise_level, _mean(entry.score_before)) for entry in scored]
    after = [(entry.noise_level, _mean(entry.score_after)) for entry in scored if entry.score_after]
    size = [(entry.noise_level, _mean(entry.change)) for entry in changed]
    drift = [(entry.noise_level, _mean(entry.drift)) for entry in changed]
    plots = (
        line_plot("score over noise level", [("after", ORANGE, after), ("before", BLUE, before)], x_range),
        line_plot("rms change over noise level", [("all so far", ORANGE, drift), ("this step", BLUE, size)], x_range),
    )
    return to_tensor(above_each_other(plots)).movedim(1, -1)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


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
            raise ValueError("this MODEL has no guidance; connect the output of Quality Guidance.")
        logs = [patch.log for patch in patches]
        if not all(logs):
            raise ValueError("this MODEL has not sampled yet; connect after to the output of the sampler that uses it.")
        changed = [sum(entry.skipped is None for entry in log) for log in logs]
        show(cls, "; ".join(f"changed {count} of {len(log)} steps" for count, log in zip(changed, logs, strict=True)))
        plots = torch.cat([draw_log(log) for log in logs])
        text = json.dumps([[asdict(entry) for entry in log] for log in logs], indent=1)
        return io.NodeOutput(plots, text, ui=ui.PreviewImage(plots, cls=cls))
