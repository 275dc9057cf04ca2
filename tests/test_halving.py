"""Best of N with halving, on real pipelines: the same pictures for fewer evaluations."""

import functools
import math

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from tiny_pipelines import FAMILIES, poison, tiny_pipeline

from iqguide import RewardGuidance, best_of_n
from iqguide.guidance.diffusers import guided

STEPS = 10


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pipeline(family="stable-diffusion"):
    pipe, inputs = tiny_pipeline(family)
    return pipe, inputs | {"num_inference_steps": STEPS}


@pytest.mark.parametrize("family", FAMILIES)
def test_survivors_are_the_pictures_of_their_seeds(family):
    pipe, inputs = pipeline(family)
    rows = 1 if family == "flux" else 2  # classifier-free guidance
    ranking = best_of_n(pipe, brightness, n=5, seeds=[9, 3, 8, 1, 4], batch_size=2, halving=(0.4, 0.7), **inputs)
    assert ranking.nfe == rows * (5 * 4 + 3 * 3 + 2 * 3)
    assert [entry.share for entry in ranking.dropped] == [0.4, 0.4, 0.7]
    assert sorted([*ranking.seeds, *(entry.seed for entry in ranking.dropped)]) == [1, 3, 4, 8, 9]
    for index, seed in enumerate(ranking.seeds):
        whole = best_of_n(pipe, brightness, n=1, seeds=[seed], **ranking.settings)
        torch.testing.assert_close(ranking.images[index], whole.images[0], rtol=0, atol=1e-3)
        assert torch.equal(ranking.latents[index], whole.latents[0])


def test_one_by_one_survivors_are_bit_identical_to_whole_runs():
    pipe, inputs = pipeline()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with guided(pipe, RewardGuidance(brightness, scale=0.5)):
        halved = best_of_n(pipe, brightness, n=4, halving=(0.5,), **inputs)
        whole = best_of_n(pipe, brightness, n=4, **inputs)
        assert torch.equal(halved.images, whole.images[list(halved.seeds)])
    plain = best_of_n(pipe, brightness, n=4, **inputs)
    assert (plain.images - whole.images).abs().max() > 1e-3
    assert whole.nfe == plain.nfe == 4 * 2 * STEPS
    assert halved.nfe == (4 * 5 + 2 * 5) * 2


def test_those_with_the_worst_predictions_go():
    """Late predictions are nearly the pictures, so their order is known."""
    pipe, inputs = pipeline()
    whole = best_of_n(pipe, brightness, n=6, **inputs)
    halved = best_of_n(pipe, brightness, n=6, halving=(0.9,), **inputs)
    assert halved.seeds == tuple(sorted(whole.order[:3].tolist()))
    assert torch.equal(halved.best, whole.best)
    for entry in halved.dropped:
        assert entry.score == pytest.approx(whole.scores[entry.seed].item(), abs=0.02)


@pytest.mark.parametrize(
    ("n", "top_k", "halving", "seeds"), [(4, 3, (0.2, 0.5, 0.8), 3), (3, 5, True, 3), (1, None, True, 1)]
)
def test_never_fewer_than_asked_for(n, top_k, halving, seeds):
    pipe, inputs = pipeline()
    assert len(best_of_n(pipe, brightness, n=n, top_k=top_k, halving=halving, **inputs)) == seeds


def test_batches_never_exceed_batch_size(monkeypatch):
    pipe, inputs = pipeline("flux")
    sizes, original = [], type(pipe).prepare_latents

    @functools.wraps(original)
    def prepare(self, batch_size, *args, **kwargs):
        sizes.append(batch_size)
        return original(self, batch_size, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "prepare_latents", prepare)
    best_of_n(pipe, brightness, n=7, batch_size=3, halving=True, **inputs)
    assert sizes == [3, 3, 1, 3, 1, 2]
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"halving": (0.7, 0.4)}, "shares of the steps that rise"),
        ({"halving": (0.4, 1.0)}, "each between 0 and 1"),
        ({"halving": 1.5}, r"halving is \(1.5,\); expected shares"),
        ({"halving": True, "callback_on_step_end": print}, "got callback_on_step_end= and halving"),
    ],
)
def test_bad_arguments(changes, message):
    pipe, inputs = pipeline()
    with pytest.raises(ValueError, match=message):
        best_of_n(pipe, brightness, n=4, **changes, **inputs)


@pytest.mark.parametrize("steps", [1, 2])
def test_shares_that_fall_on_one_step_drop_there(steps):
    pipe, inputs = pipeline()
    inputs |= {"num_inference_steps": steps}
    whole = best_of_n(pipe, brightness, n=4, **inputs)
    halved = best_of_n(pipe, brightness, n=4, halving=(0.3, 0.4), **inputs)
    assert [entry.share for entry in halved.dropped] == [0.3, 0.3, 0.4]
    assert torch.equal(halved.best, whole.images[halved.seeds[0]])
    assert halved.nfe <= whole.nfe


def test_one_number_is_one_share():
    pipe, inputs = pipeline()
    one, share = (best_of_n(pipe, brightness, n=4, halving=halving, **inputs) for halving in (0.5, (0.5,)))
    assert one.dropped == share.dropped
    assert len(one.dropped) == 2
    assert torch.equal(one.images, share.images)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_candidate_that_turns_nan_is_dropped_and_the_others_go_on(batch_size, caplog):
    """The denoiser of seed 1 answers NaN; then one of three that are left goes at each checkpoint."""
    pipe, inputs = pipeline()
    options = {"n": 4, "halving": (0.4, 0.7), "batch_size": batch_size, **inputs}
    poison(pipe, 1)
    ranking = best_of_n(pipe, brightness, **options)
    first, *others = sorted(ranking.dropped, key=lambda entry: entry.failure is None)
    assert (first.seed, first.share) == (1, 0.4)
    assert math.isnan(first.score)
    assert "NaN" in first.failure
    assert ranking.failed == (first,)
    assert [entry.share for entry in others] == [0.4, 0.7]
    assert len(ranking) == 1
    assert "seeds [1]" in caplog.text
    plain = best_of_n(tiny_pipeline("stable-diffusion")[0], brightness, n=1, seeds=ranking.seeds, **inputs)
    torch.testing.assert_close(ranking.best, plain.best, atol=1e-4, rtol=0)


def test_without_a_candidate_the_search_says_why():
    pipe, inputs = pipeline()
    poison(pipe, 0, 1)
    with pytest.raises(ValueError, match=r"no candidate .*NaN.*\(2 of them\)"):
        best_of_n(pipe, brightness, n=2, halving=True, **inputs)


def test_a_broken_reward_leaves_the_pipeline_as_found():
    pipe, inputs = pipeline()
    with pytest.raises(ValueError, match=r"score is not a finite number \(4 of them\); check the reward"):
        best_of_n(pipe, lambda i: brightness(i) * torch.nan, n=4, batch_size=2, halving=True, **inputs)
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.unet)
    assert not pipe.unet._forward_pre_hooks
