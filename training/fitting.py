"""The loop of the short trainings, which take minutes and keep no checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from .loop import Diverged
from .schedule import rate


def fit(
    learning: Iterable[nn.Parameter],
    losses: Callable[[], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    name: str,
    betas: tuple[float, float] = (0.9, 0.99),
    clip: float = math.inf,
    after: Callable[[int], None] = lambda step: None,
    accelerator: Accelerator | None = None,
) -> None:
    """Lower the sum of losses with AdamW, in place: warm-up over 50 steps, then a cosine down to a fiftieth.

    Args:
        learning: parameters, on the accelerator's device.
        losses: of a fresh batch, by name.
        steps: how many.
        lr: highest learning rate.
        weight_decay: of AdamW.
        name: for the progress bar.
        betas: of AdamW.
        clip: longest gradient.
        after: called with the number of the step when it is done, 0 first.
        accelerator: that has prepared the model, where several processes share the work.

    Raises:
        Diverged: a loss is not finite.
    """
    learning = list(learning)
    optimiser = torch.optim.AdamW(learning, lr, betas=betas, weight_decay=weight_decay)
    quiet = accelerator is not None and not accelerator.is_main_process
    progress = tqdm(range(steps), desc=name, mininterval=1, disable=quiet)
    running: dict[str, float] = {}
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = lr * rate(step, steps)
        parts = losses()
        optimiser.zero_grad(set_to_none=True)
        loss = sum(parts.values())
        loss.backward() if accelerator is None else accelerator.backward(loss)
        nn.utils.clip_grad_norm_(learning, clip)
        optimiser.step()
        after(step)
        if step % 20 == 19 or step + 1 == steps:
            values = {key: part.item() for key, part in parts.items()}
            running = {key: 0.8 * running.get(key, value) + 0.2 * value for key, value in values.items()}
            progress.set_postfix({key: f"{value:.3f}" for key, value in running.items()}, refresh=False)
            if not all(map(math.isfinite, values.values())):
                raise Diverged(f"the losses are {values} at step {step + 1}; use a lower lr.")
