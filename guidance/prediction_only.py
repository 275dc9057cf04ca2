"""Guidance for hosts that show each prediction of the model but not the solver behind it.

Needs neither diffusers nor ComfyUI.

There the prediction is all that can be changed: not the noisy latent, and not what a multistep solver has stored. Each
step of the schedule gets one change, found at its first evaluation and used for all the others. A first-order step from
ratio s to s' (sigma / alpha) lets (1 - s' / s) of a change through, so that is divided out. Solvers of higher order
let up to log(s / s') through, which is more in long steps: some 10 % at 30 steps, 30 % at 10.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .evaluation import join_logs, split_log
from .noise_level import Stage, noise_level_of
from .reward_guidance import GuidanceRun
from .tensor_tree import join, split

_SAME = 1 + 1e-4  # ratios nearer to each other than this are one: hosts keep their schedules in float32


class PredictionOnlyGuidance:
    """Guides a run of which only the evaluations are seen, in order.

    Args:
        run: settings and state.
        ratios: the sampler's schedule as sigma / alpha, its end included.
    """

    def __init__(self, run: GuidanceRun, ratios: Sequence[float]) -> None:
        self.run = run
        self._ratios = sorted(set(ratios), reverse=True)
        self._covered = math.inf  # where the step that has its change already ends
        self._change: Tensor | None = None
        self._begun = False

    def __call__(self, denoised: Tensor, ratio: float, *, noise_stays: bool = False) -> Tensor:
        """Guide one evaluation.

        Args:
            denoised: (N, ...) the model's prediction of the clean latent.
            ratio: sigma / alpha at which it was made, in (0, inf].
            noise_stays: whether the solver takes the noise from another, unguided prediction (CFG++); then the change
                reaches the latent whole.

        Returns:
            The guided prediction, of the same dtype; the very same object where nothing is to be done.
        """
        if self._begins_a_step(ratio) or self._is_another_size(denoised):
            self._advance(denoised, ratio, noise_stays)
        elif self._change is not None:
            latest = self.run.log[-1]
            self.run.log.append(
                replace(
                    latest, index=latest.index + 1, noise_level=noise_level_of(ratio), weight=0.0, score_before=None
                )
            )
        return denoised if self._change is None else (denoised.float() + self._change).to(denoised.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run is to go on with elsewhere, its log too; tensors (N, ...) on the CPU."""
        change = None if self._change is None else self._change.to("cpu", copy=True)
        step = {"covered": self._covered, "begun": self._begun, "change": change}
        return step | {"run": self.run.state.state_dict(), "log": list(self.run.log)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with the `state_dict` of another run, with all or some of its samples (`split_run`, `join_run`)."""
        self.run.state.load_state_dict(state["run"], device)
        self.run.log[:] = state["log"]
        self._covered, self._begun = state["covered"], state["begun"]
        self._change = None if state["change"] is None else state["change"].to(device, copy=True)

    def _begins_a_step(self, ratio: float) -> bool:
        if not self._begun:
            return True
        return self._ratios[-1] * _SAME < ratio <= self._covered * _SAME

    def _advance(self, denoised: Tensor, ratio: float, noise_stays: bool) -> None:
        start = self._covered if self._begun else ratio
        end = next((level for level in self._ratios if level * _SAME < ratio), 0.0)
        stage = Stage(ratio, start, end)
        push = None if self.run.skips(stage) else self.run.push(denoised, stage)
        share = 1.0 if noise_stays or math.isinf(start) else 1.0 - end / start
        self._change = None if push is None else push / share
        self._covered, self._begun = end, True

    def _is_another_size(self, denoised: Tensor) -> bool:
        return self._change is not None and self._change.shape != denoised.shape


def split_run(state: dict[str, Any], samples: int) -> list[dict[str, Any]]:
    """The `state_dict` of a `PredictionOnlyGuidance`, for each of its samples (of one frame or more) separately."""
    logs, trees = split_log(state["log"], samples), split(state | {"log": None}, samples)
    return [tree | {"log": log} for tree, log in zip(trees, logs, strict=True)]


def join_run(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The opposite of `split_run`, of samples with as many evaluations each."""
    return join([part | {"log": None} for part in parts]) | {"log": join_logs([part["log"] for part in parts])}
