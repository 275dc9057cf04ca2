"""The optimiser and the schedule, against float64 and closed forms."""

import copy

import pytest
import torch

from iqguide.training.optimizer import CompensatedAdamW
from iqguide.training.schedule import rate

SETTINGS = {"betas": (0.9, 0.99), "weight_decay": 1e-2}


def run(kind, dtype, lr, steps=60):
    """Weights after steps on gradients that do not depend on them, and how often a weight has changed."""
    torch.manual_seed(0)
    start = torch.logspace(-5, 1, 400, dtype=torch.float64)
    weight = torch.nn.Parameter(start.to(torch.float32).to(dtype))
    optimiser = kind([weight], lr, **SETTINGS)
    for _ in range(steps):
        weight.grad = (torch.randn(400) + 0.5).to(dtype)
        optimiser.step()
    return weight.detach().double(), optimiser


@pytest.mark.parametrize("lr", [1e-2, 1e-5, 1e-9])
def test_it_is_adamw_in_float64_up_to_the_rounding_of_the_result(lr):
    exact, _ = run(torch.optim.AdamW, torch.float64, lr)
    weight, optimiser = run(CompensatedAdamW, torch.float32, lr)
    half_a_step = torch.finfo(torch.float32).eps / 2 * exact.abs()
    moved = 60 * lr
    assert ((weight - exact).abs() <= 1.01 * half_a_step + 1e-5 * moved).all()
    whole = weight + next(iter(optimiser.state.values()))["remainder"].double()
    torch.testing.assert_close(whole, exact, rtol=1e-9 if lr < 1e-3 else 1e-6, atol=1e-4 * moved)


def test_a_rate_of_1e_9_moves_weights_that_plain_float32_cannot_move():
    start = torch.logspace(-5, 1, 400, dtype=torch.float64).float().double()
    plain, _ = run(torch.optim.AdamW, torch.float32, 1e-9, 2000)
    compensated, _ = run(CompensatedAdamW, torch.float32, 1e-9, 2000)
    exact, _ = run(torch.optim.AdamW, torch.float64, 1e-9, 2000)
    large = (start > 0.05) & (start < 1)
    assert (plain[large] == start[large]).all()  # not one of them has moved
    far = large & ((exact - start).abs() > 2 * torch.finfo(torch.float32).eps * start)
    assert far.sum() > 20
    assert (compensated[far] != start[far]).all()
    torch.testing.assert_close((compensated - start)[far], (exact - start)[far], rtol=0.3, atol=0)


def test_moments_and_remainders_are_in_the_state_dict():
    weight, optimiser = run(CompensatedAdamW, torch.float32, 1e-6, 3)
    again = torch.nn.Parameter(weight.float())
    other = CompensatedAdamW([again], 1e-6, **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    own = next(iter(optimiser.param_groups[0]["params"]))
    torch.manual_seed(5)
    for parameter in (own, again):
        parameter.grad = torch.linspace(-1, 1, 400)
    optimiser.step()
    other.step()
    assert torch.equal(own, again)
    assert torch.equal(optimiser.state[own]["remainder"], other.state[again]["remainder"])


def test_rate_falls_along_equal_cosines():
    rates = [rate(step, 1000, warmup=1, last=0.1, restarts=3) for step in range(1000)]
    for start in (0, 250, 500, 750):
        assert rates[start] == pytest.approx(1)
        assert rates[start + 125] == pytest.approx(0.55)
        assert rates[start + 249] == pytest.approx(0.1, abs=1e-3)
    one = [rate(step, 1000, warmup=100, last=0.02) for step in range(1000)]
    assert one[0] == pytest.approx(0.01)
    assert one[99] == pytest.approx(1, rel=0.03)
    assert one[500] == pytest.approx(0.51)
    assert one[-1] == pytest.approx(0.02, rel=0.01)
