"""The table of the quality models: what is held out stays out, and a fit becomes the record that it should."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photographs import texture, training_folder
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # its scripts are no package

import quality_bpclip
import quality_guidance
import quality_models
import quality_protocol
import quality_qualiclip
import quality_reference
import quality_tiny
import tables
import tiny_quality

from iqguide.training import batches, fit_bpclip, fit_tiny_head
from iqguide.training.data import split

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TINY = tuple(text.split() for text in ("--crop 32 --each 1 --large-crop 32 --large 1", "--steps 2 --batch 4"))
MINI = tuple(
    text.split()
    for text in (
        "--crop 32 --large-crop 32 --small 2 --large 1 --scored-crop 32",
        "--steps 2 --ladders 4 --scored 4",
    )
)


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    monkeypatch.setattr(batches, "LADDER_KINDS", ("gaussian_blur", "darken"))
    monkeypatch.setattr(quality_protocol, "DRAWS", 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A training folder of small pictures and one series in the layout of tid2013-6ref."""
    root = training_folder(tmp_path_factory.mktemp("data"), 10, 30, 64)
    scores = [f"{number:02}.jpg,{20 + 2 * number}" for number in range(30)]
    (root / "live-challenge" / "mos.csv").write_text("\n".join(["image,mos", *scores]) + "\n", "utf-8")
    images = root / "tid2013-6ref" / "images"
    images.mkdir(parents=True)
    rng, rows = np.random.default_rng(1), ["image,reference,distortion,level,mos"]
    for name in ("i01", "i01_01_1", "i01_01_2"):
        texture(rng, 64).save(images / f"{name}.png")
    rows += [f"i01_01_{level}.png,i01.png,noise,{level},5" for level in (1, 2)]
    (root / "tid2013-6ref" / "mos.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def known(data):
    return quality_protocol.pictures(data)


def test_the_first_split_is_the_packages_own(known):
    aside = known.held_out(0)
    assert [p for p, out in zip(known.scored, aside, strict=True) if out] == split(known.scored)[1]
    assert 0 < aside.sum() < len(aside)
    assert (aside != known.held_out(1)).any()


def test_figures_are_of_the_held_out_part_and_of_the_series(known):
    aside = known.held_out(3)
    scores = np.random.default_rng(0).normal(size=int(aside.sum()))
    found = quality_protocol.figures(known, 3, scores, np.array([2.0, 1.0, 1.5]))  # i01, level 1, level 2
    assert found["n"] == aside.sum()
    assert found["srcc"] == pytest.approx(spearmanr(scores, known.opinions[aside])[0])
    assert found["falls"] == {"noise": 0.5, "all": 0.5}


def test_a_fit_is_kept_and_not_measured_again(tmp_path):
    keys, asked = [{"split": 0}, {"split": 1}], []
    measure = lambda key: asked.append(key) or {"srcc": key["split"] / 2}
    first = quality_protocol.collect(tmp_path / "a.json", keys[:1], measure)
    both = quality_protocol.collect(tmp_path / "a.json", keys, measure)
    assert first == [{"split": 0, "srcc": 0.0}]
    assert both == [{"split": 0, "srcc": 0.0}, {"split": 1, "srcc": 0.5}]
    assert asked == keys


def labels_seen(module, monkeypatch):
    """The labels of every fit, one tensor each."""
    fit, seen = module.fit, []
    monkeypatch.setattr(
        module, "fit", lambda model, known, *rest: seen.append(known.labels) or fit(model, known, *rest)
    )
    return seen


def test_heads_of_tiny_learn_nothing_of_the_held_out_part(data, known, tmp_path, monkeypatch):
    seen = labels_seen(fit_tiny_head, monkeypatch)
    records = quality_tiny.run(data, tmp_path, known, "default", 2, *TINY)
    assert [(record["variant"], record["split"]) for record in records] == [
        ("tiny, the file itself", 0), ("tiny", 0), ("tiny", 1),
    ]  # fmt: skip
    for number, labels in enumerate(seen):
        kept = known.opinions[~known.held_out(number)] * 100
        np.testing.assert_allclose(np.sort((labels * 14 + 75).numpy()), np.sort(kept), rtol=1e-4)
    assert quality_tiny.run(data, tmp_path, known, "default", 2, *TINY) == records
    assert len(seen) == 2


def test_fits_of_bpclip_learn_nothing_of_the_held_out_part(data, known, tmp_path, monkeypatch):
    seen = labels_seen(fit_bpclip, monkeypatch)
    monkeypatch.setattr(quality_bpclip, "SEEDS", 1)
    small = {
        name: dataclasses.replace(config, width=16, text_dim=16) for name, config in quality_bpclip.ABLATIONS.items()
    }
    monkeypatch.setattr(quality_bpclip, "ABLATIONS", small)
    records = quality_bpclip.run("ablations", data, tmp_path, known, "default", 1, *MINI)
    assert [record["variant"] for record in records] == list(small)
    sizes = {record["variant"]: record["parameters"] for record in records}
    assert sizes["no weight branch"] < sizes["top-down"] == sizes["bottom-up, weight branch, adjectives"]
    kept = np.sort(known.opinions[~known.held_out(0)])
    assert len(seen) == len(small)
    for labels in seen:
        assert len(labels) == 3 * len(kept)
        np.testing.assert_allclose(np.sort(labels.numpy())[::3], kept)


def test_whole_pictures_are_judged_as_the_model_judges_them(data, known, tmp_path):
    """Maps that were pooled ahead of time, of a picture of live-challenge, against the model itself."""
    eyes = quality_bpclip.create_model("bpclip-mini")
    model = quality_bpclip.fresh(eyes, eyes.config, 0)
    path = known.scored[0].path
    seen = quality_bpclip.whole_pictures(eyes, [path])
    image = quality_bpclip.to_tensor(quality_bpclip.read(path))[None].float() / 255
    with torch.no_grad():
        assert quality_bpclip.judged(model, seen)[0] == pytest.approx(model.raw(image).item(), abs=0.01)
    assert torch.equal(model.pools[0].mask[0].weight, eyes.pools[0].mask[0].weight)
    assert not torch.equal(model.pools[0].project.weight, eyes.pools[0].project.weight)


def test_a_qualiclip_is_trained_without_scores(data, known, tmp_path):
    sizes = {"layers": [1, 1, 1, 1], "width": 8, "embed_dim": 16}
    small = {"options": {"config": sizes}, "steps": 2, "ladders": 1, "levels": 2, "crop": 32, "cut": 1}
    config = dataclasses.replace(quality_qualiclip.CONFIG, **small)
    records = quality_qualiclip.run(data, tmp_path, known, 2, config)
    assert [record["split"] for record in records] == [0, 1]
    assert config.mos_weight == config.squared_weight == config.validation == 0
    assert records[0]["srcc"] != records[1]["srcc"]
    assert records[0]["falls"] == records[1]["falls"]


def test_guidance_grade_fine_tuning_is_compared_with_as_many_steps_without_it(data, known, tmp_path, monkeypatch):
    small = {"steps": 1, "crop": 32, "cut": 1, "ladders": 1, "scored": 2, "scored_crop": 32, "aligned": 1}
    configs = {"tiny": dataclasses.replace(quality_guidance.CONFIGS["tiny"], **small)}
    weights = {"tiny": "default"}
    monkeypatch.setattr(quality_guidance, "PAIRS", 8)
    records = quality_guidance.run(data, tmp_path, known, weights, None, configs=configs, seeds=0)
    assert [(record["model"], record["way"]) for record in records] == [("tiny", way) for way in quality_guidance.WAYS]
    assert len({record["plcc"] for record in records}) == 3
    assert all(-1 < record["way_back"] < 1 for record in records)
    runs = [json.loads(path.read_text())["config"] for path in tmp_path.glob("*/run.json")]
    assert sorted(run["alignment_weight"] for run in runs) == [0, 1]


def test_a_gradient_that_points_to_the_clean_picture_has_the_cosine_1(data, monkeypatch):
    degraded, clean = torch.rand(2, 8, 3, 32, 32)
    monkeypatch.setattr(batches, "pairs", lambda *_: (degraded, clean, torch.ones(8)))

    class Distance(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def margin(self, images):
            return self.sign * (images - clean).square().sum((1, 2, 3))

    assert quality_guidance.way_back(Distance(-1), data, 8, 32) == pytest.approx(1, abs=1e-3)
    assert quality_guidance.way_back(Distance(1), data, 8, 32) == pytest.approx(-1, abs=1e-3)


def test_models_with_and_without_a_reference_are_asked_the_same(data, known, tmp_path, monkeypatch):
    small = {"steps": 1, "crop": 32, "cut": 1, "ladders": 1, "ladder_levels": 2}
    monkeypatch.setattr(quality_reference, "PHOTOGRAPHS", 2)
    config = dataclasses.replace(quality_reference.CONFIG, **small)
    weights = {"tiny": "default", "bpclip-mini": "default"}
    records = quality_reference.run(data, tmp_path, known, weights, config, 40)
    assert [record["model"] for record in records] == ["psnr", "tiny", "bpclip-mini", "bpclip-fr"]
    for record in records:
        assert 0 <= record["falls"] <= 1
        assert -1 <= record["worst"] <= record["order"] <= 1
        assert {"tid_falls", "tid_order"} <= set(record)
    config = json.loads(next(tmp_path.glob("*/run.json")).read_text())["config"]
    assert config["mos_weight"] == config["squared_weight"] == 0
    assert "| PSNR | yes |" in quality_models.report({"reference": records})


def test_the_order_over_photographs_is_that_of_the_levels(data, monkeypatch):
    """A reward that counts what was lost is in order over all photographs; one that looks at the photograph is not."""
    monkeypatch.setattr(tiny_quality, "LADDERS", {"darken": None})
    monkeypatch.setattr(
        tiny_quality,
        "distort",
        lambda images, kind, level, generator: images - 0.1 * level.view(-1, 1, 1, 1) - 0.1,
    )
    paths = sorted((data / "pristine" / "images").iterdir())[:4]
    lost = quality_reference.on_ladders(lambda images, reference: (images - reference).mean((1, 2, 3)), paths, 40)
    assert lost == {"falls": 1.0, "order": pytest.approx(1), "worst": pytest.approx(1)}
    constant = iter(range(10))
    guessed = quality_reference.on_ladders(
        lambda images, reference: next(constant) + (images - reference).mean((1, 2, 3)), paths, 40
    )
    assert guessed["falls"] == 1.0
    assert guessed["order"] < 0.6


def test_every_picture_of_tid_meets_its_own_reference(known, monkeypatch):
    shades = {"i01": 0.9, "i01_01_1": 0.7, "i01_01_2": 0.2}  # by what is taken off the reference: 0, 0.2 and 0.7
    load = lambda path: torch.full((1, 3, 40, 40), shades[path.stem])
    monkeypatch.setattr(quality_reference, "load_images", load)
    assert quality_reference.on_tid(quality_reference.psnr, known) == {"tid_falls": 1.0, "tid_order": pytest.approx(1)}
    brighter = quality_reference.on_tid(lambda images, reference: (reference - images).mean((1, 2, 3)), known)
    assert brighter == {"tid_falls": 0.0, "tid_order": pytest.approx(-1)}


def test_psnr_is_that_of_the_formula():
    images, reference = torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    images[0] += 0.1
    torch.testing.assert_close(quality_reference.psnr(images, reference), torch.tensor([20.0, 100.0]))


def test_publishing_keeps_the_other_parts(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- quality-models -->\n<!-- /quality-models -->\n")
    monkeypatch.setattr(quality_models, "README", readme)
    monkeypatch.setattr(quality_models, "RESULTS", tmp_path)
    falls = dict.fromkeys(quality_models.DISTORTIONS, 0.9)
    figures = {"srcc": 0.5, "plcc": 0.6, "plcc_fitted": 0.7, "falls": falls, "intervals": {"srcc": [0.4, 0.6]}}
    quality_models.publish({"tiny": [{"variant": "tiny", **figures}, {"variant": "tiny", **figures, "srcc": 0.7}]})
    quality_models.publish({"ablations": [{"variant": "top-down", "parameters": 2_300_000, **figures}]})
    text = readme.read_text()
    assert "| tiny | 2 | 0.600 ± 0.141 | 0.600 ± 0.000 | 0.700 ± 0.000 | 0.500 (0.400 to 0.600) | 90% |" in text
    assert "| top-down | 2.3 M | 1 | 0.500 | 0.600 | 0.700 | 90.0% |" in text
    assert list(json.loads((tmp_path / "quality_models.json").read_text())) == ["tiny", "ablations"]


def test_the_readme_has_the_place_for_the_tables():
    assert tables.README.read_text().count("quality-models -->") == 2
