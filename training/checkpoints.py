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

from ..errors import one_line
from .config import FinetuneConfig, jsonable
from .training_model import TrainingModel

SETTINGS = "settings.json"
MAY_CHANGE = ("out", "workers", "tracker", "gradient_checkpointing")
"""Settings that a resumed run may have anew: they do not change what comes out."""


@dataclass
class State:
    """What a checkpoint holds, besides what accelerate keeps by itself (model, optimiser, scaler, random states)."""

    model: nn.Module
    """The `TrainingModel` that is trained, as accelerate wrapped it."""
    average: TrainingModel
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


def compared(config: FinetuneConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What a resumed run must have as the run before it had: its settings, and its number of processes."""
    files = {key: value for key, value in vars(config).items() if isinstance(value, Path) and value.exists()}
    settings = jsonable(config) | {key: str(value.resolve()) for key, value in files.items()}
    settings["processes"] = accelerator.num_processes
    return json.loads(json.dumps(settings))  # a tuple as it comes back


def write_checkpoint(accelerator: Accelerator, config: FinetuneConfig, step: int) -> None:
    """Write OUT/checkpoint-STEP, under its name only when it is whole, and delete the former one.

    Raises:
        OSError: it cannot be written; the former one is still there.
    """
    whole, unfinished = config.out / f"checkpoint-{step:07}", config.out / "checkpoint.part"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            settings = compared(config, accelerator)
            (unfinished / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        again = "go on from the checkpoint before it with --resume" if any(_written(config.out)) else "start again"
        raise OSError(f"cannot write {whole} ({one_line(error)}); free some space and {again}.") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        former = [path for path in _written(config.out) if path != whole]
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(unfinished, whole)
        for path in former:
            shutil.rmtree(path)


def read_checkpoint(accelerator: Accelerator, config: FinetuneConfig) -> None:
    """Put the last checkpoint in place.

    Raises:
        FileNotFoundError: there is none, or it does not say with which settings it was made.
        ValueError: it is of a run with other settings, or damaged.
    """
    found = _written(config.out)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {config.out} to resume from; start without --resume.")
    if not (found[-1] / SETTINGS).is_file():
        raise FileNotFoundError(
            f"{found[-1]} has no {SETTINGS}, so nobody knows what to resume; expected a checkpoint of this version:"
            " start in another --out."
        )
    with _read(found[-1]):
        former = dict(json.loads((found[-1] / SETTINGS).read_text("utf-8")))
    current = compared(config, accelerator)
    for key in current:
        if key not in MAY_CHANGE and former.get(key) != current[key]:
            raise ValueError(
                f"{key} is {current[key]!r} and was {former.get(key)!r} when {found[-1]} was written; resume with the "
                "same settings, or start in another --out."
            )
    with _read(found[-1]):
        accelerator.load_state(str(found[-1]))


def _written(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*"))


@contextmanager
def _read(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, torch.cuda.OutOfMemoryError):
        raise  # these say what they are; the files may be sound
    except Exception as error:  # damaged files make torch and safetensors raise almost any type
        raise ValueError(
            f"{checkpoint} cannot be read ({one_line(error)[:200]}); if it is damaged, start in another --out."
        ) from error
