"""Checkpoints of a training run: what they hold, written whole or not at all, and read again."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from .errors import reason
from .learners import Judge

SETTINGS = "settings.json"
MAY_CHANGE = ("out", "workers", "tracker", "gradient_checkpointing")
"""Settings that a resumed run may have anew: they do not change what comes out."""


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


def write_checkpoint(accelerator: Accelerator, out: Path, step: int, settings: dict[str, Any]) -> None:
    """Write OUT/checkpoint-STEP, under its name only when it is whole, and delete the former one.

    Raises:
        OSError: it cannot be written; the former one is still there.
    """
    whole, unfinished = out / f"checkpoint-{step:07}", out / "checkpoint.part"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            (unfinished / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise the latter for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"cannot write {whole} ({reason(error)}); free some space and go on from the checkpoint before it with "
            "--resume."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        former = [path for path in out.glob("checkpoint-*") if path != whole]
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(unfinished, whole)
        for path in former:
            shutil.rmtree(path)


def read_checkpoint(accelerator: Accelerator, out: Path, settings: dict[str, Any]) -> None:
    """Put the last checkpoint in place.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of a run with other settings, or damaged.
    """
    found = sorted(out.glob("checkpoint-*"))
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {out} to resume from; start without --resume.")
    with _read(found[-1]):
        former = dict(json.loads((found[-1] / SETTINGS).read_text("utf-8")))
    current = json.loads(json.dumps(settings))  # a tuple comes back as a list
    for key in current:
        if key not in MAY_CHANGE and former.get(key) != current[key]:
            raise ValueError(
                f"{key} is {current[key]!r} and was {former.get(key)!r} when {found[-1]} was written; resume with the "
                "same settings, or start in another --out."
            )
    with _read(found[-1]):
        accelerator.load_state(str(found[-1]))


@contextmanager
def _read(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged files make torch and safetensors raise almost any type
        raise ValueError(
            f"{checkpoint} cannot be read ({reason(error)[:200]}); it is damaged: delete it and start without --resume."
        ) from error
