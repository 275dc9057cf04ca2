"""`lite`: its trunk against timm's, its promises as a Reward, and the reading of pretrained weights."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

from iqguide.errors import WeightsError
from iqguide.models.efficientnet import STRIDES, WIDTHS, EfficientNetLite0
from iqguide.models.lite import Lite
from iqguide.training.pretrained import load_pretrained


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """timm's network with random weights and random statistics, or the norms would do nothing."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    for name, value in network.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def published(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory):
    """A state dict as publishers write it: other names, the same order (safetensors sorts by name)."""
    path = tmp_path_factory.mktemp("published") / "lite0.safetensors"
    tensors = [value for name, value in theirs.state_dict().items() if "num_batches" not in name]
    torch.save({f"layer {n}": value.clone() for n, value in enumerate(tensors)}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def their_maps(network: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The stem's and the stages' maps of timm's network."""
    maps = [network.bn1(network.conv_stem((images * 255 - 127) / 128))]
    for stage in network.blocks:
        maps.append(stage(maps[-1]))
    return maps


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (33, 47)])
def test_the_trunk_is_timms(theirs, published, size):
    trunk = EfficientNetLite0().double()
    load_pretrained(trunk, published)
    images = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = copy.deepcopy(theirs).double()
    with torch.no_grad():
        for ours, other in zip(trunk(images), their_maps(theirs, images), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


def test_widths_and_strides_are_those_of_the_maps():
    with torch.no_grad():
        maps = EfficientNetLite0().eval()(torch.rand(1, 3, 96, 64))
    assert [plane.shape[1] for plane in maps] == list(WIDTHS)
    assert [tuple(plane.shape[2:]) for plane in maps] == [(96 // stride, 64 // stride) for stride in STRIDES]


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not hold EfficientNet-Lite0"):
        load_pretrained(EfficientNetLite0(), tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def model(published) -> Lite:
    torch.manual_seed(0)
    model = Lite()
    load_pretrained(model.trunk, published)
    return model.eval().requires_grad_(False)


def test_a_batch_gives_what_one_picture_at_a_time_gives(model):
    images = torch.rand(3, 3, 50, 41, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (64, 47)])
def test_any_size_from_32_px_gives_a_score_and_a_gradient(model, size):
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)).requires_grad_()
    score = model(images)
    score.sum().backward()
    assert score.shape == (1,)
    assert 0 < score.item() < 1
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0


def test_the_gradient_is_that_of_finite_differences(published):
    torch.manual_seed(0)
    model = Lite().eval()
    load_pretrained(model.trunk, published)
    model = model.double()
    images = torch.rand(1, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad(model.margin(images).sum(), images)
    step = 1e-7
    with torch.no_grad():
        difference = (model.margin(images + step * direction) - model.margin(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference[0], rtol=1e-4, atol=1e-9)


def test_too_small_pictures_are_refused(model):
    with pytest.raises(ValueError, match="at least 32x32"):
        model(torch.rand(1, 3, 31, 64))
