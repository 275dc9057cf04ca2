"""The host-free core: strength, window, smoothing, tether, what it leaves alone, and its log."""

import dataclasses
import logging
import math
from itertools import pairwise

import pytest
import torch

from iqguide.guidance import RewardGuidance
from iqguide.guidance.direction import unit_rms
from iqguide.guidance.noise_level import Stage, noise_level_of, ratio_of, window_share

WINDOW = (0.75, 0.15)
TOTAL = math.log(3 / (0.15 / 0.85))  # log of sigma / alpha at both ends


def mean(images):
    return images.mean((1, 2, 3))


def as_is(latents):
    return latents


def guidance(reward=mean, **settings):
    return RewardGuidance(
        reward,
        **{"decoder": as_is, "noise_window": WINDOW, "every": 1, "noise": 0.0, "max_drift": None, "scale": 0.1}
        | settings,
    )


def stages(count, top=20.0):
    """A schedule with the given number of steps, even in log sigma, that ends at 0."""
    levels = [*torch.logspace(math.log10(top), -2, count, dtype=torch.float64).tolist(), 0.0]
    return [Stage(a, a, b) for a, b in pairwise(levels)]


def pushes(run, denoised, schedule):
    return [None if run.skips(stage) else run.push(denoised, stage) for stage in schedule]


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0, 14.6, 4096.0, math.inf])
def test_noise_level_and_ratio_are_inverse(ratio):
    assert ratio_of(noise_level_of(ratio)) == pytest.approx(ratio)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_shares_add_up_to_the_window(count):
    assert sum(stage.share_of(WINDOW) for stage in stages(count)) == pytest.approx(TOTAL)


def test_a_share_is_the_part_inside():
    assert window_share(math.inf, 1.0, WINDOW) == pytest.approx(math.log(3))
    assert window_share(1.0, 0.5, WINDOW) == pytest.approx(math.log(2))
    assert window_share(0.3, 0.0, WINDOW) == pytest.approx(math.log(0.3 / (0.15 / 0.85)))
    assert window_share(20.0, 3.0, WINDOW) == window_share(0.17, 0.0, WINDOW) == 0
    assert window_share(1.0, 1.0 - 2**-22, WINDOW) == 0  # four roundings of float32
    assert window_share(1.0, 1.0 - 2**-15, WINDOW) == pytest.approx(2**-15, rel=1e-3)


@pytest.mark.parametrize("count", [3, 10, 40])
def test_the_pushes_of_a_run_add_up_to_scale_times_the_window(count):
    found = [p for p in pushes(guidance().start(), torch.randn(2, 3, 4, 4), stages(count)) if p is not None]
    torch.testing.assert_close(sum(found), torch.full((2, 3, 4, 4), 0.1 * TOTAL))


def test_a_first_order_step_after_the_changed_prediction_moves_by_the_push():
    denoised, latent = torch.randn(2, 1, 3, 4, 4)  # in x / alpha
    s, end = 1.2, 0.7
    changed = guidance().start()(denoised, noise_level=noise_level_of(s), next_noise_level=noise_level_of(end))
    step = [d + (end / s) * (latent - d) for d in (denoised, changed)]
    torch.testing.assert_close(step[1] - step[0], torch.full_like(latent, 0.1 * math.log(s / end)))


def test_it_is_finite_from_pure_noise_to_the_clean_latent():
    changed = guidance().start()(torch.zeros(1, 3, 4, 4), noise_level=1.0, next_noise_level=0.0)
    torch.testing.assert_close(changed, torch.full((1, 3, 4, 4), 0.1 * TOTAL))


def test_nothing_to_do_returns_the_same_object():
    denoised = torch.randn(1, 3, 4, 4, dtype=torch.float16)
    off = RewardGuidance(mean, scale=0.0).start()
    assert off(denoised, noise_level=0.5, next_noise_level=0.4) is denoised
    outside = guidance().start()
    assert outside(denoised, noise_level=0.95, next_noise_level=0.75) is denoised
    assert outside(denoised, noise_level=0.15, next_noise_level=0.0) is denoised
    assert [entry.skipped for entry in outside.log] == ["outside the noise window"] * 2
    assert off.log[0].skipped == "the scale is 0"
    assert not outside.fired


def test_a_run_needs_a_decoder():
    with pytest.raises(ValueError, match="no decoder"):
        RewardGuidance(mean).start()
    assert RewardGuidance(mean).start(as_is).decoder is as_is


def test_each_sample_gets_a_direction_of_the_same_size():
    weights = torch.randn(2, 3, 4, 4)
    reward = lambda images: (images * weights * torch.tensor([1e-12, 1e6]).view(2, 1, 1, 1)).sum((1, 2, 3))
    push = guidance(reward, clip=100.0).start().push(torch.zeros(2, 3, 4, 4), Stage(1.0, 1.0, 0.5))
    size = weights.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(push, 0.1 * math.log(2) * weights / size)


def test_unit_rms_survives_tiny_values_and_zero():
    tensor = torch.stack([torch.full((3, 2, 2), 1e-30), torch.zeros(3, 2, 2)])
    assert unit_rms(tensor).equal(torch.stack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)]))


def test_single_elements_are_clipped():
    weights = torch.ones(1, 3, 8, 8)
    weights[0, 0, 0, 0] = 1e4
    reward = lambda images: (images * weights).sum((1, 2, 3))
    push = guidance(reward, clip=2.0).start().push(torch.zeros(1, 3, 8, 8), Stage(1.0, 1.0, 0.5))
    assert push.max().item() == pytest.approx(2 * 0.1 * math.log(2))


def test_the_average_has_its_half_life_in_log_sigma():
    turn = {}

    def reward(images):  # first gradient along channel 0, the second along channel 1
        turn["n"] = turn.get("n", -1) + 1
        return images[:, turn["n"]].sum((1, 2))

    run = guidance(reward, ema=0.5).start()
    run.push(torch.zeros(1, 3, 4, 4), Stage(2.0, 2.0, 1.0))
    second = run.push(torch.zeros(1, 3, 4, 4), Stage(1.0, 1.0, 0.5))
    keep = 0.5 ** (math.log(2) / 0.5)  # what the steps from 2 to 1 leave of the first one
    torch.testing.assert_close(second[0, 0] / second[0, 1], torch.full((4, 4), keep / (1 - keep)))


def test_without_average_only_the_last_gradient_counts():
    turn = iter(range(3))
    reward = lambda images: images[:, next(turn)].sum((1, 2))
    run = guidance(reward, ema=0.0).start()
    run.push(torch.zeros(1, 3, 4, 4), Stage(2.0, 2.0, 1.0))
    second = run.push(torch.zeros(1, 3, 4, 4), Stage(1.0, 1.0, 0.5))
    assert second[0, 0].abs().max() == 0
    assert second[0, 1].min() > 0


def test_every_kth_evaluation_takes_a_gradient_and_all_of_them_push():
    calls = []
    run = guidance(lambda images: calls.append(1) or mean(images), every=3).start()
    found = [p for p in pushes(run, torch.zeros(1, 3, 4, 4), stages(20)) if p is not None]
    assert len(calls) == math.ceil(len(found) / 3)
    torch.testing.assert_close(sum(found), torch.full((1, 3, 4, 4), 0.1 * TOTAL))
    assert [entry.score_after is not None for entry in run.log if entry.skipped is None][:4] == [
        True,
        False,
        False,
        True,
    ]


def test_the_push_fades_as_the_score_comes_near_its_target():
    scores = torch.tensor([-2.0, 0.5, 0.75, 1.0, 3.0])
    denoised = scores.view(5, 1, 1, 1).expand(5, 3, 4, 4)
    push = guidance(target=1.0, target_width=0.5).start().push(denoised, Stage(1.0, 1.0, 0.5))
    full = 0.1 * math.log(2)
    torch.testing.assert_close(push.mean((1, 2, 3)), full * torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))


def test_the_pushes_together_stay_in_the_trust_region():
    run = guidance(max_drift=0.2, scale=1.0).start()
    found = [p for p in pushes(run, torch.zeros(1, 3, 4, 4), stages(20)) if p is not None]
    torch.testing.assert_close(sum(found), torch.full((1, 3, 4, 4), 0.2))
    assert max(entry.drift[0] for entry in run.log if entry.drift) == pytest.approx(0.2)


def test_a_sample_without_finite_gradient_is_left_alone(caplog):
    run = guidance(lambda images: mean(images) * torch.tensor([1.0, float("nan"), 1.0])).start()
    with caplog.at_level(logging.WARNING):
        found = pushes(run, torch.zeros(3, 3, 4, 4), [Stage(2.0, 2.0, 1.0), Stage(1.0, 1.0, 0.5)])
    assert [p[1].abs().max().item() for p in found] == [0, 0]
    torch.testing.assert_close(found[1][0], torch.full((3, 4, 4), 0.1 * math.log(2)))
    assert [entry.bad_samples for entry in run.log] == [(1,), (1,)]
    assert len([record for record in caplog.records if "not finite" in record.message]) == 1


def test_a_sample_recovers_after_a_gradient_that_was_not_finite():
    factors = iter([float("inf"), 1.0])
    run = guidance(lambda images: mean(images) * next(factors)).start()
    bad, good = pushes(run, torch.zeros(1, 3, 4, 4), [Stage(2.0, 2.0, 1.0), Stage(1.0, 1.0, 0.5)])
    assert bad is None
    assert "not finite" in run.log[0].skipped
    torch.testing.assert_close(good, torch.full((1, 3, 4, 4), 0.1 * math.log(2)))


def test_a_flat_reward_pushes_nothing_and_says_so():
    run = guidance(lambda images: mean(images) * 0).start()
    assert run.push(torch.zeros(1, 3, 4, 4), Stage(1.0, 1.0, 0.5)) is None
    assert run.log[0].skipped == "the push is 0"


def test_a_sample_is_pushed_alike_alone_and_in_a_batch():
    reward = lambda images: images.sigmoid().square().mean((1, 2, 3))
    settings = guidance(reward, noise=0.5, samples=2, shift=1, crop=4)
    denoised = torch.randn(3, 3, 6, 6)
    whole, alone = settings.start(), settings.start()
    for stage in stages(6):
        if not whole.skips(stage) and not alone.skips(stage):
            torch.testing.assert_close(whole.push(denoised, stage)[1:2], alone.push(denoised[1:2], stage))


def test_views_come_from_the_seed_and_nowhere_else():
    reward = lambda images: images.sigmoid().square().mean((1, 2, 3))
    denoised, stage = torch.randn(1, 3, 6, 6), Stage(1.0, 1.0, 0.5)
    state = torch.random.get_rng_state()
    first, again, other = (guidance(reward, noise=0.5, seed=seed).start().push(denoised, stage) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.random.get_rng_state().equal(state)


def test_the_log_tells_what_was_done():
    run = guidance().start()
    pushes(run, torch.full((2, 3, 4, 4), 0.3), [Stage(9.0, 9.0, 4.0), Stage(1.0, 1.0, 0.5)])
    outside, inside = run.log
    assert (outside.index, outside.skipped, outside.score_before) == (0, "outside the noise window", None)
    assert (inside.index, inside.skipped) == (1, None)
    assert (inside.noise_level, inside.next_noise_level) == pytest.approx((1 / 2, 1 / 3))
    assert inside.weight == pytest.approx(math.log(2))
    assert inside.score_before == pytest.approx((0.3, 0.3))
    assert inside.score_after == pytest.approx((0.3 + 0.1 * math.log(2),) * 2)  # exact for a linear reward
    assert inside.change == inside.drift == pytest.approx((0.1 * math.log(2),) * 2)
    assert run.fired
    with pytest.raises(dataclasses.FrozenInstanceError):
        inside.weight = 0


def test_it_guides_inside_inference_mode():
    layer = torch.nn.Conv2d(3, 3, 1)
    settings = guidance(decoder=layer, noise=0.1)
    expected = [p for p in pushes(settings.start(), torch.ones(1, 3, 4, 4), stages(6)) if p is not None]
    with torch.inference_mode():
        found = [p for p in pushes(settings.start(), torch.ones(1, 3, 4, 4), stages(6)) if p is not None]
    for one, other in zip(found, expected, strict=True):
        assert one.equal(other)


def test_latents_that_change_size_start_afresh():
    run = guidance().start()
    assert run.push(torch.zeros(1, 3, 4, 4), Stage(2.0, 2.0, 1.0)).shape == (1, 3, 4, 4)
    assert run.push(torch.zeros(1, 3, 8, 8), Stage(1.0, 1.0, 0.5)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_window": (0.15, 0.75)}, r"noise_window is \(0.15, 0.75\); expected \(start, stop\)"),
        ({"noise_window": (0.75, 0.0)}, "noise_window"),
        ({"noise_window": (1.0, 0.15)}, "At 1 all is noise"),  # its length in log(sigma / alpha) is infinite
        ({"noise_window": "0.6"}, r"noise_window is '0.6'; expected \(start, stop\)"),
        ({"noise_window": (0.6, 0.3, 0.05)}, r"noise_window is \(0.6, 0.3, 0.05\); expected \(start, stop\)"),
        ({"noise_window": 0.6}, r"noise_window is 0.6; expected \(start, stop\)"),
        ({"noise_window": ("0.6", "0.05")}, r"noise_window is \('0.6', '0.05'\); expected \(start, stop\)"),
        ({"target": float("nan")}, "target is nan; expected a finite number, or None"),
        ({"scale": float("nan")}, "scale is nan; expected a finite number"),
        ({"every": 0}, "every is 0; expected a whole number of 1 or more"),
        ({"samples": 0}, "samples is 0"),
        ({"crop": 0}, "crop is 0; expected a whole number of 1 or more"),
        ({"clip": 0.0}, "clip is 0.0; expected a number above 0"),
        ({"max_drift": -0.5}, "max_drift is -0.5; expected a number above 0"),  # it would turn the push around
        ({"ema": -1.0}, "ema is -1.0; expected a number of 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardGuidance(mean, **settings)


STRANGE = [None, "x", "1", b"1", True, [], (), {}, {1}, object(), 1j, math.nan, math.inf, -math.inf, 1e308, -1, 0, 0.5]
STRANGE += [2**70, torch.ones(1), torch.ones(2), lambda: 1, int, (0.6,), (0.6, "x"), ("a", "b"), (0.6, None), (2, 1)]
FIELDS = [field.name for field in dataclasses.fields(RewardGuidance) if field.name != "reward"]


@pytest.mark.parametrize("name", FIELDS)
def test_any_value_is_taken_or_refused_in_one_sentence(name):
    """What is taken leaves a finite push, or a sentence that names the setting."""
    for value in STRANGE:
        message = None
        try:
            settings = guidance(**{name: value})
        except (TypeError, ValueError) as error:
            message = str(error)
        if message is not None:
            assert message.startswith(f"{name} is "), message
        elif name != "decoder" and settings.scale != 0:
            push = settings.start().push(torch.zeros(1, 3, 4, 4), Stage(1.0, 1.0, 0.5), lambda gradient: gradient)
            assert push is None or push.isfinite().all(), (name, value)


@pytest.mark.parametrize("target", [None, 1.0])
def test_a_score_that_is_nan_is_skipped_and_logged(target):
    reward = lambda images: mean(images) + torch.tensor([0.0, math.nan])
    run = guidance(reward, target=target).start()
    push = run.push(torch.zeros(2, 3, 4, 4), Stage(1.0, 1.0, 0.5))
    assert push[0].abs().min() > 0
    assert push[1].eq(0).all()
    assert run.log[0].bad_samples == (1,)


@pytest.mark.parametrize("reward", ["tiny", None])
def test_a_reward_that_cannot_be_called_is_refused(reward):
    with pytest.raises(TypeError, match=rf"reward is {reward!r}; expected a function or a model"):
        RewardGuidance(reward)


def test_a_window_may_be_a_list():
    assert RewardGuidance(mean, noise_window=[0.6, 0.05]).noise_window == [0.6, 0.05]
