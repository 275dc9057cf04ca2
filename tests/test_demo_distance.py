"""The distance of benchmarks/demo_distance.py against closed forms, and the script on pictures and a pipeline."""

import re
import sys
from pathlib import Path

import pytest
import torch
from made_photographs import training_folder
from PIL import Image, ImageFilter
from scipy.linalg import sqrtm
from tiny_pipelines import demo_like_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # its scripts are no package
import demo_distance

from iqguide.models.efficientnet import EfficientNetLite0


@pytest.fixture
def draws():
    return torch.randn(2, 200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_distance_of_a_moved_and_widened_cloud(draws):
    cloud, shift = draws[0], torch.arange(6.0, dtype=torch.float64)
    spread = torch.cov(cloud.T).trace().item()
    assert demo_distance.frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-9)
    assert demo_distance.frechet_distance(cloud + shift, cloud) == pytest.approx(shift.square().sum().item())
    # covariances C and 9 C: |means apart|^2 + (3 - 1)^2 tr C
    apart = (2 * cloud.mean(0)).square().sum().item()
    assert demo_distance.frechet_distance(3 * cloud, cloud) == pytest.approx(apart + 4 * spread)


def test_distance_of_two_clouds_is_that_of_the_formula(draws):
    a, b = draws[0] @ torch.rand(6, 6, dtype=torch.float64), draws[1] @ torch.rand(6, 6, dtype=torch.float64)
    first, second = (torch.cov(x.T).numpy() for x in (a, b))
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + (first + second - 2 * sqrtm(first @ second).real).trace()
    assert demo_distance.frechet_distance(a, b) == pytest.approx(expected)
    assert demo_distance.frechet_distance(b, a) == pytest.approx(expected)


def test_blurred_photographs_are_further_away_than_others(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(demo_distance, "REFERENCE", 4)
    folder = training_folder(tmp_path / "data", clean=4, scored=0, side=160)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "eyes.pt")
    for number in range(12):
        photo = Image.open(folder / "pristine" / "images" / f"{number % 4:02}.jpg").resize((128, 128))
        (tmp_path / "blurred").mkdir(exist_ok=True)
        photo.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "blurred" / f"{number:02}.png")
    demo_like_pipeline(tmp_path).save_pretrained(tmp_path / "pipeline")
    demo_distance.main([
        *("--data", str(folder), "--weights", str(tmp_path / "eyes.pt"), "--count", "12", "--batch", "6"),
        *("--pictures", str(tmp_path / "blurred"), "--pipelines", str(tmp_path / "pipeline")),
    ])  # fmt: skip
    rows = re.findall(r"^\| (.+?) \| (\d+) \| -?\d+ \|$", capsys.readouterr().out, re.MULTILINE)
    distance = {name: float(value) for name, value in rows}
    other, mixed, blurred, noise = distance.values()
    assert list(distance)[2:] == [str(tmp_path / "blurred"), str(tmp_path / "pipeline")]
    assert other < min(mixed, blurred, noise)
