"""Checkpoints of a training run: what they hold, written whole or not at all, and read again."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from .learners import Judge


@dataclass
class State:
    """What a checkpoint holds, besides what accelerate keeps by itself (model, optimiser, scaler, random states)."""

    model: nn.Module
    """The `Judge` that is trained, as accelerate wrapped it."""
    average: Judge
    """Running average of its weights: the result. The model itself where there is no average."""
    optimiser: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    best: float = -math.inf
    """Highest SRCC on the validation part so far."""
    best_step: int = 0
    """Where that was."""

    def state_dict(self) -> dict[str, object]:
        """For accelerate."""
        return {
            "average": self.average.state_dict(),
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
        }

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """For accelerate."""
        self.average.load_state_dict(saved["average"])
        self.step, self.best, self.best_step = saved["step"], saved["best"], saved["best_step"]


def write_checkpoint(accelerator: Accelerator, out: Path, step: int) -> None:
    """Write OUT/checkpoint-STEP, under its name only when it is whole, and delete the former one."""
    whole, unfinished = out / f"checkpoint-{step:07}", out / "checkpoint.part"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        former = [path for path in out.glob("checkpoint-*") if path != whole]
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(unfinished, whole)
        for path in former:
            shutil.rmtree(path)


def read_checkpoint(accelerator: Accelerator, out: Path) -> None:
    """Put the last checkpoint in place.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(out.glob("checkpoint-*"))
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {out} to resume from; start without --resume.")
    accelerator.load_state(str(found[-1]))
