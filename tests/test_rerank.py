"""Ranking: known orders, stable ties, and nothing that depends on the batch size or on how the pictures come."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import iqguide
from iqguide.images import ImageError, save_image, to_pil
from iqguide.rerank import Ranking, equal_sized, mean_rank, rank
from iqguide.search.result import SearchResult


def mean(images):
    return images.mean((1, 2, 3))


def flat(*levels, size=(32, 32)):
    return torch.cat([torch.full((1, 3, *size), level) for level in levels])


def test_a_known_order():
    images = flat(0.2, 0.8, 0.5)
    ranking = rank(images, mean)
    assert ranking.order.tolist() == [1, 2, 0]
    torch.testing.assert_close(ranking.scores, torch.tensor([0.2, 0.8, 0.5]))
    assert ranking.scores.dtype == torch.float32
    assert ranking.images is images
    assert len(ranking) == 3
    assert torch.equal(ranking.best, images[1])
    assert torch.equal(ranking.top(2), images[[1, 2]])
    assert len(ranking.top(9)) == 3
    with pytest.raises(ValueError, match="k is 0"):
        ranking.top(0)
    assert isinstance(ranking, iqguide.Ranking)


def test_ties_keep_the_order_they_came_in():
    ranking = rank(torch.rand(100, 3, 8, 8), lambda x: torch.zeros(len(x)), batch_size=7)
    assert ranking.order.tolist() == list(range(100))


def network():
    torch.manual_seed(3)
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3))
    return lambda images: conv(images).mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batch_size_does_not_matter(batch_size):
    images, reward = torch.rand(11, 3, 16, 16), network()
    whole = rank(images, reward, batch_size=11)
    ranking = rank(images, reward, batch_size=batch_size)
    torch.testing.assert_close(ranking.scores, whole.scores, rtol=0, atol=1e-6)
    assert ranking.order.tolist() == whole.order.tolist()
    assert not ranking.scores.requires_grad


def test_tensor_pil_arrays_and_paths_agree(tmp_path):
    images = (torch.rand(5, 3, 32, 40) * 255).round() / 255
    pictures = [to_pil(image) for image in images]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for picture, path in zip(pictures, paths, strict=True):
        save_image(picture, path)
    reward = network()
    reference = rank(images, reward)
    for sequence in (
        pictures,
        paths,
        [str(p) for p in paths],
        [np.asarray(p) for p in pictures],
        list(images.split(1)),
    ):
        ranking = rank(sequence, reward, batch_size=2)
        torch.testing.assert_close(ranking.scores, reference.scores, rtol=0, atol=1e-6)
        assert ranking.best is sequence[int(reference.order[0])]
        assert ranking.top(2) == [sequence[i] for i in reference.order[:2]] or isinstance(
            sequence[0], (np.ndarray, torch.Tensor)
        )


def test_pictures_of_different_sizes_in_one_call():
    sizes = [(32, 32), (32, 32), (40, 36), (32, 32), (40, 36)]
    pictures = [Image.new("RGB", size, (i * 50, 0, 0)) for i, size in enumerate(sizes)]
    seen = []
    ranking = rank(pictures, lambda x: seen.append(tuple(x.shape)) or mean(x))
    assert ranking.order.tolist() == [4, 3, 2, 1, 0]
    assert [shape[0] for shape in seen] == [2, 1, 1, 1]


def test_no_more_than_one_batch_is_read_ahead():
    read = []

    def images():
        for i in range(6):
            read.append(i)
            yield torch.zeros(1, 3, 8, 8)

    batches = equal_sized(images(), 2)
    assert len(next(batches)) == 2
    assert read == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_broken_picture_or_score_is_ranked_last(value, batch_size, caplog):
    images = flat(0.1, 0.9, 0.3)
    images[1, 2, 5, 7] = value
    ranking = rank(images, mean, batch_size=batch_size)
    assert ranking.order.tolist() == [2, 0, 1]
    assert ranking.scores.isfinite().tolist() == [True, False, True]
    assert ranking.images is images
    assert "1 of 3 images have no finite score and are ranked last: [1]" in caplog.text
    for pictures in (list(images.split(1)), [image.permute(1, 2, 0).numpy() for image in images]):
        assert rank(pictures, mean, batch_size=batch_size).order.tolist() == [2, 0, 1]
    broken = rank(flat(0.1, 0.9, 0.3), lambda x: mean(x).where(mean(x) < 0.5, value), batch_size=batch_size)
    assert broken.order.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="no score of 2 is a finite number"):
        rank(images[[1, 1]], mean, batch_size=batch_size)


def test_a_ranking_of_sound_pictures_says_nothing(caplog):
    rank(flat(0.1, 0.9), mean)
    assert caplog.text == ""


def test_errors_say_which_and_why(tmp_path):
    with pytest.raises(ValueError, match=r"returned shape \(3, 1\); expected \(3,\)"):
        rank(flat(0.1, 0.2, 0.3), lambda x: mean(x)[:, None])
    with pytest.raises(ValueError, match=r"returned shape \(\)"):
        rank(flat(0.1), lambda x: x.mean())
    for nothing in ([], torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match="got no images"):
            rank(nothing, mean)
    with pytest.raises(ValueError, match="batch_size is 0"):
        rank(flat(0.1), mean, batch_size=0)
    with pytest.raises(ValueError, match="holds 2 images; expected 1"):
        rank([flat(0.1, 0.2)], mean)
    with pytest.raises(ImageError, match=r"images\[None\]"):
        rank(torch.rand(3, 8, 8), mean)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"a\.png is not a picture"):
        rank([tmp_path / "a.png"], mean)


def test_a_module_gets_the_images_on_its_device(device):
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("one", torch.ones(1))

        def forward(self, images):
            return images.mean((1, 2, 3)) * self.one

    images = flat(0.2, 0.8)
    for given in (images, images.to(device), list(images.split(1))):
        ranking = rank(given, Mean().to(device))
        assert ranking.order.tolist() == [1, 0]
        assert ranking.scores.device.type == "cpu"
        assert len(ranking.top(1)) == 1


def test_mean_rank_needs_no_common_scale():
    a = torch.tensor([0.1, 0.9, 0.5])
    b = torch.tensor([-300.0, 1000.0, 2000.0])
    torch.testing.assert_close(mean_rank(a, b), torch.tensor([0.0, 0.75, 0.75]))
    torch.testing.assert_close(mean_rank(a), torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(mean_rank(torch.tensor([1.0, 1.0, 0.0])), torch.tensor([0.75, 0.75, 0.0]))
    torch.testing.assert_close(
        mean_rank(torch.tensor([0.1, math.nan, 0.9, 0.5]), torch.tensor([3.0, 9.0, 1.0, 2.0])),
        torch.tensor([0.5, math.nan, 0.5, 0.5]),
        equal_nan=True,
    )
    with pytest.raises(ValueError, match="of one length"):
        mean_rank(a, b[:2])


def test_a_ranking_is_frozen_and_remembers_how_to_make_each_again():
    scores, order = torch.tensor([0.0, 1.0]), torch.tensor([1, 0])
    ranking = SearchResult(["a", "b"], scores, order, seeds=(4, 5), settings={"steps": 3})
    assert isinstance(ranking, Ranking)
    assert ranking.best == "b"
    assert ranking.seeds[int(ranking.order[0])] == 5
    with pytest.raises(AttributeError):
        ranking.seeds = None
