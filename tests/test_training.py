"""Training: what it may see, what it is told, and that a run does what its settings say."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from made_photographs import held_out_crops, texture, training_folder
from PIL import Image
from safetensors.torch import load_file
from scipy.sparse.csgraph import connected_components
from scipy.stats import pearsonr
from torch import nn

import iqguide
from iqguide.images import to_pil, to_tensor
from iqguide.models.tiny import Tiny
from iqguide.training import (
    batches,
    calibrate,
    crops,
    data,
    distill,
    duplicates,
    finetune,
    fit_bpclip,
    fit_tiny_head,
    loop,
    objectives,
    schedule,
)
from iqguide.training.config import FinetuneConfig, parse_config
from iqguide.training.run_settings import Started
from iqguide.training.teacher import Squeezenet, ridge_predictions

SMALL = {"crop": 48, "scored_crop": 48, "ladders": 2, "ladder_levels": 3, "scored": 3, "aligned": 2, "cut": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def on_the_cpu():
    """Accelerate keeps its choice of device and precision for the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


# --- photographs ---


def test_near_identical_pictures_stay_on_one_side(tmp_path):
    rng = np.random.default_rng(1)
    pictures = {f"{n:02}": texture(rng, 96) for n in range(18)}
    first = np.asarray(pictures["00"], dtype=float)
    pictures["brighter"] = Image.fromarray((first * 0.8 + 40).astype(np.uint8))
    pictures["smaller"] = pictures["00"].resize((70, 60))
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.jpg", quality=60)
    photographs = [data.Photograph(path) for path in sorted(tmp_path.iterdir())]
    twins = {"00", "brighter", "smaller"}
    sides = set()
    for seed in range(12):
        kept, held = data.split(photographs, seed)
        assert sorted(p.path for p in kept + held) == sorted(p.path for p in photographs)
        names = {p.path.stem for p in held}
        assert twins & names in (set(), twins)
        assert len(names - twins) + bool(twins & names) == 18 // data.HELD_OUT
        sides.add(bool(twins & names))
    assert sides == {False, True}
    assert data.split(photographs, 3) == data.split(photographs, 3)


def test_chains_of_near_identical_pictures_are_one_group(tmp_path):
    """Chains of near-identical pictures, against the components of the whole graph; a flat picture is like none."""
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(5, 16, 16))
    for number in range(40):
        walk = ends[number % 5] + 0.25 * (number // 5) * ends[(number + 1) % 5]
        pixels = np.full((16, 16), 90.0) if number == 17 else 128 + 25 * walk
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    paths = [sorted(tmp_path.iterdir())[n] for n in rng.permutation(40)]
    flat = np.stack([np.asarray(Image.open(path), dtype=float).ravel() for path in paths])
    with np.errstate(invalid="ignore"):
        edges = np.nan_to_num(np.corrcoef(flat)) > 0.95
    component = connected_components(edges)[1]
    expected = [int(np.flatnonzero(component == name)[0]) for name in component]
    assert 6 < len(set(expected)) < 40
    assert max(np.bincount(component)) > edges.sum(1).max()  # a chain, not only pairs
    assert duplicates.alike_groups(paths).tolist() == expected


def test_near_identical_pictures_are_found_without_comparing_all(monkeypatch):
    """The pairs are those of all comparisons, by many fewer: of 1500 thumbnails, with two hundred near twins."""
    rng = np.random.default_rng(2)
    waves = np.cos(np.pi / 16 * np.outer(np.arange(6), np.arange(16) + 0.5))  # smooth, as photographs are
    pictures = np.einsum("nij,ix,jy->nxy", rng.normal(size=(1300, 6, 6)), waves, waves).reshape(1300, 256)
    twins = pictures[:200] + 0.1 * pictures[:200].std(1, keepdims=True) * rng.normal(size=(200, 256))
    stack = np.concatenate([pictures, twins])
    stack = (stack - stack.mean(1, keepdims=True)) / stack.std(1, keepdims=True) / 16
    expected = np.argwhere(np.triu(stack @ stack.T > 0.95, 1))
    compared, blocks = [], duplicates._blocks
    monkeypatch.setattr(duplicates, "_blocks", lambda pairs: compared.append(len(pairs)) or blocks(pairs))
    assert {tuple(sorted(pair)) for pair in duplicates.alike_pairs(stack).tolist()} == {*map(tuple, expected.tolist())}
    assert len(expected) >= 200
    assert compared[0] < 0.01 * 1500 * 1499 / 2


def test_held_out_crops_of_many_photographs_are_so_many_at_most(folder, monkeypatch):
    photographs = data.clean_photographs(folder)
    everything = calibrate.held_out_crops(photographs, 48, 0)
    assert len(everything) == 4 * 10
    monkeypatch.setattr(calibrate, "MOST_CROPS", 39)
    assert len(calibrate.held_out_crops(photographs, 48, 0)) == 4 * 5  # every second photograph
    assert len(calibrate.held_out_crops(photographs, 48, 0, 1)) == 10
    assert calibrate.held_out_crops(photographs, 48, 0)[:4].equal(everything[:4])


def test_the_folder_is_read_in_order(folder):
    clean = data.clean_photographs(folder)
    assert [p.path.name for p in clean] == [f"{n:02}.jpg" for n in range(10)]
    assert {p.mos for p in clean} == {None}
    scored = data.scored_photographs(folder)
    assert [p.mos for p in scored] == [30.0 + 4 * n for n in range(15)]
    assert all(p.path.is_file() for p in scored)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*pristine.images; .*docs/training\.md"):
        data.clean_photographs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mos\.csv"):
        data.scored_photographs(tmp_path)


def test_pictures_are_turned_upright(tmp_path):
    picture = Image.new("L", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert crops.read(tmp_path / "turned.jpg").size == (20, 40)
    assert crops.read(tmp_path / "turned.jpg").mode == "RGB"


def test_pictures_are_read_as_for_scoring(tmp_path):
    rng = np.random.default_rng(2)
    colours = rng.integers(0, 256, (40, 48, 4), dtype=np.uint8)
    Image.fromarray(rng.integers(0, 65536, (40, 48), dtype=np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(colours).save(tmp_path / "alpha.png")
    Image.fromarray(colours[..., :2]).save(tmp_path / "grey_alpha.png")
    Image.fromarray(colours[..., :3]).quantize(16).save(tmp_path / "palette.png", transparency=3)
    for path in sorted(tmp_path.iterdir()):
        assert to_pil(to_tensor(path)).tobytes() == crops.read(path).tobytes(), path
    deep = np.asarray(crops.read(tmp_path / "sixteen.png"))
    assert deep.min() < 3
    assert deep.max() > 252
    assert len(np.unique(deep)) > 200


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("L", "png"), ("CMYK", "jpg"), ("P", "png")]
)
def test_ordinary_pictures_are_read_to_the_bit(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    texture(np.random.default_rng(3), 64).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        assert crops.read(path).tobytes() == image.convert("RGB").tobytes()


def test_twins_of_sixteen_bits_are_found(tmp_path):
    rng = np.random.default_rng(4)
    for name in "ab":
        grey = texture(rng, 96).convert("L")
        grey.save(tmp_path / f"{name}8.png")
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / f"{name}16.png")
    paths = [tmp_path / name for name in ("a8.png", "b8.png", "a16.png", "b16.png")]
    assert duplicates.alike_groups(paths).tolist() == [0, 1, 0, 1]


def test_random_crops_are_squares_of_the_size_they_should_have():
    ramp = np.broadcast_to(np.arange(400) * 255 / 399, (300, 400))
    picture = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    rng, slopes = np.random.default_rng(0), []
    for _ in range(200):
        crop = crops.to_tensor(crops.random_crop(picture, 50, rng, most=2.0)).float()
        assert crop.shape == (3, 50, 50)
        slopes.append((crop[0, :, 40:].mean() - crop[0, :, :10].mean()).item() / 40)
    sides = np.abs(slopes) * 399 / 255 * 50  # grey per pixel -> width of the square
    assert sides.min() > 48
    assert sides.max() < 102
    assert sides.min() < 55 < 90 < sides.max()
    assert 0.35 < np.mean(np.array(slopes) < 0) < 0.65  # mirrored
    assert crops.random_crop(picture.resize((30, 30)), 50, rng).size == (50, 50)


def test_random_crops_can_be_reduced_at_least_so_much():
    ramp = np.broadcast_to(np.arange(400) * 255 / 399, (300, 400))
    picture, rng = Image.fromarray(ramp.astype(np.uint8)).convert("RGB"), np.random.default_rng(0)
    squares = [crops.to_tensor(crops.random_crop(picture, 50, rng, most=4.0, least=2.0)).float()[0] for _ in range(100)]
    sides = np.array([abs((c[:, 40:].mean() - c[:, :10].mean()).item()) / 40 * 399 / 255 * 50 for c in squares])
    assert 97 < sides.min() < 110
    assert 180 < sides.max() < 203


@pytest.mark.data
def test_no_twins_straddle_the_split_of_the_real_photographs(data_dir):
    def thumbnail(photograph):
        with Image.open(photograph.path) as image:
            image.draft("RGB", (48, 48))  # decoded small: a tenth of the time
            colours = image.convert("RGB").resize((24, 24), Image.Resampling.BOX)
        values = np.asarray(colours, dtype=float)
        return ((values - values.mean()) / values.std()).ravel()

    for photographs in (data.clean_photographs(data_dir), data.scored_photographs(data_dir)):
        kept, held = data.split(photographs)
        assert len(held) == pytest.approx(len(photographs) / 5, rel=0.05)
        a, b = (np.stack([thumbnail(p) for p in side]) for side in (kept, held))
        assert (a @ b.T / a.shape[1]).max() < 0.97  # another thumbnail than the split's own


# --- objectives ---


def test_ladder_ranking_by_hand():
    scores, severity = torch.tensor([[0.0, -1.0, -1.5]]), torch.tensor([[0.0, 2.0, 3.0]])
    # pairs (0, 1), (0, 2), (1, 2): wanted leads 1, 1.5, 0.5; leads 1, 1.5, 0.5
    assert objectives.ladder_ranking(scores, severity).item() == pytest.approx(math.log(2))
    turned = objectives.ladder_ranking(scores.flip(1), severity)
    wanted = np.logaddexp(0, [1 - -0.5, 1.5 - -1.5, 0.5 - -1.0]).mean()
    assert turned.item() == pytest.approx(wanted)


def test_ladder_ranking_compares_inside_a_row_and_not_equals():
    scores = torch.tensor([[0.0, 5.0, -1.0], [9.0, 9.0, 9.0]], requires_grad=True)
    severity = torch.tensor([[0.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    loss = objectives.ladder_ranking(scores, severity)
    assert loss.item() == pytest.approx(np.logaddexp(0, [1 - 1, 1 - 6]).mean())
    loss.backward()
    assert not scores.grad[1].any()
    assert (scores.grad[0].sign() == torch.tensor([-1.0, -1.0, 1.0])).all()  # descent lifts the better, sinks the worse


def test_consistency_by_hand():
    scores, twins = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.1, 1.5, 4.0])
    assert objectives.consistency(scores, twins, 0.2).item() == pytest.approx((0 + 0.3 + 0.8) / 3)


def test_correlation_is_pearsons():
    a, b = torch.randn(20), torch.randn(20)
    expected = (1 - pearsonr(a.numpy(), b.numpy())[0]) / 2
    assert objectives.correlation(a, b).item() == pytest.approx(expected, abs=1e-5)
    assert objectives.correlation(a, 3 * a + 1).item() == pytest.approx(0, abs=1e-6)
    assert objectives.correlation(a, -a).item() == pytest.approx(1, abs=1e-6)


def test_restoration_of_a_score_whose_gradient_leads_home():
    clean, degraded = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    misalignment, energy, gradient = objectives.restoration(
        lambda x: -(x - clean).square().flatten(1).sum(1) / 2, degraded, clean
    )
    way = (clean - degraded).flatten(1)
    torch.testing.assert_close(misalignment, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(energy, way.square().mean(1))
    torch.testing.assert_close(gradient, clean - degraded)


def test_restoration_measures_the_angle():
    clean, degraded = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    clean[0, 0, 0, 0] = 1  # the way home is one pixel
    ahead, aside = clean[0].clone(), torch.zeros(3, 4, 4)
    aside[1, 2, 3] = 1
    for gradient, misalignment in ((ahead, 0), (aside, 1), (-ahead, 2), (ahead + aside, 1 - math.sqrt(0.5))):
        found, _, _ = objectives.restoration(lambda x, g=gradient: (x * g).flatten(1).sum(1), degraded, clean)
        assert found.item() == pytest.approx(misalignment, abs=1e-6)


def test_a_climb_is_a_step_of_known_length():
    images, gradient = (
        torch.full((3, 3, 8, 8), 0.5),
        torch.randn(3, 3, 8, 8) * torch.tensor([1e-6, 1, 1e4]).view(3, 1, 1, 1),
    )
    step = torch.tensor([0.0, 0.02, 0.05])
    moved = objectives.climb(images, gradient, step) - images
    torch.testing.assert_close(moved.square().mean((1, 2, 3)).sqrt(), step)
    assert (moved * gradient >= 0).all()
    assert objectives.climb(images, gradient, torch.full((3,), 9.0)).aminmax() == (0, 1)


def test_only_gains_that_restore_are_earned():
    clean, severity = torch.full((4, 3, 8, 8), 0.5), torch.full((4,), 2.0)
    degraded = clean + 0.2
    climbed = torch.stack([clean[0] + 0.1, clean[1] + 0.1, clean[2] + 0.3, clean[3]])  # half, half, away, all the way
    gain = torch.tensor([1.0, 1.5, 0.25, 1.0])
    found = objectives.overclaim(gain, degraded, climbed, clean, severity)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 0.25, 0.0]), atol=1e-4, rtol=0)


def test_restoration_can_be_trained():
    """Its gradient in the weights, by finite differences in float64."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 1, 3)).double()
    clean, degraded = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64)

    def loss():
        parts = objectives.restoration(lambda x: network(x).flatten(1).mean(1), degraded, clean)
        return sum(part.sum() for part in parts)

    weight = network[0].weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    values = []
    for step in (1e-5, -1e-5):
        weight.data += step * direction
        values.append(loss().item())
        weight.data -= step * direction
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


# --- the teacher ---


def test_ridge_finds_a_linear_map_out_of_fold():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 12))
    values = features @ rng.normal(size=12) + 50
    predicted = ridge_predictions(features, values, np.arange(240) // 2)
    assert pearsonr(predicted, values)[0] > 0.99
    assert np.abs(predicted - values).mean() < 0.2 * values.std()


def test_ridge_repeats_no_label_that_it_was_given():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 300)), 4, 0)  # four equal rows a group, more features than rows
    values = np.repeat(rng.normal(size=60), 4)  # nothing that can be learnt
    assert abs(pearsonr(ridge_predictions(features, values, np.arange(240) // 4), values)[0]) < 0.3


def test_squeezenet_is_that_of_torchvision(squeezenet, tmp_path):
    reference, fires, weights = squeezenet
    torch.save(weights, tmp_path / "teacher.pt")
    teacher = Squeezenet(tmp_path / "teacher.pt")
    images = torch.rand(2, 3, 96, 80)
    x = images.flip(1) * 255 - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    expected = []
    with torch.no_grad():
        for place, layer in enumerate(reference):
            x = layer(x)
            if fires.get(place) in (3, 5, 7, 9):
                expected += [x.mean((2, 3)), x.std((2, 3))]
    found = teacher(images)
    assert found.shape == (2, 5120)
    expected = torch.cat(expected, 1)
    error = (found[:, :2560] - expected).norm() / expected.norm()
    assert error < 0.02  # it computes in bfloat16
    first, last = teacher.maps(images, (3, 9))
    assert first.shape == (2, 128, *[math.ceil((((side - 7) // 2 + 1) - 3) / 2) + 1 for side in (96, 80)])
    torch.testing.assert_close(last.mean((2, 3)), found[:, 2 * (128 + 256 + 384) :][:, :512])


def test_mimicry_is_the_squared_error_in_units_of_the_spread():
    target = 5 * torch.randn(4, 3, 8, 8) + 2
    centred = (target - target.mean((0, 2, 3), keepdim=True)) / target.std((0, 2, 3), keepdim=True)
    assert distill.mimicry([torch.zeros_like(target)], [target]).item() == pytest.approx(1 / 1.1, rel=0.02)
    assert distill.mimicry([centred / 1.1**0.5], [target]).item() < 0.005


def test_distilling_lowers_the_distance_from_the_teacher(folder, squeezenet, on_the_cpu, tmp_path, monkeypatch):
    torch.save(squeezenet[2], tmp_path / "teacher.pt")
    mimicry, found = distill.mimicry, []

    def noted(guesses, maps):
        found.append(mimicry(guesses, maps))
        return found[-1]

    monkeypatch.setattr(distill, "mimicry", noted)
    flags = {"data": folder, "teacher": tmp_path / "teacher.pt", "out": tmp_path, "steps": 12, "batch": 6, "crop": 48}
    distill.main([f"--{key}={value}" for key, value in flags.items()])
    assert sum(found[-3:]) < sum(found[:3])
    iqguide.create_model("tiny", weights=tmp_path / "tiny.safetensors")


# --- batches ---


@pytest.fixture(scope="module")
def clean_crops(folder):
    return batches.Crops(data.clean_photographs(folder), 64, 2, np.random.default_rng(0))


def draws(step=0):
    return finetune.draws(FinetuneConfig(), 0, step)


def test_ladders_start_clean_and_get_worse(clean_crops):
    images, originals, severities = batches.ladders(clean_crops, 6, 4, 48, *draws())
    assert images.shape == (24, 3, 48, 48)
    assert severities.shape == (6, 4)
    assert not severities[:, 0].any()
    assert (severities.diff(dim=1) > 0).all()
    assert severities.max() <= batches.severity("jpeg", torch.tensor([4.0]))
    windows = (clean_crops.images.float() / 255).unfold(2, 48, 1).unfold(3, 48, 1)
    for clean in images[::4]:  # each is a window of one of the crops
        assert (windows.movedim(1, 3) == clean).flatten(3).all(3).any()
    # every rung has its own original: the very pixels that were degraded
    assert torch.equal(originals[::4], images[::4])
    distance = (images - originals).abs().mean((1, 2, 3)).view(6, 4)
    others = (images - originals.view(6, 4, 3, 48, 48).roll(1, 1).flatten(0, 1)).abs().mean((1, 2, 3)).view(6, 4)
    assert (distance[:, 1:] > 0).all()
    assert distance[:, 1:].median() < others[:, 1:].median() / 2


def test_severity_orders_kinds_and_levels():
    level = torch.tensor([0.0, 2.0, 4.0])
    torch.testing.assert_close(batches.severity("jpeg", level), 0.7 + 0.95 * level)
    assert (batches.severity("desaturate", level) < batches.severity("jpeg", level)).all()


def test_pairs_are_twins_pixel_by_pixel(clean_crops):
    degraded, clean, severity = batches.pairs(clean_crops, 12, 48, *draws())
    assert severity.shape == (12,)
    assert ((severity > 0) & (severity <= batches.severity("jpeg", torch.tensor(4.0)))).all()
    assert degraded.shape == clean.shape == (12, 3, 48, 48)
    distance = (degraded - clean).abs().mean((1, 2, 3))
    others = (degraded - clean.roll(1, 0)).abs().mean((1, 2, 3))
    assert (distance > 0).all()
    assert distance.median() < others.median() / 2
    assert "color_shift" not in batches.RESTORABLE


def test_crops_of_scored_pictures_are_cut_anew_at_every_visit(folder, monkeypatch):
    photographs = data.scored_photographs(folder)[:3]
    for memory in (2**30, 0):  # kept, or read again at every visit
        monkeypatch.setattr(batches.ScoredPictures, "MEMORY", memory)
        scored = batches.ScoredPictures(photographs, 48)
        seen = [scored.draw(1, np.random.default_rng(visit)) for visit in range(12)]
        assert all(crop.shape == (1, 3, 48, 48) and crop.max() <= 1 for crop, _, _ in seen)
        assert len({crop.numpy().tobytes() for crop, _, _ in seen}) == 12
        assert [label.item() for _, label, _ in seen] == pytest.approx([(34 - 75) / 14] * 12)
        assert torch.equal(scored.draw(1, np.random.default_rng(3))[0], seen[3][0])
        assert len(scored.kept) == (1 if memory else 0)


def test_every_picture_is_visited_once_in_every_pass():
    passes = [[batches.visit(7, 2, place, 9) for place in range(9 * n, 9 * n + 9)] for n in range(4)]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert passes[0] != [batches.visit(8, 2, place, 9) for place in range(9)]


def test_a_large_picture_is_not_labelled_by_a_corner_of_it(tmp_path):
    """A crop of a picture of 3000x4000 px shows a fair share of it, which is reduced to its working side first."""
    ramp = np.linspace(0, 255, 4000)[None, :, None].repeat(3000, 0).repeat(3, 2).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "large.png")
    photographs = [data.Photograph(tmp_path / "large.png", 50.0)]
    config = FinetuneConfig(data=tmp_path)
    scored = batches.ScoredPictures(photographs, config.scored_crop, config.working_side)
    spans = [np.ptp(scored.draw(0, np.random.default_rng(n))[0].numpy()) for n in range(8)]
    assert min(spans) > 0.3  # of the width; without reducing it is 0.056 to 0.08
    assert FinetuneConfig(dataset="koniq-10k", root=tmp_path).working_side == 384
    assert FinetuneConfig(dataset="spaq", root=tmp_path).working_side == 448
    assert FinetuneConfig(dataset="spaq", root=tmp_path, short_side=0).working_side == 0


def test_crops_are_mirrored_both_ways_where_that_is_asked_for():
    corner = np.zeros((40, 40, 3), np.uint8)
    corner[:10, :10] = 255
    picture = Image.fromarray(corner)
    for vertical, expected in ((False, {(0, 0), (0, 1)}), (True, {(0, 0), (0, 1), (1, 0), (1, 1)})):
        places = set()
        for number in range(40):
            crop = crops.random_crops([picture], 40, np.random.default_rng(number), 1.0, vertical=vertical)[0]
            bright = np.argwhere(np.asarray(crop)[..., 0] > 128).mean(0)
            places.add(tuple(int(place > 20) for place in bright))
        assert places == expected


# --- settings ---


def test_no_flags_are_the_defaults():
    assert parse_config([]) == (FinetuneConfig(), Started())


@pytest.mark.parametrize("field", dataclasses.fields(FinetuneConfig), ids=lambda field: field.name)
def test_every_setting_is_a_flag(field):
    flag, default = f"--{field.name.replace('_', '-')}", getattr(FinetuneConfig(), field.name)
    values = {bool: True, int: 70, float: 0.125, dict: {"a": 1}, tuple: ("a", "b"), str: "qualiclip"}
    value = values.get(type(default), Path("a/b"))
    given = [
        flag,
        *(value if isinstance(value, tuple) else [json.dumps(value) if isinstance(value, dict) else str(value)]),
    ]
    choices = {"mixed_precision": "fp16", "tracker": "wandb", "dataset": "spaq", "twins": "published"}
    if field.name in choices:
        value = choices[field.name]
        given = [flag, value]
    other = {}
    if field.name in ("dataset", "root"):  # they belong together
        other = {"dataset": "spaq", "root": Path("a/b")}
        given = ["--dataset", "spaq", "--root", "a/b"]
    if field.name in ("scale", "lower_is_better"):  # those of a data set
        other = {"dataset": "spaq", "root": Path("a/b")}
        value = (1.0, 5.0) if field.name == "scale" else True
        given = ["--dataset", "spaq", "--root", "a/b", flag, *(["1", "5"] if field.name == "scale" else [])]
    if field.name == "short_side":
        value, given = 70, [flag, "70"]
    if field.name == "prompt_weight":
        other = {"model": "qualiclip"}
        given += ["--model", "qualiclip"]
    config, started = parse_config([flag] if value is True and not other else given)
    assert config == dataclasses.replace(FinetuneConfig(), **(other | {field.name: value}))
    assert started == Started()
    assert parse_config(["--resume"])[1] == Started(resume=True)
    assert parse_config(["--overwrite"])[1] == Started(overwrite=True)


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    printed = capsys.readouterr().out
    assert "of AdamW (0.02)" in " ".join(printed.split())


def test_learning_rate_warms_up_and_falls():
    config = FinetuneConfig(steps=1000, lr=0.01)
    rates = [loop.learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01 / 100)
    assert rates[99] == pytest.approx(0.01, rel=0.03)
    assert rates[-1] == pytest.approx(0.01 / 50, rel=0.01)
    assert rates[500] == pytest.approx(0.01 * 0.51)
    assert max(rates) == max(rates[99:101])


def test_draws_depend_on_seed_process_and_step_alone():
    def numbers(seed, process, step):
        rng, generator = finetune.draws(FinetuneConfig(seed=seed), process, step)
        return rng.random(), torch.rand(1, generator=generator).item()

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    others = [numbers(*key) for key in ((1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1))]
    assert len({first for first, _ in others}) == len({second for _, second in others}) == 5


def test_ema_is_a_moving_average():
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(1.0)
    model.num_batches_tracked.fill_(9)
    schedule.update_ema(average, model, 0, 0.998)  # decay 1/10
    assert average.weight.tolist() == pytest.approx([2.8, 2.8])
    assert average.running_mean.tolist() == pytest.approx([0.9, 0.9])
    assert average.num_batches_tracked == 9
    schedule.update_ema(average, model, 10**6, 0.998)  # decay 0.998
    assert average.weight.tolist() == pytest.approx([2.8 + 0.002 * 0.2] * 2)


# --- runs ---


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    return FinetuneConfig(data=folder, out=out, steps=4, checkpoint_every=2, **SMALL)


@pytest.fixture(scope="module")
def straight(config, on_the_cpu):
    finetune.train(config)
    return config.out


def test_a_run_leaves_a_model_that_loads(config, straight):
    model = iqguide.create_model("tiny", weights=straight / "tiny.safetensors")
    trained, fresh = (load_file(straight / "tiny.safetensors"), Tiny().state_dict())
    assert trained.keys() == {key for key in fresh if "num_batches" not in key}
    assert {value.dtype for value in trained.values() if value.ndim > 1} == {torch.float16}
    # the scales: margin 0 with spread 1 over crops of the held-out clean photographs
    margins = model.margin(held_out_crops(config))
    assert margins.mean().item() == pytest.approx(0, abs=0.05)  # the file is in half precision
    assert margins.std().item() == pytest.approx(1, abs=0.05)


def test_a_run_records_its_settings_and_figures(config, straight):
    record = json.loads((straight / "run.json").read_text())
    assert record["step"] == 4
    assert record["validation"] is None
    assert record["config"].keys() == {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert record["config"]["crop"] == 48
    assert record["config"]["data"] == str(config.data)
    assert record["held_out"].keys() == {"srcc", "plcc", "ladders", "worst_ladder"}
    assert -1 <= record["held_out"]["srcc"] <= 1
    assert 0 <= record["held_out"]["worst_ladder"] <= record["held_out"]["ladders"] <= 1


def test_a_resumed_run_is_the_straight_run_bit_for_bit(config, straight, tmp_path, monkeypatch):
    config = dataclasses.replace(config, out=tmp_path)
    with monkeypatch.context() as patch:
        step = finetune.train_step

        def interrupted(state, *arguments):
            if state.step == 3:
                raise KeyboardInterrupt
            return step(state, *arguments)

        patch.setattr(finetune, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.train(config)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-0000002"]
    torch.manual_seed(99)  # nothing may hang on torch's own generator
    finetune.train(config, Started(resume=True))
    assert_equal_checkpoints(straight / "checkpoint-0000004", tmp_path / "checkpoint-0000004")
    assert (straight / "tiny.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


def assert_equal_checkpoints(first, second):
    for name in ("model", "average", "optimizer"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]), (name, key)
    assert (first / "state.json").read_text() == (second / "state.json").read_text()


def test_the_head_is_centred_on_what_the_first_steps_see(config, on_the_cpu):
    accelerator = Accelerator()
    state, batch_dataset = finetune.start(config, accelerator), finetune.gather(config)
    images = torch.rand(2, 3, 48, 48)
    finetune.centre(state, batch_dataset, config, accelerator)
    network = state.model.model
    assert network.pooled_std.min() > 0
    assert (network.pooled_std != 1).all()
    for key, value in state.average.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[key]), key
    assert torch.equal(state.average(images), network.raw(images))


def test_a_second_run_starts_from_the_first(straight, config, on_the_cpu):
    state = finetune.start(dataclasses.replace(config, init=straight / "tiny.safetensors"), Accelerator())
    images = torch.rand(2, 3, 48, 48)
    loaded = iqguide.create_model("tiny", weights=straight / "tiny.safetensors")
    torch.testing.assert_close(state.average.eval()(images), loaded.raw(images))


def test_the_losses_fall_on_what_is_seen_again_and_again(config, on_the_cpu):
    config = dataclasses.replace(
        config, steps=1000, lr=2e-3, warmup=10, alignment_weight=0.0, penalty_weight=0.0, attack_weight=0.0
    )
    accelerator = Accelerator()
    state, batch_dataset = finetune.start(config, accelerator), finetune.gather(config)
    batch = finetune.BatchDataset(batch_dataset, config)[0]
    found = [finetune.train_step(state, [batch], config, accelerator) for _ in range(48)]
    totals = [sum(losses.values()) for losses in found]
    assert totals[-1] < 0.8 * totals[0], totals
    assert found[-1]["mos"] < found[0]["mos"]
    assert found[-1]["ranking"] < found[0]["ranking"]


def test_denoised_predictions_must_fit_the_crops(config, tmp_path):
    torch.save({"clean": torch.zeros(2, 3, 64, 64)}, tmp_path / "cache.pt")
    with pytest.raises(ValueError, match=r"cache\.pt are 64 px; expected 48: use --crop 64"):
        finetune.gather(dataclasses.replace(config, denoised=tmp_path / "cache.pt"))


def test_resuming_from_nothing_is_refused(config, on_the_cpu, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*new to resume from"):
        finetune.train(dataclasses.replace(config, out=tmp_path / "new"), Started(resume=True))


def write_garbage(path):
    path.write_bytes(b"no weights at all")
    return path


@pytest.mark.parametrize(
    ("command", "files", "message"),
    [
        (fit_tiny_head, {"data": "nowhere", "init": "tiny"}, r"nowhere.*mos\.csv"),
        (
            fit_tiny_head,
            {"data": "folder", "init": "gone.safetensors"},
            r"there is no weights file .*gone\.safetensors",
        ),
        (
            fit_tiny_head,
            {"data": "folder", "init": "garbage.safetensors"},
            r"garbage\.safetensors cannot be read as weights",
        ),
        (
            fit_tiny_head,
            {"data": "folder", "init": "tiny", "denoised": "garbage.pt"},
            r"garbage\.pt cannot be read as weights",
        ),
        (
            fit_tiny_head,
            {"data": "folder", "init": "tiny", "second-opinion": "gone.safetensors"},
            r"no weights file .*gone\.safetensors",
        ),
        (
            fit_tiny_head,
            {"data": "folder", "init": "tiny", "second-opinion": "other.safetensors"},
            r"other\.safetensors has no config; expected a file",
        ),
        (fit_bpclip, {"data": "folder", "init": "gone.safetensors"}, r"there is no weights file .*gone\.safetensors"),
        (fit_bpclip, {"data": "folder", "init": "mini", "denoised": "garbage.pt"}, r"garbage\.pt cannot be read as"),
        (fit_bpclip, {"data": "nowhere", "init": "mini"}, r"nowhere.*mos\.csv"),
        (distill, {"data": "folder", "teacher": "gone.pt"}, r"there is no weights file .*gone\.pt"),
        (distill, {"data": "folder", "teacher": "garbage.pt"}, r"garbage\.pt cannot be read as weights"),
        (distill, {"data": "folder", "teacher": "other.pt"}, r"other\.pt has no conv1\.weight; expected SqueezeNet"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(
    folder, on_the_cpu, tmp_path, monkeypatch, command, files, message
):
    for module in (fit_tiny_head, fit_bpclip):
        monkeypatch.setattr(module, "gather_ladders", lambda *given: pytest.fail("work has begun"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    assets = Path(iqguide.__file__).parent / "models/assets"
    known = {"folder": folder, "tiny": assets / "tiny.safetensors", "mini": assets / "bpclip-mini.safetensors"}
    (tmp_path / "other.safetensors").write_bytes((assets / "tiny.safetensors").read_bytes())
    for name in ("garbage.pt", "garbage.safetensors"):
        write_garbage(tmp_path / name)
    flags = [f"--{key}={known.get(name, tmp_path / name)}" for key, name in files.items()]
    small = ["--crop=48", "--steps=1"] + (
        ["--each=1", "--large=1", "--large-crop=64"] if command is fit_tiny_head else []
    )
    with pytest.raises(SystemExit, match=rf"^iqguide: error: .*{message}") as error:
        command.main([*flags, f"--out={tmp_path / 'out'}", *small])
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "flag", "expected"),
    [
        (fit_tiny_head, "--steps=0", "steps is 0; expected 1 or more"),
        (fit_tiny_head, "--dropout=1", "dropout is 1.0; expected 0 to 0.99"),
        (fit_tiny_head, "--second-crop=16", "second_crop is 16; expected 32 or more"),
        (fit_tiny_head, "--second-weight=nan", "second_weight is nan; expected 0 or more"),
        (fit_bpclip, "--small=0", "small is 0; expected 1 or more"),
        (fit_bpclip, "--lr=inf", "lr is inf; expected 0 or more, a finite number"),
        (distill, "--crop=8", "crop is 8; expected 32 or more"),
    ],
)
def test_a_number_outside_its_range_is_refused(capsys, command, flag, expected):
    files = ["--data=", "--out=", "--init=" if command in (fit_tiny_head, fit_bpclip) else "--teacher="]
    with pytest.raises(SystemExit) as error:
        command.main([*files, flag])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"iqguide: error: {expected}.\n"


def test_accelerate_launches_it(folder, tmp_path):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["-m", "iqguide.training.finetune", "--data", str(folder), "--out", "run", "--steps", "3", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["step"] == 3
    iqguide.create_model("tiny", weights=tmp_path / "run" / "tiny.safetensors")


def test_the_score_is_fitted_to_people_and_never_against_the_margin():
    margins = np.linspace(-2, 3, 60)
    opinions = 1 / (1 + np.exp(-1.5 * margins - 0.3))
    assert calibrate.fit_logistic(margins, opinions) == pytest.approx((1.5, 0.3), rel=1e-4)
    scale, shift = calibrate.fit_logistic(margins, 1 - opinions)  # a model that has learnt the opposite
    assert scale == calibrate.FLATTEST
    assert (1 / (1 + np.exp(-scale * margins - shift))).mean() == pytest.approx((1 - opinions).mean(), rel=1e-3)
