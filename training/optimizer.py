"""AdamW that keeps what a float32 weight cannot hold."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CompensatedAdamW(torch.optim.AdamW):
    """AdamW with compensated weights: a second float32 number keeps what rounding would lose of each weight.

    At a learning rate of 1e-9 a step is shorter than half the distance between neighbouring float32 numbers near every
    weight above about 0.02, so plain AdamW never moves these. Here the sum of weight and remainder moves, in float64,
    and the weight follows as soon as the sum is nearer to the next number.

    Source:
        Kahan (1965), "Further remarks on reducing truncation errors", Communications of the ACM 8(1).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; arguments and result as torch.optim.AdamW."""
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p, _ in moving]
        decays = [group["weight_decay"] for group in self.param_groups]
        for p, _ in moving:
            p.zero_()  # AdamW's own step does not look at the weight, apart from the decay, which is below
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        loss = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for (p, group), old in zip(moving, before, strict=True):
            state = self.state[p]
            remainder = state.setdefault("remainder", torch.zeros_like(p))
            whole = old.double() + remainder.double()
            whole = whole * (1 - group["lr"] * group["weight_decay"]) + p.double()
            p.copy_(whole)
            remainder.copy_(whole - p.double())
        return loss
