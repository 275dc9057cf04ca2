"""The gradient of a reward, against finite differences, and under every mode a host may call it in."""

import copy
import functools
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iqguide.guidance import reward_gradient
from iqguide.guidance.augmentation import Augmentation, draw_augmentations
from iqguide.guidance.freeze import modules_of


def network(*channels: int) -> nn.Module:
    layers = [layer for a, b in pairwise(channels) for layer in (nn.Conv2d(a, b, 3), nn.Tanh())]
    return nn.Sequential(*layers).eval()


class Score(nn.Module):
    """Images -> (N,), from a small network with a buffer."""

    def __init__(self):
        super().__init__()
        self.features = network(3, 6, 2)
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, images):
        return self.gain * self.features(images).square().mean((1, 2, 3))


def mean(images):
    return images.mean((1, 2, 3))


def picture(latent):
    return torch.sigmoid(latent)


def test_it_is_the_slope_of_the_reward():
    reward, decoder = Score(), network(4, 8, 3)
    latent = torch.randn(2, 4, 9, 9)
    scores, gradient = reward_gradient(reward, decoder, latent)
    exact_reward, exact_decoder = copy.deepcopy(reward).double(), copy.deepcopy(decoder).double()
    torch.testing.assert_close(scores, reward(decoder(latent)).detach())
    for index in [(0, 0, 4, 4), (1, 3, 2, 7), (1, 2, 5, 5), (0, 1, 0, 8)]:
        step = torch.zeros_like(latent, dtype=torch.float64)
        step[index] = 1e-5
        up, down = (exact_reward(exact_decoder(latent.double() + sign * step)).sum() for sign in (1, -1))
        assert gradient[index].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-3, abs=1e-7)


def test_it_is_that_of_the_margin_where_there_is_one():
    reward = SimpleNamespace(margin=lambda images: 3 * mean(images))
    scores, gradient = reward_gradient(reward, picture, torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(scores, torch.tensor([1.5]))
    torch.testing.assert_close(gradient, torch.full((1, 3, 2, 2), 3 * 0.25 / 12))  # 3 sigmoid'(0) / 12


def test_samples_do_not_mix():
    reward, decoder = Score(), network(4, 8, 3)
    latent = torch.randn(3, 4, 9, 9)
    scores, gradient = reward_gradient(reward, decoder, latent)
    for n in range(3):
        alone_score, alone = reward_gradient(reward, decoder, latent[n : n + 1])
        torch.testing.assert_close(alone, gradient[n : n + 1])
        torch.testing.assert_close(alone_score, scores[n : n + 1])


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_chunks_change_the_memory_and_nothing_else(chunk):
    sizes = []
    reward, decoder = Score(), network(4, 8, 3)
    latent = torch.randn(3, 4, 14, 14)
    views = draw_augmentations(latent, torch.Generator().manual_seed(0), samples=2, noise=0.1, crop=12, shift=1)
    whole = reward_gradient(reward, decoder, latent, augmentations=views)
    parts = reward_gradient(
        reward, lambda z: sizes.append(len(z)) or decoder(z), latent, augmentations=views, chunk=chunk
    )
    torch.testing.assert_close(parts, whole)
    assert max(sizes) == min(chunk, 3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode):
    reward, decoder, latent = Score(), network(4, 8, 3), torch.randn(1, 4, 9, 9)
    expected = reward_gradient(reward, decoder, latent)[1]
    with mode():
        scores, gradient = reward_gradient(reward, decoder, latent.clone())
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert gradient.equal(expected)
    assert not scores.requires_grad
    assert not gradient.requires_grad


@pytest.mark.parametrize("made", ["inside", "moved inside"])
def test_weights_that_are_inference_tensors_are_replaced_by_ordinary_ones(made):
    plain_reward, plain_decoder = Score(), network(4, 8, 3)
    with torch.inference_mode():
        reward, decoder = copy.deepcopy(plain_reward), copy.deepcopy(plain_decoder)
        if made == "moved inside":
            reward, decoder = reward.double().float(), decoder.double().float()
    assert any(parameter.is_inference() for parameter in decoder.parameters())
    latent = torch.randn(1, 4, 9, 9)
    with torch.inference_mode():
        gradient = reward_gradient(reward, lambda z: decoder(z), latent)[1]
    assert gradient.equal(reward_gradient(plain_reward, plain_decoder, latent)[1])
    tensors = [*decoder.parameters(), *reward.parameters(), *reward.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)


def test_a_weight_that_two_modules_share_stays_shared():
    with torch.inference_mode():
        first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        second.weight = first.weight
    decoder = nn.Sequential(first, second)
    reward_gradient(mean, decoder, torch.randn(1, 3, 4, 4))
    assert not first.weight.is_inference()
    assert first.weight is second.weight


def test_weights_collect_no_gradient_and_keep_their_flags():
    reward, decoder = Score(), network(4, 8, 3)
    decoder[0].weight.requires_grad_(False)
    during = []
    decoder[0].register_forward_hook(lambda *_: during.append([p.requires_grad for p in decoder.parameters()]))
    before = [p.requires_grad for p in [*reward.parameters(), *decoder.parameters()]]
    reward_gradient(reward, decoder, torch.randn(1, 4, 9, 9))
    assert [p.requires_grad for p in [*reward.parameters(), *decoder.parameters()]] == before
    assert all(p.grad is None for p in [*reward.parameters(), *decoder.parameters()])
    assert not any(during[0])  # so no graph of the weights was built


def test_flags_come_back_after_an_error():
    decoder = network(4, 3)

    def broken(images):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        reward_gradient(broken, decoder, torch.randn(1, 4, 5, 5))
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_half_precision_decoders_lose_no_gradient():
    """A mean over 3 * 256 * 256 values has slopes of 5e-6, of which float16 keeps a few bits and its products none."""
    conv = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.constant_(conv.weight, 0.01)
    half = copy.deepcopy(conv).half()
    latent = torch.randn(1, 3, 256, 256)
    expected = reward_gradient(mean, conv, latent)[1]
    got = reward_gradient(mean, lambda z: half(z.half()).float(), latent)[1]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=0)


def test_misfits_say_what_was_expected():
    latent = torch.randn(2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\).*expected images \(2, 3, H, W\)"):
        reward_gradient(mean, lambda z: z, latent)
    with pytest.raises(ValueError, match=r"reward returned \(\) .*expected \(2,\)"):
        reward_gradient(torch.mean, lambda z: z[:, :3], latent)
    with pytest.raises(ValueError, match="does not depend differentiably"):
        reward_gradient(lambda images: mean(images.detach()), lambda z: z[:, :3], latent)
    constant = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend differentiably"):
        reward_gradient(lambda images: 2 * constant, lambda z: z[:, :3], latent)


def test_networks_are_found_wherever_a_callable_keeps_them():
    inner = nn.Conv2d(1, 1, 1)

    @dataclass
    class Weighted:
        parts: tuple

        def __call__(self, images):
            return self.parts[0](images)

    def closure(images):
        return inner(images)

    holders = [inner, inner.forward, functools.partial(closure, 1), closure, Weighted((inner, 1.0)), [{"a": closure}]]
    for holder in [*holders, Weighted((closure, "text")).__call__]:
        assert modules_of(holder) == [inner]
    assert modules_of(mean, None, torch) == []


def views(latent, **settings):
    defaults = {"samples": 1, "noise": 0.0, "crop": None, "shift": 0}
    return draw_augmentations(latent, torch.Generator().manual_seed(0), **defaults | settings)


def test_the_gradient_is_the_mean_over_views():
    reward, decoder, latent = Score(), network(4, 8, 3), torch.randn(2, 4, 12, 12)
    drawn = views(latent, samples=3, noise=0.3, shift=1)
    scores, gradient = reward_gradient(reward, decoder, latent, augmentations=drawn)
    each = [reward_gradient(reward, decoder, latent, augmentations=[view]) for view in drawn]
    torch.testing.assert_close(gradient, torch.stack([g for _, g in each]).mean(0))
    torch.testing.assert_close(scores, torch.stack([s for s, _ in each]).mean(0))
    assert not torch.allclose(each[0][1], each[1][1])


def test_noise_has_the_size_asked_for_and_is_the_same_for_all_samples():
    (view,) = views(torch.zeros(5, 4, 32, 32), noise=0.1)
    assert view.noise.shape == (1, 4, 32, 32)
    assert view.noise.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_cropped_view_has_a_gradient_in_its_square_only():
    latent = torch.zeros(1, 3, 8, 10)
    (view,) = views(latent, crop=4)
    top, left, size = view.window
    gradient = reward_gradient(mean, picture, latent, augmentations=[view])[1]
    expected = torch.zeros_like(latent)
    expected[..., top : top + size, left : left + size] = 0.25 / (3 * size * size)
    torch.testing.assert_close(gradient, expected)
    corners = {v.window[:2] for v in views(latent, crop=4, samples=200)}
    assert {t for t, _ in corners} == set(range(5))
    assert {left for _, left in corners} == set(range(7))


def test_a_crop_as_large_as_the_latent_is_the_whole_latent():
    assert views(torch.zeros(1, 3, 8, 8), crop=8)[0].window is None


def test_a_shifted_view_shows_the_picture_from_another_pixel_on():
    images = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert Augmentation(shift=(1, 2, 2)).of_images(images).equal(images[..., 1:5, 2:6])
    assert {v.shift for v in views(torch.zeros(1, 3, 8, 8), shift=1, samples=50)} == {
        (top, left, 1) for top in (0, 1) for left in (0, 1)
    }


def test_packed_latents_cannot_be_cropped():
    with pytest.raises(ValueError, match=r"crop=4 needs latents \(N, C, h, w\).*\(1, 16, 64\)"):
        views(torch.zeros(1, 16, 64), crop=4)


def test_frames_of_a_video_count_by_their_mean():
    """Latents (N, C, T, h, w), frames (N, F, 3, H, W): the gradient is that of the mean score of a sample's frames."""
    latent = torch.randn(2, 3, 4, 5, 6)
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5]).view(1, 4, 1, 1, 1)
    scores, gradient = reward_gradient(mean, lambda z: z.movedim(2, 1) * weights, latent)
    expected = latent.movedim(2, 1) * weights
    torch.testing.assert_close(scores, expected.mean((1, 2, 3, 4)))
    slope = (weights / 4 / (3 * 5 * 6)).movedim(1, 2).expand_as(latent)
    torch.testing.assert_close(gradient, slope)
