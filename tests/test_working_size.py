"""One score for one file: the working size belongs to the model and is applied wherever a picture comes in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import iqguide
from iqguide import FullReference, WeightedSum, cli, create_model, load_images, rank
from iqguide.images import WorkingSize, resize_short_side, to_tensor
from iqguide.models import MODELS, ModelSpec
from iqguide.rewards import Ensemble, Resize, at_working_size, working_size


@pytest.fixture(scope="module")
def model():
    return create_model("tiny")


@pytest.fixture
def files(tmp_path):
    """Pictures above, inside and below the working size of `tiny`."""
    found = []
    for index, (width, height) in enumerate([(900, 700), (200, 160), (70, 60)]):
        y, x = np.mgrid[:height, :width]
        noise = np.random.default_rng(index).integers(0, 12, (height, width, 3))
        pixels = np.stack([x * 200 / width, y * 200 / height, 100 + 0 * x], -1) + noise
        found.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(found[-1])
    return found


def test_one_file_has_one_score_whichever_way_it_comes(files, model, capsys):
    assert cli.main(["score", *map(str, files), "--model", "tiny", "--json", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.err.endswith("3 of 3 images scored by tiny, short side at least 128 and at most 512 px.\n")
    expected = torch.tensor([row["score"] for row in json.loads(said.out)])
    with torch.no_grad():
        by_hand = [model(load_images(path, size=size)) for path, size in zip(files, (512, None, 128), strict=True)]
    torch.testing.assert_close(expected, torch.cat(by_hand), rtol=0, atol=1e-6)
    forms = (files, [Image.open(f) for f in files], [to_tensor(f) for f in files])
    for given in (*forms, [np.asarray(Image.open(f)) for f in files]):
        ranking = rank(given, model)
        torch.testing.assert_close(ranking.scores, expected, rtol=0, atol=1e-5)
        assert ranking.size == WorkingSize(128, 512)
    for file, score in zip(files, expected, strict=True):  # and a batch
        torch.testing.assert_close(rank(load_images(file), model.margin).order, torch.tensor([0]))
        torch.testing.assert_close(rank(load_images(file), model).scores[0], score, rtol=0, atol=1e-5)


def test_it_can_be_switched_off_and_chosen(files, model, capsys):
    with torch.no_grad():
        plain = torch.cat([model(load_images(file)) for file in files])
        at_100 = torch.cat([model(resize_short_side(load_images(file), 100, enlarge=False)) for file in files])
    assert (plain - rank(files, model).scores).abs()[[0, 2]].min() > 1e-5  # or nothing below would be tested
    torch.testing.assert_close(rank(files, model, size=None).scores, plain, rtol=0, atol=2e-6)
    torch.testing.assert_close(rank(files, model, size=100).scores, at_100, rtol=0, atol=1e-5)
    for size, scores in ((0, plain), (100, at_100)):
        assert (
            cli.main(["score", *map(str, files), "--model", "tiny", "--size", str(size), "--json", "--device", "cpu"])
            == 0
        )
        found = [row["score"] for row in json.loads(capsys.readouterr().out)]
        assert found == pytest.approx(scores.tolist(), abs=1e-5)


class Model(torch.nn.Module):
    """A model of a known working size that notes what it is shown."""

    def __init__(self, least, most):
        super().__init__()
        self.spec = ModelSpec("m", "", "", "", native_size=most, least_size=least)
        self.seen = []

    def forward(self, images, reference=None):
        self.seen.append(min(images.shape[-2:]))
        if reference is not None:
            assert images.shape == reference.shape
        return images.mean((1, 2, 3))


def test_each_model_of_a_sum_sees_its_own_size(files):
    small, large, plain = Model(None, 256), Model(128, 512), Model(100, None)
    rank(files, WeightedSum((small, 1.0), (large, 0.5), (lambda x: x.mean((1, 2, 3)), 1.0)))
    assert (small.seen, large.seen) == ([256, 160, 60], [512, 160, 128])
    small.seen, large.seen = [], []
    rank(files[:1], Ensemble([small, large]))
    assert (small.seen, large.seen) == ([256], [512])
    assert working_size(WeightedSum((small, 1.0), (large, 1.0))) == WorkingSize(None, 512)
    assert working_size(WeightedSum((small, 1.0), (plain, 1.0))) == WorkingSize(None, None)
    assert at_working_size(Resize(small, 64)) == Resize(small, 64)  # somebody has said what it shall see
    reward = lambda x: x.mean((1, 2, 3))
    assert at_working_size(reward) is reward


def test_a_reference_is_brought_to_the_same_size(files):
    model = Model(None, 256)
    rank([files[0], files[0]], FullReference(model, load_images(files[0])))
    assert model.seen == [256]


def test_the_catalogue_is_consistent():
    for spec in MODELS.values():
        assert 32 <= spec.min_side <= (spec.least_size or spec.min_side) <= spec.native_size


def test_a_model_from_a_folder_has_its_size_too(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert working_size(type(model).from_pretrained(tmp_path)) == working_size(model) == WorkingSize(128, 512)
    assert iqguide.models.MODELS["tiny"] is model.spec
