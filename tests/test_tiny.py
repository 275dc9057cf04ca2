"""The network of `tiny`, and the weights of it that come with the package."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import held_out_crops
from PIL import Image
from scipy.stats import spearmanr

import iqguide
from iqguide.models.tiny import Tiny
from iqguide.training import distortions
from iqguide.training.config import FinetuneConfig
from iqguide.training.crops import read, to_tensor
from iqguide.training.data import clean_photographs, scored_photographs, split

BUNDLED_MEGABYTES = 5


@pytest.fixture(scope="module")
def network():
    """Random weights, but statistics and scales as different from their start as training makes them."""
    torch.manual_seed(1)
    network = Tiny().train()
    with torch.no_grad():
        for _ in range(5):
            network.raw(torch.rand(4, 3, 48, 48))
    network.margin_mean.fill_(-0.3)
    network.margin_std.fill_(0.05)
    network.score_scale.fill_(0.7)
    network.score_shift.fill_(0.4)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 32), (120, 200), (512, 32)])
def test_any_size_from_32_pixels(network, size):
    images = torch.rand(1, 3, *size, requires_grad=True)
    network.margin(images).sum().backward()
    assert images.grad.isfinite().all()
    reached = images.grad.abs().amax((0, 1)) > 0
    assert reached.all()  # every pixel counts


def test_a_batch_gives_what_one_at_a_time_gives(network):
    images = torch.rand(5, 3, 40, 56)
    for call in (network, network.margin, network.raw):
        alone = torch.cat([call(image[None]) for image in images])
        torch.testing.assert_close(call(images), alone, atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_differences_in_float64(network):
    double = Tiny().eval().double()
    double.load_state_dict(network.state_dict())
    images, direction = torch.rand(2, 2, 3, 36, 33, dtype=torch.float64)
    for call in (double, double.margin, double.raw):
        images.requires_grad_(True)
        scores = call(images)
        assert scores.dtype == torch.float64
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        slopes = (gradient * direction).flatten(1).sum(1)
        with torch.no_grad():
            differences = (call(images + 1e-6 * direction) - call(images - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close(slopes, differences, rtol=1e-6, atol=1e-9)


def test_second_derivatives_exist(network):
    """Training differentiates the gradient: all activations are smooth."""
    trainable = Tiny().eval()
    trainable.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(trainable.raw(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    weight = trainable.stages[0][0].weight
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().max() > 0


def test_score_and_margin_are_the_raw_output_on_two_scales(network):
    images = torch.rand(16, 3, 32, 32) * torch.rand(16, 1, 1, 1)
    raw, margin, score = network.raw(images), network.margin(images), network(images)
    torch.testing.assert_close(margin, (raw + 0.3) / 0.05)
    torch.testing.assert_close(score, 1 / (1 + torch.exp(-0.7 * margin - 0.4)))
    assert torch.equal(margin.argsort(), raw.argsort())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.float16, 0.01)])
def test_half_precision_is_close(network, dtype, tolerance):
    half = Tiny().eval()
    half.load_state_dict(network.state_dict())
    half.to(dtype)
    images = torch.rand(4, 3, 64, 64)
    assert half(images).dtype == half.margin(images).dtype == torch.float32
    spread = network.raw(torch.rand(16, 3, 64, 64) * torch.rand(16, 1, 1, 1)).std()
    assert (half.raw(images) - network.raw(images)).abs().max() < tolerance + 0.2 * spread


def test_only_what_is_local_is_seen(network):
    """Shifting a picture by the network's stride moves what it sees and changes nothing else."""
    inner = torch.zeros(1, 3, 160, 160)
    inner[..., 56:104, 56:104] = torch.rand(3, 48, 48)
    torch.testing.assert_close(network.raw(inner), network.raw(inner.roll(16, -1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (torch.rand(3, 64, 64), ValueError),
        (torch.rand(2, 1, 64, 64), ValueError),
        (torch.rand(2, 3, 31, 64), ValueError),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError),
        (np.zeros((1, 3, 64, 64), np.float32), TypeError),
    ],
)
def test_bad_images_are_refused(network, bad, error):
    for call in (network, network.margin, network.raw):
        with pytest.raises(error, match=r"images (are|have)"):
            call(bad)


def test_standardising_the_head_changes_nothing_it_says(network):
    double = Tiny().eval().double().requires_grad_(False)
    double.load_state_dict(network.state_dict())
    images = torch.rand(12, 3, 40, 40, dtype=torch.float64) * torch.rand(12, 1, 1, 1, dtype=torch.float64)
    before, pooled = double.raw(images), double.pooled(images)
    for statistics in (pooled, pooled[:5] * 2 + 1):  # once, and once more from there
        double.standardise(statistics)
        torch.testing.assert_close(double.raw(images), before)
        centred = (statistics - double.pooled_mean) / double.pooled_std
        torch.testing.assert_close(centred.mean(0), torch.zeros_like(centred[0]), atol=1e-9, rtol=0)
        assert centred.std(0).max() <= 1


def test_it_is_small():
    assert sum(parameter.numel() for parameter in Tiny().parameters()) < 2_000_000


# --- the bundled weights ---


@pytest.fixture(scope="module")
def bundled():
    return iqguide.create_model("tiny")


def test_the_bundled_file(root):
    file, card = root / "models/assets/tiny.safetensors", root / "models/assets/tiny.md"
    assert file.stat().st_size < BUNDLED_MEGABYTES * 1e6
    text = card.read_text("utf-8")
    for said in ("Apache-2.0", "LIVE In the Wild", "CID22", "CC BY-SA 4.0", "CLIC 2025", "docs/training.md"):
        assert said in text, said


def test_the_bundled_model_is_calibrated(bundled):
    assert bundled.score_scale > 0  # or the score would be in the opposite order
    assert bundled.margin_std > 0
    assert bundled.margin_mean != 0


def made_picture(rng):
    """Soft shapes with sharp edges on them; no photograph, but plainly degradable."""
    shapes = Image.fromarray(rng.integers(40, 215, (5, 5, 3), dtype=np.uint8)).resize(
        (128, 128), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[:128, :128]
    picture = np.asarray(shapes, dtype=float)
    for _ in range(6):
        angle, offset, period = rng.uniform(0, math.pi), rng.uniform(0, 9), rng.uniform(7, 16)
        stripes = np.sign(np.sin((x * math.cos(angle) + y * math.sin(angle) + offset) * 2 * math.pi / period))
        picture = picture + 5 * stripes[..., None]
    return torch.from_numpy(picture.clip(0, 255)).permute(2, 0, 1).float() / 255


KINDS = ("gaussian_blur", "white_noise", "jpeg")


def falls(model, clean, kind):
    """By how much the mean margin falls from clean pictures to the most degraded ones."""
    ruined = distortions.distort(clean, kind, torch.full((len(clean),), 4.0), torch.Generator().manual_seed(0))
    return (model.margin(clean).mean() - model.margin(ruined).mean()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_model_sees_severe_degradations(bundled, kind):
    """On five photographs that it never saw; see NOTICE."""
    paths = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
    clean = torch.stack([to_tensor(read(path)) for path in paths]).float() / 255
    assert len(clean) == 5
    assert falls(bundled, clean, kind) > 0.5


@pytest.mark.parametrize("kind", ["gaussian_blur", "white_noise"])
def test_the_bundled_model_sees_severe_degradations_of_drawn_shapes(bundled, kind):
    rng = np.random.default_rng(0)
    assert falls(bundled, torch.stack([made_picture(rng) for _ in range(6)]), kind) > 0.5


@pytest.fixture(scope="module")
def held_out(data_dir):
    """Crops of clean photographs that were never trained on."""
    return held_out_crops(FinetuneConfig(data=data_dir), each=1)


@pytest.mark.data
def test_margin_is_in_units_of_clean_photographs(bundled, held_out):
    margins = torch.cat([bundled.margin(x) for x in held_out.split(16)])
    assert margins.mean().item() == pytest.approx(0, abs=4 / math.sqrt(len(margins)))
    assert margins.std().item() == pytest.approx(1, abs=0.35)


@pytest.mark.data
def test_it_agrees_with_people_on_photographs_it_never_saw(bundled, data_dir):
    photographs = split(scored_photographs(data_dir))[1]
    with torch.inference_mode():
        scores = [bundled(to_tensor(read(p.path))[None].float() / 255).item() for p in photographs]
    assert spearmanr(scores, [p.mos for p in photographs])[0] >= 0.60


@pytest.mark.data
def test_series_of_tid2013_fall_from_level_to_level(bundled, data_dir):
    folder, margins = data_dir / "tid2013-6ref" / "images", {}
    with torch.inference_mode():
        for path in sorted(folder.glob("i*_*_*")):
            reference, kind, level = path.stem.split("_")
            picture = to_tensor(read(path))[None].float() / 255
            margins.setdefault((reference, kind), {})[int(level)] = bundled.margin(picture).item()
    steps = [
        series[level + 1] < series[level]
        for series in margins.values()
        for level in range(1, 5)
        if {level, level + 1} <= series.keys()
    ]
    assert len(steps) > 80
    assert np.mean(steps) >= 0.95


@pytest.mark.data
def test_its_gradient_points_back_to_the_clean_picture(bundled, data_dir):
    """Climbing the margin a little from a degraded photograph brings it nearer to the clean one."""
    paths = [p.path for p in split(clean_photographs(data_dir))[1]][:16]
    clean = torch.stack([to_tensor(read(path))[:, 100:228, 100:228] for path in paths]).float() / 255
    nearer = []
    for name in ("gaussian_blur", "white_noise", "jpeg"):
        degraded = distortions.distort(clean, name, torch.full((len(clean),), 3.0), torch.Generator().manual_seed(0))
        degraded.requires_grad_(True)
        (gradient,) = torch.autograd.grad(bundled.margin(degraded).sum(), degraded)
        nearer.append(((gradient * (clean - degraded)).flatten(1).sum(1) > 0).float().mean().item())
    assert min(nearer) > 0.9, nearer
