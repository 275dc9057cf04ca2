"""The training of `lite` and of the `tiny` that it teaches, end to end at tiny size, and what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import texture, training_folder

from iqguide import create_model
from iqguide.errors import WeightsError
from iqguide.models.hub import save_model
from iqguide.models.lite import Lite
from iqguide.models.weights import read_weights
from iqguide.training import fit_lite_head, ladder_cache, teach, train_lite
from iqguide.training.data import clean_photographs, scored_photographs, split
from iqguide.training.kinds import all_kinds
from iqguide.training.ladder_draws import Drawer
from iqguide.training.pictures import Pictures, crops, read_pictures

SMALL = ["--scored", "8", "--kinds", "2", "--photos", "2", "--rungs", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = training_folder(tmp_path_factory.mktemp("data"), clean=10, scored=15, side=96)
    (root / "biq2021" / "images").mkdir(parents=True)
    rng = np.random.default_rng(7)
    rows = ["image,mos"]
    for number in range(15):
        texture(rng, 96).save(root / "biq2021" / "images" / f"{number:02}.jpg", quality=95)
        rows.append(f"{number:02}.jpg,{0.3 + 0.04 * number:.2f}")
    (root / "biq2021" / "mos.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return root


@pytest.fixture(scope="module")
def cache(data) -> Path:
    path = data / "ladders.safetensors"
    ladder_cache.main(["--data", str(data), "--out", str(path), "--count", "24", "--crop", "64", "--workers", "0"])
    return path


@pytest.fixture(scope="module")
def pictures(data) -> Pictures:
    return read_pictures(data)


@pytest.fixture(scope="module")
def trained(data, cache, tmp_path_factory) -> Path:
    """Folder of both models after two steps each, from random features."""
    out = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    save_model(Lite(), out / "random.safetensors")
    common = ["--data", str(data), "--caches", str(cache), "--out", str(out), "--steps", "2", *SMALL]
    lite = ["--init", str(out / "random.safetensors"), "--crop", "64", "--ladder-crop", "48"]
    train_lite.main([*common, *lite])
    tiny = ["--teacher", str(out / "lite.safetensors"), "--crop", "48", "--scored-crop", "64", "--unlabelled", "4"]
    teach.main([*common, *tiny])
    return out


@pytest.mark.parametrize("name", ["lite", "tiny"])
def test_a_run_writes_a_calibrated_model_that_names_what_it_never_saw(trained, pictures, name):
    path = trained / f"{name}.safetensors"
    model = create_model(name, weights=path)
    clean = crops(pictures, pictures.clean(kept=False), 96, 1.0, np.random.default_rng(0))
    assert abs(model.margin(clean).mean().item()) < 3
    metadata = read_weights(path)[1]
    held_out = {n for n, kept in zip(pictures.names, pictures.kept, strict=True) if not kept}
    assert set(json.loads(metadata["held_out"])) == held_out
    assert metadata["split"] == "0"


def test_two_steps_move_the_trunk_and_the_head(trained):
    before, after = (create_model("lite", weights=trained / f"{n}.safetensors") for n in ("random", "lite"))
    moved = {name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not a.equal(b)}
    assert "trunk.stem.0.conv.weight" in moved
    assert "head.0.weight" in moved


@pytest.mark.parametrize("way", [0.0, 0.5])
def test_the_head_goes_part_of_the_way_and_the_trunk_stays(trained, data, cache, tmp_path, way):
    start = trained / "lite.safetensors"
    flags = ["--steps", "3", "--scored", "4", "--ladders", "4", "--batch", "4", "--rungs", "3", "--ladder-crop", "48"]
    files = ["--data", str(data), "--init", str(start), "--caches", str(cache)]
    ends = {}
    for share in {way, 1.0}:
        out = tmp_path / str(share)
        fit_lite_head.main([*files, *flags, "--out", str(out), "--way", str(share)])
        ends[share] = create_model("lite", weights=out / "lite.safetensors").state_dict()
    before = create_model("lite", weights=start).state_dict()
    for name, value in before.items():
        if name.startswith("trunk."):
            assert torch.equal(ends[1.0][name], value)
        elif name.startswith("head."):
            assert not torch.equal(ends[1.0][name], value)
            expected = torch.lerp(value, ends[1.0][name], way)
            torch.testing.assert_close(ends[way][name], expected, rtol=1e-3, atol=1e-4)


def test_the_split_is_that_of_the_other_trainings(data, pictures):
    for photographs, origin in ((clean_photographs(data), -1), (scored_photographs(data), 0)):
        held_out = {photograph.path.name for photograph in split(list(photographs))[1]}
        assert {Path(pictures.names[row]).name for row in pictures.scored(origin, kept=False)} == held_out


def test_other_splits_hold_out_other_pictures_and_as_many(pictures):
    other = pictures.split(1)
    assert (other.kept != pictures.kept).any()
    for origin in (-1, 0, 1):
        assert len(other.scored(origin, kept=False)) == len(pictures.scored(origin, kept=False)) > 0


def test_ladders_begin_at_good_pictures_of_the_training_part(pictures):
    bases = pictures.ladder_bases()
    assert pictures.kept[bases].all()
    opinion, origin = pictures.opinion[bases], pictures.origin[bases]
    assert (opinion[origin == 0] > 55).all()
    assert (opinion[origin == 1] > 78).all()
    assert set(pictures.clean()) <= set(bases)


def test_crops_are_squares_of_the_pictures(pictures):
    rows = pictures.clean()[:3]
    for row, crop in zip(rows, crops(pictures, rows, 96, 1.0, np.random.default_rng(0)), strict=True):
        whole = pictures.images[row].float() / 255
        assert torch.equal(crop, whole) or torch.equal(crop.flip(2), whole)


def drawer(pictures, cache, without=()) -> Drawer:
    return Drawer(pictures, [ladder_cache.read_cache(cache)], without, 48, 4, 0)


def test_a_ladder_begins_clean_and_gets_worse(pictures, cache):
    source = drawer(pictures, cache)
    for _ in range(30):
        drawn = source.draw(2)
        assert drawn.images.shape[:2] == (2, 4)
        assert drawn.images.shape[-2:] == (48, 48)
        assert 0 <= drawn.images.min() <= drawn.images.max() <= 1
        assert (drawn.severity[:, 0] == 0).all()
        assert (drawn.severity.diff(dim=1) >= 0).all()
        assert drawn.severity.max() > 0


def test_what_is_left_out_is_never_drawn(pictures, cache):
    source = drawer(pictures, cache, without=("compression", "enlargement", "smoothing"))
    assert not source.caches
    assert source.recompressed == 0
    assert {kind.group for kind in source.kinds} & {"compression", "enlargement", "smoothing"} == set()


def test_ladders_of_held_out_pictures_are_not_learnt_from(pictures, cache):
    known = ladder_cache.read_cache(cache)
    held_out = {n for n, kept in zip(pictures.names, pictures.kept, strict=True) if not kept}
    learnt = sum(len(images) for images, _ in drawer(pictures, cache).caches)
    assert learnt == sum(source not in held_out for source in known.sources) < len(known.sources)


def test_a_cache_is_read_as_it_was_written(data, cache, tmp_path):
    known = ladder_cache.read_cache(cache)
    assert known.images.shape == (24, 6, 3, 64, 64)
    assert set(known.groups) == {"compression", "smoothing"}
    part = known.part(np.arange(3, 5))
    ladder_cache.write_cache(part, tmp_path / "part.safetensors")
    again = ladder_cache.read_cache(tmp_path / "part.safetensors")
    assert torch.equal(again.images, known.images[3:5])
    assert again.kinds == known.kinds[3:5]


def test_what_is_no_cache_is_said(tmp_path):
    save_model(Lite(), tmp_path / "lite.safetensors")
    for name, message in (("missing.safetensors", "no cache"), ("lite.safetensors", "no whole cache")):
        with pytest.raises(WeightsError, match=message):
            ladder_cache.read_cache(tmp_path / name)


def test_codecs_lose_more_the_lower_the_quality(cache):
    known = ladder_cache.read_cache(cache)
    coded = known.part(np.array([group == "compression" for group in known.groups])).images.float()
    errors = (coded - coded[:, :1]).square().mean((2, 3, 4))
    assert (errors[:, -1] > errors[:, 1]).all()


def test_every_kind_has_a_name_of_its_own_and_severities_that_never_fall():
    kinds = all_kinds()
    assert len({kind.name for kind in kinds}) == len(kinds)
    for kind in kinds:
        severity = kind.severity(torch.arange(5.0))
        assert (severity.diff() >= 0).all()
        assert 0 < severity[-1] < 5


def test_the_loss_of_ladders_is_least_for_the_right_order():
    severity = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    right = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
    assert train_lite.ladder_loss(right, severity, 0.3) < train_lite.ladder_loss(right.flip(1), severity, 0.3)
    equal = torch.zeros(1, 4)
    assert train_lite.ladder_loss(right, severity, 0.3) < train_lite.ladder_loss(equal, severity, 0.3)


def test_agreement_is_least_where_scores_are_the_labels():
    labels = torch.tensor([0.3, -1.0, 2.0, 0.9])
    best = train_lite.agreement(labels, labels)
    for worse in (-labels, labels * 0.1, labels + 2, labels[[1, 0, 2, 3]]):
        assert train_lite.agreement(worse, labels) > best
