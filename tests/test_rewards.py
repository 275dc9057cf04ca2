"""Combining rewards: sums are linear, crops and resizing keep the gradient, and a picture keeps its score."""

import math

import pytest
import torch

from iqguide.images import resize_short_side
from iqguide.rewards import (
    Ensemble,
    FullReference,
    Resize,
    Reward,
    WeightedSum,
    device_of,
    margin_of,
)


class Bounded:
    """A reward with a margin: score = sigmoid(3 * margin)."""

    def __call__(self, images):
        return torch.sigmoid(3 * self.margin(images))

    def margin(self, images):
        return (images - 0.5).pow(3).sum((1, 2, 3)) + images[:, 0].mean((1, 2))


def mean(images):
    return images.mean((1, 2, 3))


@pytest.fixture
def images():
    return torch.rand(3, 3, 20, 28, dtype=torch.float64)


def psnr(images, references):
    return -10 * torch.log10((images - references).pow(2).mean((1, 2, 3)))


def test_weighted_sum_is_linear_in_scores_and_margins(images):
    total = WeightedSum((Bounded(), 2.0), (mean, -0.5))
    torch.testing.assert_close(total(images), 2 * Bounded()(images) - 0.5 * mean(images))
    torch.testing.assert_close(total.margin(images), 2 * Bounded().margin(images) - 0.5 * mean(images))
    assert not torch.allclose(total(images), total.margin(images))


def test_weighted_sums_nest(images):
    inner = WeightedSum((Bounded(), 1.0), (mean, 1.0))
    outer = WeightedSum((inner, 3.0))
    torch.testing.assert_close(outer.margin(images), 3 * Bounded().margin(images) + 3 * mean(images))


@pytest.mark.parametrize("terms", [(), (mean,), ((mean, 1.0, 2.0),), (("tiny", 1.0),)])
def test_weighted_sum_wants_pairs(terms):
    with pytest.raises(ValueError, match=r"expected pairs: WeightedSum\(\(reward, 1.0\)"):
        WeightedSum(*terms)


@pytest.mark.parametrize("weights", [(math.nan,), (1.0, math.inf), (0.0,), (0, 0.0)])
def test_weighted_sum_wants_weights_that_count(weights):
    with pytest.raises(ValueError, match=r"got the weights \[.*\]; expected finite numbers"):
        WeightedSum(*((mean, weight) for weight in weights))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda reward: WeightedSum((reward, 2.0), (mean, -0.5)),
        lambda reward: Resize(reward, 12),
        lambda reward: Resize(reward, 33),
        lambda reward: WeightedSum((Resize(reward, 12), 0.3)),
    ],
)
@pytest.mark.parametrize("side", ["score", "margin"])
def test_gradient_agrees_with_finite_differences(wrap, side):
    # Values away from 0 and 1, where resizing clamps.
    images = torch.rand(2, 3, 20, 22, dtype=torch.float64) * 0.4 + 0.3
    reward = wrap(Bounded())
    function = reward if side == "score" else margin_of(reward)
    direction = torch.randn_like(images)
    step = 1e-5
    numeric = (function(images + step * direction) - function(images - step * direction)) / (2 * step)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    analytic = (gradient * direction).sum((1, 2, 3))
    assert analytic.abs().min() > 1e-4
    torch.testing.assert_close(numeric, analytic, rtol=1e-6, atol=1e-8)


def test_resize_shows_the_short_side(images):
    seen = []
    Resize(lambda x: seen.append(tuple(x.shape)) or mean(x), 10)(images)
    Resize(lambda x: seen.append(tuple(x.shape)) or mean(x), 40, enlarge=False)(images)
    assert seen == [(3, 3, 10, 14), (3, 3, 20, 28)]
    torch.testing.assert_close(Resize(Bounded(), 10).margin(images), Bounded().margin(resize_short_side(images, 10)))


def test_full_reference_compares_with_one_or_each(images):
    reference = torch.rand(1, 3, 20, 28)
    one = FullReference(psnr, reference)
    torch.testing.assert_close(one(images), psnr(images, reference.double()))
    torch.testing.assert_close(one.margin(images), one(images))
    each = FullReference(psnr, images + 0.1)
    torch.testing.assert_close(each(images), torch.full((3,), 20.0, dtype=torch.float64))


def test_full_reference_uses_the_models_margin(images):
    class Model:
        def __call__(self, images, references):
            return torch.sigmoid(psnr(images, references))

        def margin(self, images, references):
            return psnr(images, references)

    reward = FullReference(Model(), torch.rand(1, 3, 20, 28))
    torch.testing.assert_close(reward(images), torch.sigmoid(reward.margin(images)))


def test_full_reference_says_what_does_not_fit(images):
    with pytest.raises(ValueError, match=r"reference\[None\]"):
        FullReference(psnr, torch.rand(3, 20, 28))
    for reference in (torch.rand(1, 3, 20, 20), torch.rand(2, 3, 20, 28)):
        with pytest.raises(ValueError, match="equal sizes and one reference, or one per image"):
            FullReference(psnr, reference)(images)


def test_everything_here_is_a_reward():
    for reward in (
        mean,
        Bounded(),
        WeightedSum((mean, 1)),
        Resize(mean, 8),
        FullReference(psnr, torch.ones(1, 3, 8, 8)),
    ):
        assert isinstance(reward, Reward)
    assert margin_of(mean) is mean


def test_the_device_of_a_reward_is_found_through_its_wrappers():
    there = torch.nn.Linear(2, 2, device="meta")
    for reward in (
        there,
        there.forward,
        Resize(there, 8),
        FullReference(there, torch.ones(1, 3, 8, 8)),
    ):
        assert device_of(WeightedSum((mean, 1.0), (reward, 1.0))) == torch.device("meta")
    assert device_of(WeightedSum((mean, 1.0))) is None
    assert device_of(Bounded().margin) is None
    assert device_of(torch.nn.ReLU()) is None


def test_an_ensemble_is_the_mean_less_deviations(images):
    rewards = [Bounded(), mean, lambda x: 3 * mean(x)]
    margins = torch.stack([Bounded().margin(images), mean(images), 3 * mean(images)])
    expected = margins.mean(0) - 0.7 * margins.std(0, correction=0)
    torch.testing.assert_close(Ensemble(rewards, penalty=0.7).margin(images), expected)
    torch.testing.assert_close(Ensemble(rewards, penalty=0).margin(images), margins.mean(0))
    scores = torch.stack([Bounded()(images), mean(images), 3 * mean(images)])
    torch.testing.assert_close(Ensemble(rewards, 1)(images), scores.mean(0) - scores.std(0, correction=0))


def test_of_two_models_the_lower_one_counts(images):
    lower = torch.minimum(Bounded().margin(images), mean(images))
    torch.testing.assert_close(Ensemble([Bounded(), mean]).margin(images), lower)


def test_an_ensemble_has_the_right_gradient(images):
    careful = Ensemble([Bounded(), mean, lambda x: x.square().mean((1, 2, 3))], penalty=1.5)
    assert torch.autograd.gradcheck(careful.margin, images[:1, :, :4, :4].clone().requires_grad_())


def test_where_all_agree_the_gradient_is_that_of_each(images):
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(Ensemble([mean, mean])(images).sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(images, 1 / images[0].numel()))


@pytest.mark.parametrize(
    ("models", "penalty", "match"),
    [([mean], 1, "expected two rewards"), ([mean, "tiny"], 1, "expected two rewards"), ([mean, mean], -1, "-1"),
     ([mean, mean], math.inf, "inf")],
)  # fmt: skip
def test_an_ensemble_wants_rewards_and_a_penalty(models, penalty, match):
    with pytest.raises(ValueError, match=match):
        Ensemble(models, penalty)
