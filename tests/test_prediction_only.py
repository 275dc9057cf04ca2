"""Guiding a sampler of which only the evaluations are seen: one change per step, and the strength that follows."""

import math
from itertools import pairwise

import pytest
import torch

from iqguide.guidance import RewardGuidance
from iqguide.guidance.evaluation import Evaluation, join_logs, split_log
from iqguide.guidance.prediction_only import PredictionOnlyGuidance, join_run, split_run

TOTAL = math.log(1.5 / (0.05 / 0.95))  # length of the default window, 0.6 to 0.05, in log(sigma / alpha)


def mean(images):
    return images.mean((1, 2, 3))


def guided(ratios, **settings):
    settings = {"decoder": lambda latents: latents, "noise": 0.0, "max_drift": None, "scale": 0.1} | settings
    return PredictionOnlyGuidance(RewardGuidance(**{"reward": mean, "every": 1} | settings).start(), ratios)


def schedule(count):
    return [*torch.logspace(math.log10(14.6), math.log10(0.03), count, dtype=torch.float64).tolist(), 0.0]


# Solvers of dx/ds = (x - denoised) / s, written down here once more; the model says that x is clean already, so that
# every push stays and their sum can be read off the result.


def euler(model, x, ratios):
    for s, end in pairwise(ratios):
        x = x + (x - model(x, s)) / s * (end - s)
    return x


def heun(model, x, ratios):
    for s, end in pairwise(ratios):
        slope = (x - model(x, s)) / s
        ahead = x + slope * (end - s)
        if end > 0:
            slope = (slope + (ahead - model(ahead, end)) / end) / 2
        x = x + slope * (end - s)
    return x


def midpoint(model, x, ratios):
    for s, end in pairwise(ratios):
        slope = (x - model(x, s)) / s
        if end > 0:
            middle = math.sqrt(s * end)
            ahead = x + slope * (middle - s)
            slope = (ahead - model(ahead, middle)) / middle
        x = x + slope * (end - s)
    return x


def plus_plus(model, x, ratios):
    """CFG++: the noise is taken from the unguided prediction, here x itself."""
    for s, end in pairwise(ratios):
        x = model(x, s, noise_stays=True) + (x - x) / s * end
    return x


@pytest.mark.parametrize("count", [5, 12, 50])
@pytest.mark.parametrize("solver", [euler, plus_plus])
def test_the_total_push_of_first_order_steps_does_not_depend_on_their_number(solver, count):
    moved = solver(guided(schedule(count)), torch.zeros(2, 3, 4, 4), schedule(count))
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * TOTAL), rtol=1e-3, atol=0)


@pytest.mark.parametrize("count", [12, 50])
@pytest.mark.parametrize("solver", [heun, midpoint])
def test_solvers_of_second_order_come_to_it_with_more_steps(solver, count):
    """A change c held through a step moves such a solver by c log(s / s'), not by c (1 - s' / s)."""
    h = math.log(14.6 / 0.03) / (count - 1)
    moved = solver(guided(schedule(count)), torch.zeros(2, 3, 4, 4), schedule(count))
    assert 0 < moved.mean().item() / (0.1 * TOTAL) - 1 < 0.55 * math.expm1(h)


def test_a_step_has_one_gradient_and_one_change():
    ratios = [4.0, 2.0, 1.0, 0.5, 0.0]
    calls = []
    model = guided(ratios, decoder=lambda latents: calls.append(1) or latents)
    zero = torch.zeros(1, 3, 4, 4)
    changes = [model(zero, ratio) for ratio in (2.0, 1.4, 1.0, 1.0, 0.7, 1.2)]
    assert len(calls) == 2  # 2 to 1 and 1 to 0.5
    assert torch.equal(changes[0], changes[1])
    assert all(torch.equal(changes[2], change) for change in changes[3:])
    assert [entry.weight > 0 for entry in model.run.log] == [True, False, True, False, False, False]
    assert [entry.index for entry in model.run.log] == list(range(6))


def test_outside_the_window_the_same_object_comes_back():
    model = guided([30.0, 20.0, 10.0, 0.0])
    latent = torch.zeros(1, 3, 4, 4)
    assert model(latent, 30.0) is latent
    assert model(latent, 25.0) is latent
    assert [entry.skipped for entry in model.run.log] == ["outside the noise window"]


def test_a_schedule_that_stops_early_has_no_share_beyond_its_end():
    model = guided([1.0, 0.5])
    zero = torch.zeros(1, 3, 4, 4)
    first = model(zero, 1.0)
    assert torch.equal(model(zero, 0.5), first)  # the second stage of the only step
    assert sum(entry.weight for entry in model.run.log) == pytest.approx(math.log(2))


def test_pure_noise_and_evaluations_off_the_schedule_are_finite():
    model = guided([math.inf, 2.0, 0.0])
    zero = torch.zeros(1, 3, 4, 4)
    for ratio in (math.inf, 5.0, 1.7, 0.9):
        assert model(zero, ratio).isfinite().all()
    assert sum(entry.weight for entry in model.run.log) == pytest.approx(TOTAL)


def test_the_dtype_stays():
    assert guided([2.0, 1.0])(torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16), 2.0).dtype == torch.bfloat16


def test_a_batch_of_another_size_starts_a_new_change():
    model = guided([2.0, 1.0, 0.5, 0.0])
    assert model(torch.zeros(2, 3, 4, 4), 2.0).shape == (2, 3, 4, 4)
    assert model(torch.zeros(1, 3, 4, 4), 1.5).shape == (1, 3, 4, 4)


def energy(images):
    return -images.square().mean((1, 2, 3))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_run_goes_on_elsewhere_with_some_of_its_samples(frames):
    """Left after any evaluation, split, joined in another order: the same as if it had never been left."""
    ratios = [4.0, 2.0, 1.0, 0.5, 0.25, 0.1]
    levels = [4.0, 2.0, 2.0, 1.4, 1.0, 0.5, 0.5, 0.25]
    settings = {"reward": energy, "every": 2, "noise": 0.05, "max_drift": 0.2}
    predictions = torch.randn(len(levels), 3 * frames, 3, 4, 4)
    lanes = [2 * frames + frame for frame in range(frames)] + list(range(frames))  # the third sample, then the first

    whole = guided(ratios, **settings)
    expected = [whole(x, level) for x, level in zip(predictions, levels, strict=True)]
    for stop in range(1, len(levels)):
        first, second = guided(ratios, **settings), guided(ratios, **settings)
        for x, level in zip(predictions[:stop], levels, strict=False):
            first(x, level)
        parts = split_run(first.state_dict(), 3)
        second.load_state_dict(join_run([parts[2], parts[0]]), torch.device("cpu"))
        for x, level, result in zip(predictions[stop:], levels[stop:], expected[stop:], strict=True):
            assert torch.equal(second(x[lanes], level), result[lanes])
        for entry, other in zip(second.run.log, whole.run.log, strict=True):
            assert (entry.index, entry.noise_level, entry.skipped) == (other.index, other.noise_level, other.skipped)
            assert entry.drift == tuple(other.drift[lane] for lane in lanes if other.drift)


def test_bad_samples_keep_their_places_in_a_split_log():
    entry = Evaluation(0, 0.5, 0.4, bad_samples=(1, 4), change=(0.0,) * 6, drift=(0.0,) * 6)
    parts = split_log([entry], 3)
    assert [part[0].bad_samples for part in parts] == [(1,), (), (0,)]
    assert join_logs([parts[2], parts[1], parts[0]])[0].bad_samples == (0, 5)
