"""Degradations against closed forms, scipy and Pillow; what all of them keep; and that their ladders get worse."""

import io
import math

import numpy as np
import pytest
import torch
from made_photographs import texture
from PIL import Image
from scipy.ndimage import gaussian_filter

from iqguide.training import distortions
from iqguide.training.data import clean_photographs

NAMES = tuple(distortions.LADDERS)
RANDOM = {"motion_blur", "white_noise", "grain", "multiplicative_noise", "impulse_noise", "color_shift"}
LEVELS = torch.arange(5.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def picture():
    """One photograph-like picture (1, 3, 128, 128), its values those of 8 bits."""
    return as_tensor(texture(np.random.default_rng(3), 128))


@pytest.fixture(scope="module")
def batch():
    """Three pictures whose sides are no multiples of anything."""
    rng = np.random.default_rng(4)
    return torch.cat([as_tensor(texture(rng, 53)) for _ in range(3)])[..., :45]


def one(value):
    return torch.tensor([float(value)])


def grey(value=0.5, side=128):
    return torch.full((1, 3, side, side), value)


def impulse(side=65):
    image = torch.zeros(1, 3, side, side, dtype=torch.float64)
    image[..., side // 2, side // 2] = 1
    return image


def second_moment(spread):
    """Sum and mean squared distance from the centre of the light of an impulse."""
    light = spread[0, 0]
    offsets = torch.arange(len(light), dtype=light.dtype) - len(light) // 2
    squares = offsets[:, None] ** 2 + offsets**2
    return light.sum().item(), ((light * squares).sum() / light.sum()).item()


# --- each against its formula ---


def test_white_noise_has_the_variance_it_says():
    change = distortions.white_noise(grey(), one(0.05), generator()) - 0.5
    # 49152 independent values: the standard error of the deviation is 0.05 / sqrt(2 * 49152) = 1.6e-4
    assert change.std().item() == pytest.approx(0.05, abs=6.4e-4)
    assert change.mean().item() == pytest.approx(0, abs=4 * 0.05 / math.sqrt(49152))
    assert abs(np.corrcoef(change[0].flatten(1).numpy())[0, 1]) < 4 / 128  # the channels are independent


def test_grain_is_coarse_luminance_noise_of_exactly_that_deviation():
    change = distortions.grain(grey(), one(0.04), generator()) - 0.5
    assert change[0, 0].std().item() == pytest.approx(0.04, rel=1e-5)
    torch.testing.assert_close(change[:, :1].expand_as(change), change)
    neighbours = (change[0, 0, :, 1:] * change[0, 0, :, :-1]).mean() / change[0, 0].square().mean()
    assert neighbours > 0.5  # white noise has 0


def test_multiplicative_noise_grows_with_the_signal():
    for value in (0.25, 0.5):
        change = distortions.multiplicative_noise(grey(value), one(0.1), generator()) - value
        assert change.std().item() == pytest.approx(0.1 * value, rel=4 / math.sqrt(2 * 49152))
    assert not distortions.multiplicative_noise(grey(0.0), one(0.4), generator()).any()


def test_impulse_noise_hits_the_given_share_with_black_and_white():
    noisy = distortions.impulse_noise(grey(), one(0.1), generator())
    for value in (0.0, 1.0):
        share = (noisy == value).float().mean().item()
        assert share == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 49152))
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
def test_gaussian_blur_is_that_of_scipy(picture, sigma):
    ours = distortions.gaussian_blur(picture.double(), one(sigma))
    settings = {"sigma": (0, 0, sigma, sigma), "mode": "nearest", "radius": math.ceil(3 * sigma)}
    theirs = gaussian_filter(picture.double().numpy(), **settings)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)  # the kernel is made in float32


def test_the_light_of_a_blurred_impulse():
    total, moment = second_moment(distortions.gaussian_blur(impulse(), one(4)))
    assert total == pytest.approx(1, abs=1e-6)
    assert moment == pytest.approx(2 * 4**2, rel=0.03)  # cutting at three sigma takes 2.7 % of the variance
    total, moment = second_moment(distortions.lens_blur(impulse(), one(7)))
    assert total == pytest.approx(1, abs=1e-6)
    assert moment == pytest.approx(7**2 / 2, rel=0.03)  # an evenly lit disk
    total, moment = second_moment(distortions.motion_blur(impulse(), one(18), generator()))
    assert total == pytest.approx(1, abs=1e-6)
    assert moment == pytest.approx(18**2 / 12 + 1 / 6, rel=0.03)  # a line, two pixels wide with sloping sides


def test_motion_blur_has_a_direction():
    light = distortions.motion_blur(impulse(), one(18), generator())[0, 0]
    offsets = torch.arange(65.0, dtype=torch.float64) - 32
    x, y = (light.sum(0) * offsets**2).sum(), (light.sum(1) * offsets**2).sum()
    xy = (light * offsets[:, None] * offsets).sum()
    assert torch.linalg.eigvalsh(torch.tensor([[x, xy], [xy, y]]))[0] < 0.5  # px^2, against 27 along the line


@pytest.mark.parametrize("quality", [5, 10, 26, 43, 75, 90])
def test_jpeg_is_that_of_pillow(picture, quality):
    file = io.BytesIO()
    Image.fromarray((picture[0] * 255).byte().permute(1, 2, 0).numpy()).save(
        file, "JPEG", quality=quality, subsampling="4:2:0"
    )
    theirs, ours = as_tensor(Image.open(file)), distortions.jpeg(picture, one(quality))
    # Pillow rounds to whole numbers at every stage, and where that tips a coefficient over the edge of a step, a whole
    # step of it: at least 38 dB agree here at quality 5, 42 dB above. The loss itself is 21 to 27 dB.
    assert psnr(ours, theirs) > (37 if quality < 10 else 41)
    assert psnr(ours, theirs) > psnr(theirs, picture) + 12


def test_jpeg_at_full_quality_changes_next_to_nothing(picture):
    smooth = distortions.gaussian_blur(picture, one(3))  # halved chroma would show on fine colour
    assert psnr(distortions.jpeg(smooth, one(100)), smooth) > 45
    assert torch.allclose(distortions.jpeg(grey(128 / 255), one(100)), grey(128 / 255), atol=1e-5)


def test_jpeg2000_loses_with_the_rate(picture):
    smooth = distortions.gaussian_blur(picture, one(2))
    assert psnr(distortions.jpeg2000(smooth, one(4)), smooth) > 45  # nothing to be seen
    assert psnr(distortions.jpeg2000(smooth, one(200)), smooth) < 35


def test_pixelate_by_a_whole_factor_is_the_mean_of_blocks(picture):
    blocks = torch.nn.functional.avg_pool2d(picture, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(distortions.pixelate(picture, one(4)), blocks)


def test_enlarge_takes_the_detail_and_leaves_the_shapes(picture):
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert distortions.enlarge(stripes, one(4))[..., 8:-8].std() < 0.02  # 0.5 before
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(distortions.enlarge(ramp, one(2))[..., 8:-8], ramp[..., 8:-8], atol=2e-3, rtol=0)


def test_quantize_rounds_to_evenly_spaced_values(picture):
    coarse = distortions.quantize(picture, one(5))
    assert set(coarse.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert (coarse - picture).abs().max() <= 0.125 + 1e-6


def test_saturation_scales_the_distance_from_luma(picture):
    luma = (picture * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(distortions.saturation(picture, one(0)), luma.expand_as(picture))
    torch.testing.assert_close(distortions.saturation(picture, one(0.5)), (luma + picture) / 2)
    torch.testing.assert_close(distortions.saturation(picture, one(1)), picture)


def test_contrast_scales_around_the_mean_luma(picture):
    mean = distortions.luma(picture).mean()
    flat = distortions.contrast(picture, one(0.3))
    torch.testing.assert_close(flat, mean + 0.3 * (picture - mean))
    torch.testing.assert_close(distortions.luma(flat).mean(), mean)
    torch.testing.assert_close(distortions.contrast(picture, one(3)), (mean + 3 * (picture - mean)).clamp(0, 1))


def test_gamma_is_a_power():
    values = torch.linspace(0.05, 1, 12).expand(1, 3, 4, 12)
    for exponent in (0.4, 2.2):
        torch.testing.assert_close(distortions.gamma(values, one(exponent)), values**exponent)


def test_sharpen_is_unsharp_masking_of_luma(picture):
    luma = (picture.double() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)[0].numpy()
    mask = luma - gaussian_filter(luma, 1.5, mode="nearest", radius=5)
    sharp = distortions.sharpen(picture.double(), one(2))
    np.testing.assert_allclose(sharp[0].numpy(), (picture[0].numpy() + 2 * mask).clip(0, 1), atol=1e-6)
    assert torch.allclose(distortions.sharpen(grey(), one(10)), grey(), atol=1e-5)


@pytest.mark.parametrize("shift", [1, 3, 8])
def test_color_shift_moves_green_by_that_far(shift):
    image = impulse().float()
    moved = distortions.color_shift(image, one(shift), generator(shift))
    assert torch.equal(moved[:, [0, 2]], image[:, [0, 2]])
    ((y, x),) = moved[0, 1].nonzero().tolist()
    assert math.hypot(y - 32, x - 32) == pytest.approx(shift, abs=math.sqrt(0.5))  # whole pixels


# --- what all of them keep ---


@pytest.mark.parametrize("name", NAMES)
def test_pictures_stay_pictures_and_the_given_ones_are_left_alone(batch, name):
    given = batch.clone()
    for level in (torch.tensor([0.0, 1.7, 4.0]), torch.tensor([0.3, 2.5, 3.1])):
        degraded = distortions.distort(given, name, level, generator())
        assert degraded.shape == batch.shape
        assert degraded.dtype == batch.dtype
        assert degraded.min() >= 0
        assert degraded.max() <= 1
    assert torch.equal(given, batch)


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64_and_says_the_same(batch, name):
    level = torch.tensor([1.0, 2.0, 3.0])
    double = distortions.distort(batch.double(), name, level, generator())
    assert double.dtype == torch.float64
    # Rounding may tip a value over a quantiser's edge; on average that does nothing.
    assert (double - distortions.distort(batch, name, level, generator())).abs().mean() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_picture_and_no_other_randomness(batch, name):
    level, before = torch.tensor([1.0, 2.0, 3.0]), torch.get_rng_state()
    first = distortions.distort(batch, name, level, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, distortions.distort(batch, name, level, generator(1)))
    assert torch.equal(first, distortions.distort(batch, name, level, generator(2))) == (name not in RANDOM)


@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM))
def test_a_batch_gives_what_one_at_a_time_gives(batch, name):
    level = torch.tensor([0.5, 4.0, 2.0])
    alone = [distortions.distort(batch[i : i + 1], name, level[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(distortions.distort(batch, name, level), torch.cat(alone), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_level_changes_the_picture_more_than_the_one_before(picture, name):
    levels = distortions.distort(picture.expand(5, -1, -1, -1), name, LEVELS, generator())
    change = (levels - picture).square().mean((1, 2, 3)).sqrt()
    assert change[0] > 0.002
    assert (change.diff() > 0).all(), change


def test_strengths_between_the_levels_are_interpolated():
    for name in NAMES:
        values = torch.tensor(distortions.LADDERS[name][1], dtype=torch.float32)
        assert len(values) == 5
        seen: list[torch.Tensor] = []
        ladder = (lambda images, strength, _, seen=seen: seen.append(strength) or images), values.tolist()
        for levels in (LEVELS, LEVELS[:4] + 0.5):
            distortions.degrade(ladder, torch.zeros(len(levels), 3, 1, 1), levels)
        torch.testing.assert_close(seen[0], values)
        torch.testing.assert_close(seen[1], (values[1:] + values[:-1]) / 2)


def test_unknown_names_are_refused(picture):
    with pytest.raises(ValueError, match=r"'fog'; expected one of: gaussian_blur, .*color_shift"):
        distortions.distort(picture, "fog", one(1))


# --- real photographs ---


@pytest.fixture(scope="module")
def real(data_dir):
    crops = []
    for photograph in clean_photographs(data_dir)[::40]:
        with Image.open(photograph.path) as image:
            crops.append(as_tensor(image.convert("RGB").crop((100, 100, 228, 228))))
    return torch.cat(crops)


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_ladders_fall_on_real_photographs(real, name):
    levels = [distortions.distort(real, name, torch.full((len(real),), level), generator()) for level in LEVELS]
    ladder = torch.tensor([psnr(degraded, real) for degraded in levels])
    assert ladder[0] < 45
    assert (ladder.diff() < -0.5).all(), ladder


def psnr(a, b):
    """In dB, mean over the batch; 60 for equal pictures (a grey photograph cannot lose its colour)."""
    return (-10 * (a - b).square().mean((1, 2, 3)).clamp_min(1e-6).log10()).mean().item()
