"""The 24 published distortions against where they come from, closed forms, scipy and the standard library."""

import colorsys
import math

import numpy as np
import pytest
import torch
from made_photographs import texture
from PIL import Image, ImageDraw
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from iqguide.training import arniqa_distortions as arniqa
from iqguide.training import distortions
from iqguide.training.color_spaces import lab_to_rgb, rgb_to_lab
from iqguide.training.data import clean_photographs

NAMES = tuple(arniqa.LADDERS)
RANDOM = {
    "motion_blur", "color_shift", "white_noise", "white_noise_cc", "impulse_noise", "multiplicative_noise", "jitter",
    "non_eccentricity_patch", "color_block",
}  # fmt: skip

# PSNR in dB of `scene()` after levels 1 to 5 in github.com/miccunifi/ARNIQA, utils/distortions.py at
# f60c0f284ae6a28ebccaa5279962956760529572, run with the parameters of our levels and the draws of a generator with seed
# 5. Mended there before: the indexing in impulse_noise and a size-1 array in spline, which numpy 2 refuses; the square
# roots in the disk of fspecial, which are those of MATLAB for radius 1 only; the sort in color_shift, of which it reads
# the indices; the crop of imscatter, whose rows and columns are swapped; the copy of a patch onto itself in
# non_eccentricity_patch; the cut to whole 255ths after CIELAB, which takes one from values that rounding has moved
# down (0.01 is added before it). docs/training.md says what each of these is worth in dB.
ARNIQA = {
    "gaussian_blur": (60.0, 31.55, 23.75, 20.67, 18.25),
    "lens_blur": (26.44, 22.64, 19.83, 18.84, 18.28),
    "motion_blur": (60.0, 29.22, 24.87, 22.9, 20.42),
    "color_diffusion": (23.62, 13.45, 10.91, 10.03, 8.82),
    "color_shift": (31.2, 26.94, 26.32, 25.6, 25.52),
    "color_saturation1": (12.69, 10.19, 9.17, 8.25, 6.32),
    "color_saturation2": (60.0, 15.47, 13.69, 12.01, 10.15),
    "jpeg2000": (27.94, 25.72, 24.18, 20.26, 19.12),
    "jpeg": (24.7, 24.37, 23.66, 21.11, 19.42),
    "white_noise": (30.18, 27.2, 25.48, 23.34, 20.5),
    "white_noise_cc": (35.52, 28.57, 25.62, 22.74, 21.09),
    "impulse_noise": (34.63, 27.59, 24.5, 21.62, 19.87),
    "multiplicative_noise": (36.06, 29.18, 26.29, 23.46, 19.77),
    "brighten": (27.89, 21.97, 16.15, 11.55, 8.75),
    "darken": (34.99, 28.97, 22.95, 16.93, 11.34),
    "mean_shift": (60.0, 22.08, 22.25, 16.77, 17.13),
    "jitter": (32.14, 27.68, 24.2, 21.01, 19.04),
    "non_eccentricity_patch": (23.1, 20.51, 18.83, 17.88, 17.48),
    "pixelate": (17.86, 17.75, 17.35, 16.83, 15.89),
    "quantization": (30.32, 29.72, 26.5, 24.83, 21.8),
    "color_block": (21.24, 17.75, 16.91, 14.91, 14.02),
    "high_sharpen": (22.9, 17.7, 15.06, 11.75, 9.6),
    "linear_contrast_change": (27.58, 27.58, 22.72, 21.56, 19.71),
    "non_linear_contrast_change": (24.48, 18.46, 14.94, 12.44, 11.42),
}


def scene():
    """A made picture (1, 3, 192, 256) with soft and hard edges, grain, black, white and strong colours, of 8 bits."""
    picture = texture(np.random.default_rng(7), 256).crop((0, 32, 256, 224))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((20, 24, 84, 96), fill=(230, 40, 30), outline=(0, 0, 0), width=6)
    draw.ellipse((120, 30, 210, 120), fill=(30, 90, 220), outline=(255, 255, 255), width=4)
    draw.polygon([(40, 180), (100, 110), (150, 180)], fill=(40, 180, 60))
    for x in range(160, 250, 6):
        draw.line((x, 130, x + 12, 185), fill=(20, 20, 20), width=2)
    return as_tensor(picture)


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def one(value):
    return torch.tensor([float(value)])


def grey(value=0.5, side=128):
    return torch.full((1, 3, side, side), value)


def psnr(a, b):
    """In dB, mean over the batch; 60 for equal pictures."""
    return (-10 * (a - b).square().mean((1, 2, 3)).clamp_min(1e-6).log10()).mean().item()


@pytest.fixture(scope="module")
def picture():
    return scene()


@pytest.fixture(scope="module")
def batch():
    """Three pictures whose sides are no multiples of anything."""
    rng = np.random.default_rng(4)
    return torch.cat([as_tensor(texture(rng, 53)) for _ in range(3)])[..., :45]


def test_there_are_24_in_seven_groups_of_five_levels():
    assert [len(group) for group in arniqa.GROUPS.values()] == [3, 4, 2, 4, 3, 5, 3]
    assert len(NAMES) == 24
    assert {len(parameters) for _, parameters in arniqa.LADDERS.values()} == {5}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_arniqa(picture, name):
    ours = [psnr(arniqa.distort(picture, name, torch.tensor([level]), generator()), picture) for level in range(5)]
    assert ours == pytest.approx(ARNIQA[name], abs=0.1)


# --- each against its definition ---


@pytest.mark.parametrize("sigma", [1, 2, 5])
def test_gaussian_blur_is_that_of_scipy_cut_at_two_sigma(picture, sigma):
    theirs = gaussian_filter(picture.double().numpy(), (0, 0, sigma, sigma), mode="nearest", radius=2 * sigma)
    np.testing.assert_allclose(arniqa.gaussian_blur(picture.double(), one(sigma)).numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("radius", [1, 2, 4, 6, 8])
def test_a_disk_covers_what_it_covers(radius):
    (disk,) = arniqa.disk_kernels(one(radius))
    assert disk.sum() == pytest.approx(1, abs=1e-9)
    assert (disk >= 0).all()
    assert disk[radius, radius] == pytest.approx(1 / (math.pi * radius**2), rel=1e-4)  # a whole pixel of the area
    squares = torch.arange(-radius, radius + 1.0, dtype=torch.float64) ** 2
    # the second moment of a disk along an axis, and that of a pixel
    assert (disk.sum(0) * squares).sum().item() == pytest.approx(radius**2 / 4 + 1 / 12, rel=0.2 / radius)


def test_a_disk_of_one_pixel_is_that_of_matlab():
    corner, side, middle = 0.0251, 0.1453, 0.3183  # printed by fspecial("disk", 1)
    expected = [[corner, side, corner], [side, middle, side], [corner, side, corner]]
    np.testing.assert_allclose(arniqa.disk_kernels(one(1))[0].numpy(), expected, atol=1e-4)


def test_a_motion_of_nine_pixels_is_that_of_matlab():
    (flat,) = arniqa.line_kernels(one(9), one(0))
    np.testing.assert_allclose(flat[5, 1:-1].numpy(), np.full(9, 1 / 9), atol=1e-12)  # fspecial("motion", 9, 0)
    assert flat.sum() == pytest.approx(1, abs=1e-12)
    assert flat[5, 0] == 0
    (rising,) = arniqa.line_kernels(one(9), one(45))
    offsets = torch.arange(-5.0, 6.0, dtype=torch.float64)
    assert (rising * offsets * offsets[:, None]).sum() < -2  # up on the right: rows count downwards


def test_motions_of_one_pixel_are_none(picture):
    torch.testing.assert_close(arniqa.motion_blur(picture, one(1), generator()), picture)


def test_lab_of_colours_with_known_values():
    # CIE 15 / IEC 61966-2-1, D65: white, black, a mid grey, and the primaries as colour tables print them
    colours = torch.tensor(
        [[1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64
    )
    expected = [
        [100, 0, 0],
        [0, 0, 0],
        [53.39, 0, 0],
        [53.24, 80.09, 67.2],
        [87.73, -86.18, 83.18],
        [32.3, 79.2, -107.86],
    ]
    lab = rgb_to_lab(colours.view(-1, 3, 1, 1))
    np.testing.assert_allclose(lab.view(-1, 3).numpy(), expected, atol=0.02)
    np.testing.assert_allclose(lab_to_rgb(lab).view(-1, 3).numpy(), colours.numpy(), atol=1e-9)


@pytest.mark.parametrize("factor", [0.4, 0, -0.4])
def test_saturation_is_that_of_hsv(factor):
    pixels = np.random.default_rng(0).uniform(size=(50, 3))
    expected = []
    for red, green, blue in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb(hue, saturation * factor, value))
    ours = arniqa.color_saturation1(torch.from_numpy(pixels).view(-1, 3, 1, 1), torch.full((50,), factor))
    np.testing.assert_allclose(ours.view(-1, 3).numpy(), expected, atol=1e-6)


def test_chroma_is_scaled_and_spread(picture):
    # channels are read as BGR; with little chroma nothing leaves sRGB
    pale = picture * 0.1 + 0.45
    before, after = (rgb_to_lab(x.flip(1)) for x in (pale, arniqa.color_saturation2(pale, one(3))))
    torch.testing.assert_close(after[:, :1], before[:, :1], atol=0.8, rtol=0)  # values are cut to whole 255ths
    torch.testing.assert_close(after[:, 1:], 3 * before[:, 1:], atol=1.6, rtol=0)
    flat = pale[..., 60:61, 40:41].expand(1, 3, 64, 64)
    torch.testing.assert_close(arniqa.color_diffusion(flat, one(3)), arniqa.color_saturation2(flat, one(3)))


def test_color_shift_moves_green_at_edges_only():
    assert torch.equal(arniqa.color_shift(grey(), one(12), generator()), grey())
    step = grey(0.2).clone()
    step[..., 64:] = 0.8
    shifted = arniqa.color_shift(step, one(8), generator())
    assert torch.equal(shifted[:, [0, 2]], step[:, [0, 2]])
    direction = torch.rand(1, 2, generator=generator())
    across = round(8 * (direction / direction.norm())[0, 1].item())
    assert torch.equal(
        shifted[0, 1].amin(0) < step[0, 1].amin(0) - 1e-6, (torch.arange(128) - 64 < across) & (torch.arange(128) >= 64)
    )
    assert shifted[0, 1, 60, 64] == pytest.approx(0.2, abs=1e-3)  # at the edge the weight is 1


def test_variances_of_the_noises():
    at = torch.full((1, 3, 512, 512), 0.5)
    spread = (arniqa.white_noise(at, one(0.01), generator()) - at).var((0, 2, 3))
    assert spread.tolist() == pytest.approx([0.01] * 3, rel=0.02)
    spread = (arniqa.multiplicative_noise(at, one(0.02), generator()) - at).var((0, 2, 3))
    assert spread.tolist() == pytest.approx([0.02 * 0.5**2] * 3, rel=0.02)
    # R = Y + 1.402 Cr, G = Y - 0.344136 Cb - 0.714136 Cr, B = Y + 1.772 Cb, with independent noise on each
    gains = [1 + 1.402**2, 1 + 0.344136**2 + 0.714136**2, 1 + 1.772**2]
    spread = (arniqa.white_noise_cc(at, one(0.003), generator()) - at).var((0, 2, 3))
    assert spread.tolist() == pytest.approx([0.003 * gain for gain in gains], rel=0.02)


def test_tone_curves_pass_through_their_points():
    values = torch.tensor([0, 0.3, 0.5, 0.7, 1], dtype=torch.float64).expand(1, 3, 2, 5)
    assert arniqa.darken(values, one(0.4))[0, 0, 0].tolist() == pytest.approx([0, 0.132, 0.3, 0.532, 1])
    assert arniqa.mean_shift(values, one(-0.15))[0, 0, 0, 2] == pytest.approx(0.35)
    squeezed = arniqa.non_linear_contrast_change(values, one(0.2))
    assert squeezed[0, 0, 0].tolist() == pytest.approx([0.3, 0.42, 0.5, 0.58, 0.7])
    # on greys the curve of L is bent like that of the channels, on another scale: in between lies what is drawn
    bright = arniqa.brighten(values, one(0.4))[0, 0, 0]
    assert bright[[0, 4]].tolist() == pytest.approx([0, 1], abs=1e-6)
    lightness = rgb_to_lab(values)[0, 0, 0, 2].item() / 100
    bent = torch.tensor([100 * (lightness + 0.8 * lightness * (1 - lightness)), 0, 0], dtype=torch.float64)
    by_lab = lab_to_rgb(bent.view(1, 3, 1, 1))[0, 0, 0, 0].item()
    assert bright[2].item() == pytest.approx((2 * 0.7 + by_lab) / 3, abs=1e-4)


@pytest.mark.parametrize("amount", [0, 0.15, -0.4, 0.3, -0.6])
def test_linear_contrast_change_is_the_published_spline(amount):
    values = torch.linspace(0, 1, 101, dtype=torch.float64).expand(1, 3, 1, 101)
    spline = CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1], bc_type="not-a-knot")
    ours = arniqa.linear_contrast_change(values, one(amount))[0, 0, 0]
    np.testing.assert_allclose(ours.numpy(), spline(values[0, 0, 0].numpy()).clip(0, 1), atol=1e-7)


def test_jitter_displaces_by_its_standard_deviation():
    ramp = torch.linspace(0.2, 0.8, 256, dtype=torch.float64).expand(1, 3, 256, 256)
    moved = (arniqa.jitter(ramp, one(0.5), generator()) - ramp)[..., 8:-8] / (0.6 / 255)
    # five displacements of 0.5 px; later ones are read between two neighbours, which averages the earlier ones
    assert 0.5 < moved[:, 0].std() < math.sqrt(5) * 0.5
    assert moved.mean().abs() < 0.02
    last = arniqa.jitter(ramp, one(1e-3), generator())[..., 8:-8] - ramp[..., 8:-8]
    assert last[:, 0].std() / (0.6 / 255) == pytest.approx(math.sqrt(5) * 1e-3, rel=0.02)  # too small to average


def test_patches_are_copies_from_near_by(picture):
    rows, columns = torch.meshgrid(torch.arange(192.0), torch.arange(256.0), indexing="ij")
    places = torch.stack([rows, columns, rows * 0])[None]
    moved = arniqa.non_eccentricity_patch(places, one(1), generator()) - places
    reach = moved[0, :2].flatten(1).abs().amax(1)
    assert (reach <= 8).all()
    changed = moved.abs().sum(1)[0] > 0
    assert changed.sum() == 256  # one patch of 16 x 16
    assert torch.equal(moved[0, :, changed].amin(1), moved[0, :, changed].amax(1))  # moved as a whole


def test_pixelate_keeps_as_many_pixels_as_it_says(picture):
    side = int(192 * (0.95 - 0.2**0.6))
    gradient = torch.arange(192.0).view(1, 1, 192, 1).expand(1, 3, 192, 192)
    assert len(arniqa.pixelate(gradient, one(0.2)).unique()) == side


def test_quantization_leaves_equal_steps():
    ramp = torch.linspace(1 / 255, 1, 255).expand(1, 3, 4, 255)
    values = arniqa.quantization(ramp, one(7)).unique()
    torch.testing.assert_close(values, torch.linspace(0, 1, 7))
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 4, 256)
    assert len(arniqa.quantization(ramp, one(7)).unique()) == 8  # black is a bin of its own


def test_blocks_are_squares_of_one_colour(picture):
    painted = arniqa.color_block(picture, one(1), generator())
    changed = (painted - picture).abs().sum(1)[0] > 0
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    block = painted[0, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert block.shape[1:] == (32, 32)
    assert torch.equal(block.flatten(1).amin(1), block.flatten(1).amax(1))


def test_sharpening_is_unsharp_masking_of_lightness(picture):
    soft = distortions.gaussian_blur(picture.double(), one(2)) * 0.3 + 0.35  # nothing leaves sRGB
    lightness = rgb_to_lab(soft.flip(1))[0, 0].numpy()
    expected = lightness + 2 * (lightness - gaussian_filter(lightness, 6, mode="nearest", radius=6))
    sharp = rgb_to_lab(arniqa.high_sharpen(soft, one(2)).flip(1))[0]
    np.testing.assert_allclose(sharp[0].numpy(), expected, atol=1e-4)


# --- what all of them keep ---


def test_every_value_of_8_bits_comes_back_whole_from_cielab():
    """float32 moves some of the 2**24 colours by 0.003 of a 255th, in which direction depends on the processor."""
    values = torch.arange(256) / 255
    for blue in values[::15]:
        green, red = torch.meshgrid(values, values, indexing="ij")
        colours = torch.stack([red, green, blue.expand(256, 256)])[None]
        torch.testing.assert_close(arniqa.color_saturation2(colours, one(1)), colours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_stay_pictures_and_the_given_ones_are_left_alone(batch, name, device):
    given = batch.to(device)
    for level in (torch.tensor([0, 2, 4]), torch.tensor([3, 1, 3])):
        degraded = arniqa.distort(given, name, level.to(device), generator())
        assert (degraded.shape, degraded.dtype, degraded.device) == (given.shape, given.dtype, given.device)
        assert degraded.min() >= 0
        assert degraded.max() <= 1
    assert torch.equal(given.cpu(), batch)


@pytest.mark.parametrize("name", NAMES)
def test_small_pictures_and_float64(batch, name):
    small = batch[..., :32, :33].double()
    degraded = arniqa.distort(small, name, torch.tensor([4, 4, 4]), generator())
    assert degraded.dtype == torch.float64
    assert degraded.isfinite().all()
    # rounding may tip a value over an edge; on average that does nothing
    single = arniqa.distort(small.float(), name, torch.tensor([4, 4, 4]), generator())
    assert (degraded - single).abs().mean() < 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_picture_and_no_other_randomness(batch, name):
    level, before = torch.tensor([2, 3, 4]), torch.get_rng_state()
    first = arniqa.distort(batch, name, level, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, arniqa.distort(batch, name, level, generator(1)))
    assert torch.equal(first, arniqa.distort(batch, name, level, generator(2))) == (name not in RANDOM)


@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM))
def test_a_batch_gives_what_one_at_a_time_gives(batch, name):
    level = torch.tensor([0, 4, 2])
    alone = [arniqa.distort(batch[i : i + 1], name, level[i : i + 1]) for i in range(3)]
    difference = (arniqa.distort(batch, name, level) - torch.cat(alone)).abs()
    assert difference.mean() < 2e-6  # rounding costs one 255th where it moves a value over an edge: 11 of 21465 values


def test_severity_says_which_levels_are_equal(picture):
    levels = torch.arange(5)
    for name in NAMES:
        places = arniqa.severity(name, levels)
        assert (places.diff() >= 0).all()
        nothing = [psnr(arniqa.distort(picture, name, levels[i : i + 1], generator()), picture) > 50 for i in levels]
        assert nothing == (places == 0).tolist(), name
    assert arniqa.severity("mean_shift", levels).tolist() == [0, 1, 1, 2, 2]
    assert arniqa.severity("linear_contrast_change", levels).tolist() == [1, 1, 2, 3, 4]


def test_what_is_no_name_or_no_level_is_refused(picture):
    with pytest.raises(ValueError, match=r"unknown distortion 'fog'; expected one of: gaussian_blur, "):
        arniqa.distort(picture, "fog", torch.tensor([1]))
    with pytest.raises(ValueError, match=r"got levels \[1.5\]; expected whole numbers from 0 to 4"):
        arniqa.distort(picture, "jpeg", torch.tensor([1.5]))


@pytest.fixture(scope="module")
def real(data_dir):
    crops = []
    for photograph in clean_photographs(data_dir)[::15]:
        with Image.open(photograph.path) as image:
            crops.append(as_tensor(image.convert("RGB").crop((100, 100, 292, 292))))
    return torch.cat(crops)


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_ladders_fall_on_real_photographs(real, name):
    levels = torch.arange(5)
    ladder = [psnr(arniqa.distort(real, name, level.expand(len(real)), generator()), real) for level in levels]
    steps = arniqa.severity(name, levels).diff()
    for fall, step in zip(np.diff(ladder), steps.tolist(), strict=True):
        assert fall < (0 if step else 0.05), ladder
