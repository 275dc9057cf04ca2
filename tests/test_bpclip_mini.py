"""The weights of `bpclip-mini` that come with the package, out of the box."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import texture
from tiny_pipelines import tiny_pipeline
from torch.nn import functional as F

import iqguide
from iqguide import cli
from iqguide.guidance.diffusers import guided
from iqguide.models import BPCLIPConfig, save_model
from iqguide.models.adjectives import ENCODER, bundled_features
from iqguide.models.cache import ASSETS
from iqguide.training import distortions, finetune
from iqguide.training.config import FinetuneConfig
from iqguide.training.parts import checked_parts

PHOTOGRAPHS = Path(__file__).parent / "photographs"


@pytest.fixture(scope="module")
def model():
    return iqguide.create_model("bpclip-mini")


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "one.png"
    texture(np.random.default_rng(0), 96).save(path)
    return path


def test_it_is_small_and_its_words_are_those_of_an_encoder(model):
    assert sum(p.numel() for p in model.parameters()) <= 4.5e6
    assert (ASSETS / "bpclip-mini.safetensors").stat().st_size <= 9e6
    assert model.config.text_source == ENCODER
    expected = F.normalize(bundled_features(model.config.pairs), dim=1)
    torch.testing.assert_close(model.text_features, expected, atol=1e-3, rtol=0)


def test_a_file_of_the_former_one_still_loads(tmp_path):
    sizes = {"backbone": "resnet18", "channels": (16, 16, 16, 16), "batch_norm": "trained", "width": 16, "heads": 2}
    config = BPCLIPConfig(**sizes, mask_width=8, text_dim=16)
    former = iqguide.create_model("bpclip-mini", weights="random", config=config)
    save_model(former, tmp_path / "former.safetensors")
    again = iqguide.create_model("bpclip-mini", weights=tmp_path / "former.safetensors")
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(images), former(images), atol=1e-2, rtol=0)


def test_the_gradient_is_finite_everywhere(model):
    images = torch.rand(2, 3, 96, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.margin(images).sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


def test_it_is_explained_on_the_command_line(photograph, capsys):
    assert cli.main(["score", str(photograph), "--model", "bpclip-mini", "--explain", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = found[0] if isinstance(found, list) else found
    assert len(row["parts"]["adjectives"]) == 40
    assert len(row["parts"]["dimensions"]) == 6


def test_it_ranks(model):
    images = torch.rand(4, 3, 64, 64)
    ranking = iqguide.rank(images, model)
    torch.testing.assert_close(torch.as_tensor(ranking.scores).float(), model(images), atol=1e-4, rtol=0)


def test_it_guides(model):
    pipe, inputs = tiny_pipeline("stable-diffusion")
    with guided(pipe, iqguide.RewardGuidance(model)) as run:
        pipe(**inputs)
    assert any(entry.skipped is None for entry in run.log)


@pytest.mark.slow
@pytest.mark.data
def test_it_agrees_with_people_and_orders_ladders(model, data_dir):
    """On pictures that it never saw; the margins are below what was measured: see its card."""
    config = FinetuneConfig(data=data_dir)
    figures = finetune.measure(model, config, checked_parts(config))
    assert figures["srcc"] > 0.65
    assert figures["ladders"] > 0.77


@pytest.mark.parametrize(
    ("kind", "dimension"),
    [
        ("gaussian_blur", "sharpness"),
        ("enlarge", "sharpness"),
        ("white_noise", "noise"),
        ("grain", "noise"),
        ("darken", "brightness"),
        ("flatten_contrast", "contrast"),
        ("jpeg", "overall"),
    ],
)
def test_its_dimensions_mean_what_they_say(model, kind, dimension):
    """On clean photographs the dimension that a degradation is for falls, and of all six it falls most."""
    falls = []
    for path in sorted(PHOTOGRAPHS.iterdir()):
        clean = iqguide.load_images(path)[..., :160, :160]
        bad = distortions.distort(clean, kind, torch.tensor([3.0]), torch.Generator().manual_seed(0))
        before, after = (model.describe(image).parts["dimensions"] for image in (clean, bad))
        falls.append({name: before[name] - after[name] for name in before})
    mean = {name: np.mean([fall[name] for fall in falls]) for name in falls[0]}
    assert mean[dimension] > 0
    assert max(mean, key=mean.get) == dimension
