"""What every quality model keeps, whatever it is: the contract of create_model."""

import copy
from functools import cache

import pytest
import torch

import iqguide
from iqguide.models import BPCLIPConfig, ClipConfig

SMALL = ClipConfig(layers=(1, 1, 1, 1), width=8, embed_dim=16, text_width=32, text_heads=2, text_layers=2)
SMALL_VIT = ClipConfig(
    **{"layers": (2,), "width": 32, "patch": 14, "head_width": 16, "embed_dim": 16, "positions": True},
    **{"text_width": 32, "text_heads": 2, "text_layers": 2},
)
SMALL_BPCLIP = BPCLIPConfig(
    backbone="resnet18", channels=(16, 16, 24, 24), width=16, heads=2, mask_width=4, text_dim=16, positions=4
)
# tests/test_bpclip.py has the full-reference model
NAMES = [name for name in iqguide.list_models() if name != "bpclip-fr"]
ALONE_TOLERANCE = 1e-5  # float32 sums in another order


def make(name, **options):
    """A model with random weights, as small as its options allow."""
    if "vit" in name:
        options.setdefault("config", SMALL_VIT)
    elif name.startswith(("qualiclip", "clipiqa")):
        options.setdefault("config", SMALL)
    if name.startswith("clipiqa+"):
        options.setdefault("temperature", 20.0)  # random prompts in so small a space saturate a single pair
    if name.startswith("bpclip"):
        options.setdefault("config", SMALL_BPCLIP)
    return iqguide.create_model(name, weights="random", **options)


@cache
def shared(name):
    return make(name)


@pytest.fixture(params=NAMES)
def model(request):
    return shared(request.param)


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 48)


def test_listed_models():
    assert {"qualiclip", "qualiclip+", "clipiqa", "clipiqa+", "tiny", "bpclip", "bpclip-fr", "bpclip-mini"} <= set(
        iqguide.list_models()
    )


def test_is_frozen_and_in_evaluation_mode(model):
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_scores_and_margins(model, images):
    scores, margins = model(images), model.margin(images)
    assert scores.shape == margins.shape == (3,)
    assert scores.dtype == margins.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert margins.isfinite().all()
    assert scores.unique().numel() == margins.unique().numel() == 3


def test_margin_has_the_order_of_the_score():
    model = make("clipiqa")
    images = torch.rand(8, 3, 32, 32) * torch.rand(8, 1, 1, 1)
    assert torch.equal(model(images).argsort(), model.margin(images).argsort())


@pytest.mark.parametrize("function", ["__call__", "margin"])
def test_a_batch_gives_what_one_at_a_time_gives(model, images, function):
    call = getattr(model, function)
    alone = torch.cat([call(image[None]) for image in images])
    torch.testing.assert_close(call(images), alone, atol=ALONE_TOLERANCE, rtol=ALONE_TOLERANCE)


def test_same_picture_same_score(model, images):
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224), (64, 2048)])
def test_any_size_has_a_score_and_a_gradient(model, size):
    images = torch.rand(1, 3, *size, requires_grad=True)
    score = model.margin(images)
    score.sum().backward()
    assert score.isfinite().all()
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0


def test_4k_with_few_channels():
    with torch.inference_mode():
        assert make("qualiclip")(torch.rand(1, 3, 2160, 3840)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_4k_at_full_size(name):
    model = iqguide.create_model(name, weights="random")
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 2160, 3840)).isfinite().all()


@pytest.mark.parametrize("function", ["__call__", "margin"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_finite_difference(name, function):
    model = make(name, dtype=torch.float64)
    call = getattr(model, function)
    images, direction = torch.rand(8, 3, 40, 33, dtype=torch.float64), torch.randn(8, 3, 40, 33, dtype=torch.float64)
    scores = call(images.requires_grad_(True))
    assert scores.dtype == torch.float64
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    slopes = (gradient * direction).flatten(1).sum(1)
    with torch.no_grad():
        step = 1e-7 * direction
        differences = (call(images + step) - call(images - step)) / 2e-7
    # A picture with a ReLU that is within 1e-7 of its kink differs; a wrong gradient would differ for all eight.
    close = torch.isclose(slopes, differences, rtol=1e-5, atol=1e-7)
    assert close.sum() >= 6, (slopes, differences)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, tolerance, images, device):
    half = make(name, dtype=dtype, device=device)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    images = images.to(device).requires_grad_(True)
    scores = half(images)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), shared(name)(images.cpu()), atol=tolerance, rtol=0)
    half.margin(images.to(dtype)).sum().backward()  # pictures of any floating dtype
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_the_scores_in_float32(name, images, device):
    model = copy.deepcopy(shared(name)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        scores, margins = model(images.to(device)), model.margin(images.to(device))
    assert scores.dtype == margins.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), shared(name)(images), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_made_inside_inference_mode_it_still_has_gradients(name):
    with torch.inference_mode():
        model = make(name, dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors
    assert not any(tensor.is_inference() for tensor in tensors)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    model.margin(images).sum().backward()
    assert images.grad.abs().amax() > 0


def test_a_caller_under_inference_mode_gets_gradients(model):
    with torch.inference_mode():
        given = torch.rand(1, 3, 32, 32)
        with torch.inference_mode(False), torch.enable_grad():
            images = given.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model.margin(images).sum(), images)
        assert model(given).isfinite().all()
    assert gradient.abs().amax() > 0


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_come_from_the_seed_alone(name, images):
    before = torch.get_rng_state()
    first = make(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(first(images), make(name, seed=1)(images))
    assert not torch.equal(first(images), make(name, seed=2)(images))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_holds_all_that_the_score_depends_on(name, images):
    first, second = make(name, seed=1), make(name, seed=2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))
    assert torch.equal(first.margin(images), second.margin(images))


def test_nan_gives_nan_and_spares_the_rest_of_the_batch(model, images):
    broken = images.clone()
    broken[1, 0, 5, 7] = float("nan")
    for call in (model, model.margin):
        assert call(broken).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(3, 64, 64), ValueError, r"shape \(3, 64, 64\); expected \(N, 3, H, W\).*images\[None\]"),
        (torch.rand(1, 1, 64, 64), ValueError, "grey"),
        (torch.rand(1, 4, 64, 64), ValueError, "alpha"),
        (torch.rand(1, 64, 64, 3), ValueError, "movedim"),
        (torch.rand(1, 3, 1, 1), ValueError, "1x1 pixels; expected at least 32x32"),
        (torch.rand(1, 3, 64, 31), ValueError, "31x64 pixels"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, r"uint8; expected floating point.*/ 255"),
        ([[0.5]], TypeError, "list; expected a tensor"),
    ],
)
@pytest.mark.parametrize("function", ["__call__", "margin"])
def test_bad_images_are_refused(model, function, bad, error, message):
    with pytest.raises(error, match=message):
        getattr(model, function)(bad)


def test_unknown_names_dtypes_and_options():
    with pytest.raises(ValueError, match=r"'qualclip'\. .*'qualiclip'\? Known: bpclip, .*tiny"):
        iqguide.create_model("qualclip")
    with pytest.raises(ValueError, match=r"unknown model 'zzz'\. Known"):
        iqguide.create_model("zzz")
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; expected one of torch\.float32"):
        iqguide.create_model("qualiclip", dtype=torch.int8)
    with pytest.raises(TypeError, match=r"qualiclip has no option 'temprature'\. .*'temperature'"):
        iqguide.create_model("qualiclip", weights="random", temprature=1)
    with pytest.raises(TypeError, match="tiny has no option 'pairs'"):
        iqguide.create_model("tiny", weights="random", pairs=())


@pytest.mark.parametrize("name", NAMES)
def test_weights_path_that_does_not_exist(name, tmp_path):
    with pytest.raises(iqguide.models.WeightsError, match=r"no weights file .*nothing\.pt"):
        iqguide.create_model(name, weights=tmp_path / "nothing.pt")


@pytest.mark.parametrize("name", NAMES)
def test_torchs_default_device_is_the_default(name):
    with torch.device("meta"):
        model = make(name)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["tiny", "bpclip-mini", "lite"])
def test_pictures_of_another_range_or_too_small_are_refused(name):
    model = iqguide.create_model(name, weights="random")
    good = torch.rand(1, 3, 64, 64)
    for call in (model, model.margin):
        with pytest.raises(ValueError, match=r"images have values from .* expected .* divide bytes by 255"):
            call(good * 255)
        with pytest.raises(ValueError, match=r"images have values from .* bring .* with images / 2"):
            call(good * 2 - 1)
        with pytest.raises(ValueError, match="31x64 pixels; expected at least 32x32: enlarge them"):
            call(good[..., :31])
        assert call(good * 1.02 - 0.01).isfinite().all()  # what rounding and sharpening do
        assert call(good.where(good > 0.01, torch.nan)).isnan().all()
