"""Checkpoints of a training run: what they hold, written whole or not at all, and read again.

Tensors are safetensors and everything else is JSON, so that reading a checkpoint runs no code, whoever made it:

    model.safetensors      what the optimiser moves, and the buffers
    average.safetensors    the running average of the weights, where there is one
    optimizer.safetensors  moments and remainders by the names of the parameters
    random-0.safetensors   states of the random generators, a file for each process
    state.json             counters, parameter groups, the loss scale of fp16
    settings.json          with which settings, pictures and number of processes the run goes on
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..errors import one_line
from .options import jsonable
from .run_settings import RunSettings

SETTINGS, STATE = "settings.json", "state.json"
NAME = re.compile(r"checkpoint-\d{7}")
MAY_CHANGE = ("out", "workers", "tracker", "gradient_checkpointing", "measure", "epochs", "steps")
"""Settings that a resumed run may have anew. They do not change what comes out, but for `steps`, which may be more."""
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class State:
    """What a checkpoint holds, besides the states of the random generators."""

    model: nn.Module
    """The `TrainingModel` that is trained, as accelerate wrapped it."""
    average: nn.Module
    """Running average of its weights: the result. The model itself where there is no average."""
    optimiser: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    best: float = -math.inf
    """Highest SRCC on the validation part so far."""
    best_step: int = 0
    """Where that was."""
    checkpoint: Path | None = None
    """The last checkpoint of this run, which the next one replaces."""


def compared(config: RunSettings, accelerator: Accelerator, pictures: str) -> dict[str, Any]:
    """What a resumed run must have as the run before it had: settings, pictures and number of processes."""
    files = {key: value for key, value in vars(config).items() if isinstance(value, Path) and value.exists()}
    settings = jsonable(config) | {key: str(value.resolve()) for key, value in files.items()}
    settings |= {"processes": accelerator.num_processes, "pictures": pictures}
    return json.loads(json.dumps(settings))  # a tuple as it comes back


def write_checkpoint(accelerator: Accelerator, config: RunSettings, state: State, pictures: str) -> None:
    """Write FOLDER/checkpoint-STEP, under its name only when it is whole, and delete the one of this run before it.

    Args:
        accelerator: of the run.
        config: its settings.
        state: what to write; `checkpoint` is set.
        pictures: fingerprint of what it learns from.

    Raises:
        OSError: it cannot be written; the former one is still there.
    """
    whole, unfinished = config.folder / f"checkpoint-{state.step:07}", config.folder / "checkpoint.part"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    accelerator.wait_for_everyone()
    try:
        _write(accelerator, state, unfinished)
        if accelerator.is_main_process:
            _write_json(unfinished / SETTINGS, compared(config, accelerator, pictures))
    except (OSError, SafetensorError) as error:  # the latter is what safetensors raises for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        again = "go on from the checkpoint before it with --resume" if state.checkpoint else "start again"
        raise OSError(f"cannot write {whole} ({one_line(error)}); free some space and {again}.") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if whole.exists():  # of a former run that this one replaces
            shutil.rmtree(whole)
        os.replace(unfinished, whole)
        if state.checkpoint not in (None, whole):
            shutil.rmtree(state.checkpoint)
    state.checkpoint = whole


def _write(accelerator: Accelerator, state: State, folder: Path) -> None:
    """Every process writes its generators, the first one all the rest."""
    model = learning_state(get_model_state_dict(state.model, options=WHOLE), state.model)
    optimiser = get_optimizer_state_dict(state.model, plain(state.optimiser), options=WHOLE)
    _save(generator_states(), folder / f"random-{accelerator.process_index}.safetensors")
    if not accelerator.is_main_process:
        return
    _save(model, folder / "model.safetensors")
    if state.average is not accelerator.unwrap_model(state.model):
        _save(learning_state(state.average.state_dict(), state.model), folder / "average.safetensors")
    moments = {f"{name}|{key}": value for name, values in optimiser["state"].items() for key, value in values.items()}
    _save(moments, folder / "optimizer.safetensors")
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    counters = {"step": state.step, "best": state.best, "best_step": state.best_step}
    _write_json(folder / STATE, counters | {"groups": optimiser["param_groups"], "scaler": scaler})


def learning_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Without the frozen parameters, which the initial weights bring: towers of hundreds of megabytes among them."""
    frozen = {name.removeprefix("module.") for name, p in model.named_parameters() if not p.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def plain(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser that accelerate has wrapped."""
    return getattr(optimiser, "optimizer", optimiser)


def generator_states() -> dict[str, Tensor]:
    """States of torch's generators by device, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _save(tensors: dict[str, Any], path: Path) -> None:
    save_file(
        {name: torch.as_tensor(value).detach().cpu().contiguous().clone() for name, value in tensors.items()}, path
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def read_checkpoint(accelerator: Accelerator, config: RunSettings, state: State, pictures: str) -> None:
    """Put the last checkpoint in place; arguments as `write_checkpoint`.

    Raises:
        FileNotFoundError: there is none, or it does not say with which settings it was made.
        ValueError: it is of a run with other settings or pictures, or damaged.
    """
    checkpoints = written(config.folder)
    if not checkpoints:
        raise FileNotFoundError(f"there is no checkpoint in {config.folder} to resume from; start without --resume.")
    last = checkpoints[-1]
    for name in (SETTINGS, STATE):
        if not (last / name).is_file():
            raise FileNotFoundError(
                f"{last} has no {name}, so it cannot be resumed; expected a checkpoint of this version: start in "
                "another --out, or replace it with --overwrite."
            )
    with _reading(last):
        former = dict(json.loads((last / SETTINGS).read_text("utf-8")))
    _check_settings(former, compared(config, accelerator, pictures), last)
    with _reading(last):
        _read(accelerator, state, last)
    state.checkpoint = last


def _check_settings(former: dict[str, Any], current: dict[str, Any], checkpoint: Path) -> None:
    if former.get("pictures") != current["pictures"]:
        raise ValueError(
            f"the pictures or their scores are not those of {checkpoint}; resume with the same ones, or start in "
            "another --out."
        )
    for key, value in current.items():
        shorter = key == "steps" and value < former.get("steps", 0)
        if shorter or (key not in MAY_CHANGE and former.get(key) != value):
            raise ValueError(
                f"{key} is {value!r} and was {former.get(key)!r} when {checkpoint} was written; resume with the "
                f"same settings{' or more steps' if shorter else ''}, or start in another --out."
            )


def _read(accelerator: Accelerator, state: State, folder: Path) -> None:
    counters = json.loads((folder / STATE).read_text("utf-8"))
    options = StateDictOptions(full_state_dict=True, strict=False)  # frozen parameters are not in the file
    values = load_file(folder / "model.safetensors")
    _check_names(values, learning_state(get_model_state_dict(state.model), state.model), folder)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        parameter, _, key = name.rpartition("|")
        moments.setdefault(parameter, {})[key] = value
    generators = load_file(folder / f"random-{accelerator.process_index}.safetensors")
    average = None
    if state.average is not accelerator.unwrap_model(state.model):
        average = load_file(folder / "average.safetensors")
        _check_names(average, learning_state(state.average.state_dict(), state.model), folder)
    set_model_state_dict(state.model, values, options=options)
    saved = {"state": moments, "param_groups": counters["groups"]}
    set_optimizer_state_dict(
        state.model, plain(state.optimiser), optim_state_dict=saved, options=StateDictOptions(full_state_dict=True)
    )
    if average is not None:
        state.average.load_state_dict(average, strict=False)
    if counters["scaler"] is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(counters["scaler"])
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    state.step, state.best, state.best_step = int(counters["step"]), counters["best"], int(counters["best_step"])


def _check_names(values: dict[str, Tensor], own: dict[str, Tensor], folder: Path) -> None:
    if values.keys() != own.keys():
        other = min(values.keys() ^ own.keys())
        raise ValueError(f"{other} is in only one of checkpoint and model")


def written(folder: Path) -> list[Path]:
    """The folders in a folder that are called as checkpoints are, oldest first; others beside them are not ours."""
    candidates = (path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name))
    return sorted(path for path in candidates if path.is_dir() and not path.is_symlink())


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, torch.cuda.OutOfMemoryError):
        raise  # these say what they are; the files may be sound
    except Exception as error:  # damaged files make torch and safetensors raise almost any type
        raise ValueError(
            f"{checkpoint} cannot be read ({one_line(error)[:200]}); if it is damaged, start in another --out."
        ) from error
