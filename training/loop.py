"""The loop of every resumable training: steps, trackers, checkpoints, the best result by validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoints import State, write_checkpoint
from .options import jsonable
from .run_record import listed
from .run_settings import RunSettings
from .schedule import rate, update_ema

Losses = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


class Diverged(RuntimeError):
    """A loss or a gradient is not finite; the message says what is kept and what to do."""


@dataclass(frozen=True)
class Task:
    """What differs from one training to the next."""

    name: str
    """For the progress bar."""
    batches: Dataset
    """By number; `accumulate` of them make one step."""
    pictures: str
    """Fingerprint of what is learnt from."""
    step: Callable[[State, list[dict[str, Tensor]]], dict[str, float]]
    """One optimiser step on its batches, in place; returns the losses."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Figures of a model, `srcc` among them, which chooses the best one; none where the last one is the result."""
    save: Callable[[nn.Module], None]
    """Write a model as the result."""


def start_accelerator(config: RunSettings) -> Accelerator:
    """The accelerator of a run, its tracker started.

    Raises:
        ValueError: the tracker is not installed or cannot start, or the launcher has chosen DeepSpeed.
    """
    if config.tracker and config.tracker not in [str(tracker) for tracker in get_available_trackers()]:
        raise ValueError(f"the tracker {config.tracker} is not installed; pip install {config.tracker}.")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker or None,
        project_dir=config.folder,
        # The networks stay in evaluation mode, so buffers never change; sending them again would write into the graph.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed keeps its states in files that only it reads, as pickles; use FSDP or plain processes."
        )
    if config.tracker:
        settings = {key: value for key, value in jsonable(config).items() if isinstance(value, str | int | float)}
        options = {"wandb": {"dir": config.folder}}  # it would write where the command was started
        try:
            accelerator.init_trackers("iqguide", settings, options)
        except Exception as error:  # whatever its client raises, such as wandb's without a login
            raise ValueError(f"the tracker {config.tracker} cannot start: {error}") from error
    return accelerator


def steps_of(config: RunSettings, pictures: int, batch: int, processes: int) -> int:
    """Optimiser steps of a run: `config.steps`, or as many as `config.epochs` passes over the pictures take.

    Args:
        config: the settings.
        pictures: how many there are.
        batch: how many of them a batch of one process has.
        processes: number of these.
    """
    if not config.epochs:
        return config.steps
    return max(1, math.ceil(config.epochs * pictures / (batch * processes * config.accumulate) - 1e-9))


def gather_with_grad(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Values (n, ...) of all processes (P n, ...), those of this one differentiable: losses of the whole batch."""
    if accelerator.num_processes == 1:
        return values
    everything = accelerator.gather(values.detach().contiguous())
    first = accelerator.process_index * len(values)
    return torch.cat([everything[:first], values, everything[first + len(values) :]])


def learning_rate(config: RunSettings, step: int) -> float:
    """That of a step: see `schedule.rate`."""
    return config.lr * rate(step, config.steps, config.warmup, config.last_lr, config.restarts)


def optimise(
    state: State, batches: list[dict[str, Tensor]], config: RunSettings, accelerator: Accelerator, losses: Losses
) -> dict[str, float]:
    """One optimiser step, in place; returns the losses, the mean over the batches.

    Raises:
        Diverged: a loss or a gradient is not finite; the weights are those before the step.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = group["factor"] * learning_rate(config, state.step)
    totals: dict[str, float] = {}
    for batch in batches:
        with accelerator.accumulate(state.model):
            parts = losses(state.model, {name: value.to(accelerator.device) for name, value in batch.items()})
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value.item() / len(batches)
                _require_finite(totals[name], f"the loss {name!r}", state, config)
            # each process differentiates its own share of the same loss, and the mean over processes is taken
            accelerator.backward(sum(parts.values()) * accelerator.num_processes)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(state.model.parameters(), config.clip)
                if accelerator.scaler is None and norm is not None:  # fp16 leaves such steps out by itself
                    _require_finite(float(norm), "the gradient", state, config)
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
    if config.ema:
        update_ema(state.average, accelerator.unwrap_model(state.model), state.step, config.ema)
    state.step += 1
    return totals


def _require_finite(value: float, what: str, state: State, config: RunSettings) -> None:
    if not math.isfinite(value):
        kept = f"{state.checkpoint} and {config.result} are kept" if state.checkpoint else "there is no checkpoint yet"
        raise Diverged(
            f"{what} is {value} at step {state.step + 1}; {kept}: use a lower lr, or look at the pictures and options."
        )


def keep_best(state: State, task: Task) -> dict[str, float]:
    """Write the result if it is the best so far; returns the figures of the validation part, if there is one."""
    figures = task.validate(state.average)
    if figures:
        if not figures["srcc"] > state.best:  # a constant score has the SRCC NaN
            return figures
        state.best, state.best_step = figures["srcc"], state.step
    task.save(state.average)
    return figures


def numbers(config: RunSettings, step: int) -> Iterator[int]:
    """Numbers of the batches from a step on."""
    yield from range(step * config.accumulate, config.steps * config.accumulate)


def run(config: RunSettings, accelerator: Accelerator, state: State, task: Task) -> None:
    """From the state's step to the last one; the result is written, the state is that after the last step.

    Raises:
        OSError: the disk is full; the checkpoint before is kept.
        Diverged: see `optimise`.
    """
    loader = iter(DataLoader(task.batches, None, sampler=list(numbers(config, state.step)), num_workers=config.workers))
    is_main, running = accelerator.is_main_process, {}
    progress = tqdm(total=config.steps, initial=state.step, desc=task.name, disable=not is_main)
    while state.step < config.steps:
        losses = task.step(state, [next(loader) for _ in range(config.accumulate)])
        for key, value in losses.items():
            running[key] = 0.98 * running.get(key, value) + 0.02 * value
        progress.update()
        if state.step % 20 == 0:
            progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()})
            accelerator.log(losses | {"lr": learning_rate(config, state.step - 1)}, state.step)  # that of this step
        if state.step == config.steps or state.step % config.checkpoint_every == 0:
            figures = keep_best(state, task) if is_main else {}
            accelerator.log({f"validation_{key}": value for key, value in figures.items()}, state.step)
            write_checkpoint(accelerator, config, state, task.pictures)
            if is_main:
                progress.write(f"step {state.step}: {listed(figures or losses)}")
    progress.close()
