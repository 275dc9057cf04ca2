"""Denoised latents from model outputs and back, against latents built from known x0 and noise."""

import math

import pytest
import torch

from iqguide.guidance.prediction import PREDICTION_TYPES, denoised_from_output, output_change, output_shift

LEVELS = [(0.8, 0.6), (1.0, 0.05), (1.0, 14.6), (0.3, 0.7), (0.9, 0.1)]  # VP, VE low and high, flow twice


def built(alpha, sigma, kind, clean, noise):
    """Noisy latent and model output, from the definitions."""
    norm = math.hypot(alpha, sigma)
    output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": (alpha * noise - sigma * clean) / norm,
        "flow_prediction": noise - clean,
    }[kind]
    return alpha * clean + sigma * noise, output


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoised_is_the_x0_the_latent_was_built_from(kind, alpha, sigma):
    clean, noise = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    sample, output = built(alpha, sigma, kind, clean, noise)
    torch.testing.assert_close(denoised_from_output(output, sample, alpha, sigma, kind), clean)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_a_shift_is_what_a_latent_built_from_the_moved_x0_has(kind, alpha, sigma):
    clean, noise, shift = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    sample, output = built(alpha, sigma, kind, clean, noise)
    moved_sample, moved_output = built(alpha, sigma, kind, clean + shift, noise)
    torch.testing.assert_close(sample + alpha * shift, moved_sample)
    torch.testing.assert_close(output + output_shift(shift, alpha, sigma, kind), moved_output)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_a_change_moves_the_denoised_and_not_the_latent(kind, alpha, sigma):
    clean, noise, change = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    sample, output = built(alpha, sigma, kind, clean, noise)
    changed = denoised_from_output(output + output_change(change, alpha, sigma, kind), sample, alpha, sigma, kind)
    torch.testing.assert_close(changed, clean + change)


def test_v_prediction_is_finite_where_nothing_but_noise_is_left():
    noise = torch.randn(1, 4, 2, 2)
    output = -torch.ones_like(noise)  # alpha = 0: v = -x0
    assert denoised_from_output(output, noise, 0.0, 1.0, "v_prediction").equal(torch.ones_like(noise))


def test_an_unknown_type_names_the_known_ones():
    one = torch.ones(1)
    for convert in (lambda: denoised_from_output(one, one, 1, 1, "x0"), lambda: output_change(one, 1, 1, "x0")):
        with pytest.raises(ValueError, match=r"'x0'; expected one of epsilon"):
            convert()
    with pytest.raises(ValueError, match="'x0'"):
        output_shift(one, 1, 1, "x0")
