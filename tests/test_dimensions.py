"""What BPCLIP's words mean: the table of degradations, and the features of the adjectives."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from iqguide.models.adjectives import FEATURES, adjectives, bundled_features, read_pairs
from iqguide.training import autoencoders, dimensions, distortions, generated_distortions

PAIRS = read_pairs()
NAMES = list(dict.fromkeys(dimension for dimension, _, _ in PAIRS))
KINDS = [*distortions.LADDERS, *generated_distortions.LADDERS, *autoencoders.CHANGES, "round_trips"]


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parents[1] / "recipes" / "adjective_features.py"
    spec = importlib.util.spec_from_file_location("adjective_features", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_degradation_belongs_to_one_dimension():
    listed = [kind for rows in dimensions.WORDS.values() for kinds in rows.values() for kind in kinds]
    assert sorted(listed) == sorted(KINDS)
    assert list(dimensions.WORDS) == NAMES


def test_the_words_of_the_table_are_adjectives_of_their_dimension():
    for dimension, rows in dimensions.WORDS.items():
        positive = {word for name, word, _ in PAIRS if name == dimension}
        for words in rows:
            assert set(words) <= positive


@pytest.mark.parametrize("kind", KINDS)
def test_along_a_whole_ladder_its_own_dimension_falls_by_as_much_as_promised(kind):
    wanted = dimensions.wanted(kind, torch.tensor([-1.0, 0, 2, 4]), PAIRS)
    means = wanted @ dimensions.averages(PAIRS)
    torch.testing.assert_close(means[0], torch.full((6,), dimensions.BEST))
    falls = means[0] - means[3]
    own = NAMES.index(dimensions.DIMENSION_OF[kind])
    assert falls[own].item() == pytest.approx(dimensions.FALL)
    others = {name: falls[n].item() for n, name in enumerate(NAMES) if n != own}
    assert (
        others.pop("overall", 0.0)
        == pytest.approx(dimensions.FALL * dimensions.OVERALL_SHARE if others else 0, abs=1e-6)
        or own == 5
    )
    assert all(abs(fall) < 1e-6 for fall in others.values())
    assert (means[:, own].diff() < 0).all()


def test_an_oversaturated_picture_is_unnatural_and_not_dull():
    falls = dict(
        zip([pair[1] for pair in PAIRS], dimensions.fall_of_pairs("oversaturate", PAIRS).tolist(), strict=True)
    )
    assert falls["natural"] == pytest.approx(3 * dimensions.FALL)
    assert falls["colorful"] == falls["vivid"] == 0


def test_what_is_as_it_should_be_costs_nothing():
    average = dimensions.averages(PAIRS)
    target = dimensions.wanted("jpeg", torch.tensor([-1.0, 1, 3]), PAIRS)[None]
    assert dimensions.meaning(target, target, average) == 0
    off = target.clone()
    off[0, 2, :4] += 0.1  # the sharpness of the last level
    assert dimensions.meaning(off, target, average) > 0


def test_a_pair_is_opened_to_a_right_angle_in_its_own_plane(recipe):
    torch.manual_seed(0)
    near = F.normalize(torch.randn(1, 1, 16) + 0.3 * torch.randn(3, 2, 16), dim=-1).flatten(0, 1)
    opened = recipe.open_pairs(near)
    for before, after in zip(near.view(3, 2, 16), opened.view(3, 2, 16), strict=True):
        assert (before[0] @ before[1]).item() > 0.5
        assert (after[0] @ after[1]).item() == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(F.normalize(after.sum(0), dim=0), F.normalize(before.sum(0), dim=0))
        torch.testing.assert_close(F.normalize(after[0] - after[1], dim=0), F.normalize(before[0] - before[1], dim=0))
    far = torch.eye(4)[:2]
    torch.testing.assert_close(
        recipe.open_pairs(torch.cat([far, -far])[[0, 2, 1, 3]]), torch.cat([far, -far])[[0, 2, 1, 3]]
    )


def test_the_bundled_features_are_what_they_say(recipe):
    features = bundled_features(PAIRS)
    assert features.shape == (40, 384)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(40), atol=2e-3, rtol=0)
    with safe_open(FEATURES, "pt") as file:
        metadata = file.metadata()
    assert tuple(json.loads(metadata["words"])) == adjectives(PAIRS)
    assert "Apache-2.0" in metadata["source"]
    both = F.cosine_similarity(features[0::2], features[1::2])
    torch.testing.assert_close(both, torch.tensor(json.loads(metadata["cosines"])), atol=2e-3, rtol=0)
    assert both.max() < 0.01
    assert min(json.loads(metadata["cosines_of_the_encoder"])) > 0.4  # why they had to be opened


def test_a_word_that_was_not_encoded_is_named():
    from iqguide.errors import WeightsError

    with pytest.raises(WeightsError, match="no adjective 'snappy'"):
        bundled_features((("sharpness", "snappy", "blurry"),))
