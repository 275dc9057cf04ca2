"""The damage of generated pictures: closed forms, other implementations, and what every ladder promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from iqguide.training import autoencoders
from iqguide.training import generated_distortions as damage
from iqguide.training.crops import read, to_tensor
from iqguide.training.data import clean_photographs
from iqguide.training.distortions import luma

LADDERS = damage.LADDERS


def picture(side: int = 48, seed: int = 0) -> torch.Tensor:
    """Smooth structures with some fine texture, (1, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth + 0.05 * torch.randn(1, 3, side, side, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("name", LADDERS)
def test_a_batch_gives_what_one_picture_at_a_time_gives(name):
    function, strengths = LADDERS[name]
    images = torch.cat([picture(seed=1), picture(seed=2)])
    strength = torch.tensor([strengths[3], strengths[1]])
    found = function(images, strength, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= found.min()
    assert found.max() <= 1 + 1e-6
    alone = function(images[:1], strength[:1], torch.Generator().manual_seed(0))
    if name not in ("gain_pattern", "blotches", "melt", "seams", "watermark"):  # whose draws depend on the batch
        torch.testing.assert_close(found[:1], alone)


@pytest.mark.parametrize("name", sorted(LADDERS.keys() - {"median"}))
def test_every_level_is_further_from_the_clean_picture_than_the_one_before(name):
    function, strengths = LADDERS[name]
    clean = picture(64)
    errors = [
        (function(clean, torch.tensor([value]), torch.Generator().manual_seed(3)) - clean).square().mean().item()
        for value in strengths
    ]
    assert errors[0] > 0
    assert errors == sorted(errors)


def test_lanczos_is_pillows_away_from_the_edges():
    small = picture(24)
    rows = damage.lanczos_matrix(24, 60)
    ours = (rows @ small @ rows.T)[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(small[0, 0].numpy()).resize((60, 60), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(ours[10:-10, 10:-10], theirs[10:-10, 10:-10], atol=2e-6)


def test_median_is_scipys():
    image = picture(32)
    theirs = np.stack([ndimage.median_filter(plane, 3, mode="nearest") for plane in image[0].numpy()])
    np.testing.assert_array_equal(damage.median(image, torch.tensor([1.0]))[0].numpy(), theirs)


def test_every_level_of_the_median_leaves_less_variation():
    clean = picture(64)
    left = [damage.median(clean, torch.tensor([value])).diff().abs().mean().item() for value in LADDERS["median"][1]]
    assert left == sorted(left, reverse=True)
    assert left[0] < clean.diff().abs().mean()


def test_between_whole_times_the_median_is_a_mixture():
    image = picture(32)
    once, twice = (damage.median(image, torch.tensor([times])) for times in (1.0, 2.0))
    torch.testing.assert_close(damage.median(image, torch.tensor([1.25])), torch.lerp(once, twice, 0.25))


def test_bilateral_with_endless_tolerance_is_a_gaussian_blur():
    image = picture(32)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets**2) / (2 * 2.0**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    plane = image[0, 0].double().numpy()
    for _ in range(2):
        plane = ndimage.convolve(plane, kernel, mode="nearest")
    found = damage.bilateral(image, torch.tensor([1e4]))[0, 0].numpy()
    np.testing.assert_allclose(found, plane, atol=1e-5)


def test_bilateral_and_non_local_means_keep_a_step_and_remove_noise():
    step = torch.cat([torch.full((1, 3, 40, 20), 0.2), torch.full((1, 3, 40, 20), 0.8)], 3)
    noisy = step + 0.02 * torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    for found in (damage.bilateral(noisy, torch.tensor([0.1])), damage.non_local_means(noisy, torch.tensor([0.1]))):
        assert (found - step).square().mean() < 0.3 * (noisy - step).square().mean()
        assert (found[..., 21:23].mean() - found[..., 17:19].mean()) > 0.55


def test_kuwahara_takes_the_mean_of_the_evenest_square():
    image = picture(24)
    found = damage.kuwahara(image, torch.tensor([1.0]))[0].numpy()
    y, x = 11, 9
    squares = [image[0, :, a : a + 5, b : b + 5] for a in (y - 4, y) for b in (x - 4, x)]
    spreads = [luma(square[None]).var(correction=0).item() for square in squares]
    np.testing.assert_allclose(found[:, y, x], squares[int(np.argmin(spreads))].mean((1, 2)).numpy(), atol=1e-6)


def test_a_gain_pattern_repeats_in_its_cell():
    flat = torch.full((1, 3, 64, 64), 0.5)
    found = damage.gain_pattern(flat, torch.tensor([0.05]), torch.Generator().manual_seed(1))
    torch.testing.assert_close(found[..., 8:16, 8:16], found[..., 40:48, 24:32])
    assert found.std() > 0.01


def test_burning_clips_both_ends():
    found = damage.burn(picture(), torch.tensor([2.0]))
    assert ((found == 0) | (found == 1)).float().mean() > 0.3


def networks(tmp_path) -> autoencoders.Taef2:
    torch.manual_seed(0)
    for part in ("encoder", "decoder"):
        network = getattr(autoencoders, f"_{part}")()
        torch.save(network.state_dict(), tmp_path / f"taef2_{part}.pth")
    return autoencoders.read_taef2(tmp_path)


def test_latents_are_an_eighth_of_the_size(tmp_path):
    network = networks(tmp_path)
    latents = network.encode(picture(32))
    assert latents.shape == (1, 32, 4, 4)
    assert network.decode(latents).shape == (1, 3, 32, 32)


def test_missing_files_of_an_autoencoder_are_named(tmp_path):
    with pytest.raises(autoencoders.WeightsError, match=r"taef2_encoder\.pth"):
        autoencoders.read_taef2(tmp_path)


@pytest.mark.data
def test_a_round_trip_keeps_the_picture(data_dir):
    network = autoencoders.read_taef2(data_dir / "weights")
    image = to_tensor(read(clean_photographs(data_dir)[0].path))[None, :, :64, :64].float() / 255
    error = (network.decode(network.encode(image)) - image).square().mean()
    assert -10 * error.log10() > 24


def test_changes_of_latents_do_what_they_say():
    latents = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    spread = latents.std((1, 2, 3), keepdim=True)
    strength = torch.tensor([0.5, 1.0])
    quantised = autoencoders._quantised(latents, strength, None) / (strength.view(-1, 1, 1, 1) * spread)
    torch.testing.assert_close(quantised, quantised.round())
    clipped = autoencoders._clipped(latents, strength, None) / spread
    torch.testing.assert_close(clipped.abs().amax((1, 2, 3)), strength)
    noisy = autoencoders._noisy(latents, strength, torch.Generator().manual_seed(1)) - latents
    torch.testing.assert_close(noisy.std((1, 2, 3)) / spread.flatten(), strength, rtol=0.1, atol=0)
    flat = torch.ones(1, 32, 8, 8)
    for change in (autoencoders._sharpened, autoencoders._softened):
        torch.testing.assert_close(change(flat, torch.tensor([1.0]), None), flat)


def test_round_trips_go_through_the_autoencoder_as_often_as_asked():
    halve = autoencoders.round_trips(lambda x: x, lambda z: z / 2)
    image = torch.full((2, 3, 8, 8), 0.8)
    found = halve(image, torch.tensor([3.0, 1.5]))
    torch.testing.assert_close(found[0], torch.full((3, 8, 8), 0.1))
    torch.testing.assert_close(found[1], torch.full((3, 8, 8), 0.3))
