"""The benchmarks: judges against closed forms and real photographs, the harness on a real pipeline at tiny size."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny_pipelines import demo_like_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # its scripts are no package

import artefacts
import degradation_judge
import demo_costs
import demo_pictures
import demo_quality
import demo_samples
import demo_statistics
import niqe
import tables
import tiny_quality
from degradation_judge import Examples, Network, loss_of
from degradations import KINDS, degrade
from judges import judges
from photographs import clean_crops, crops, split, to_tensor

from iqguide import RewardGuidance, create_model

# ---- natural statistics


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0])
def test_ggd_estimator_finds_shape_and_deviation(shape):
    samples = stats.gennorm.rvs(shape, scale=1.7, size=200_000, random_state=0)
    found, deviation = niqe.fit_ggd(torch.from_numpy(samples))
    assert found.item() == pytest.approx(shape, rel=0.03)
    assert deviation.item() == pytest.approx(stats.gennorm.std(shape, scale=1.7), rel=0.01)


def aggd_samples(shape, left, right, count, rng):
    """Samples of the two-sided density: each side a generalised Gaussian, weighted by its scale."""
    side = rng.random(count) < left / (left + right)
    size = np.abs(stats.gennorm.rvs(shape, size=count, random_state=rng)) / stats.gennorm.std(shape)
    return np.where(side, -left, right) * size


@pytest.mark.parametrize(("shape", "left", "right"), [(0.7, 1.0, 2.0), (2.0, 1.5, 0.5), (1.0, 1.0, 1.0)])
def test_aggd_estimator_finds_shape_and_both_deviations(shape, left, right):
    samples = aggd_samples(shape, left, right, 400_000, np.random.default_rng(0))
    found = niqe.fit_aggd(torch.from_numpy(samples))
    assert [value.item() for value in found] == pytest.approx([shape, left, right], rel=0.04)


def test_aggd_mean_feature_is_the_mean_of_the_samples():
    samples = torch.from_numpy(aggd_samples(1.3, 0.6, 1.4, 64 * 64 * 40, np.random.default_rng(1)))
    shape, left, right = niqe.fit_aggd(samples)
    mean = (right - left) * torch.exp(
        torch.lgamma(2 / shape) - 0.5 * (torch.lgamma(1 / shape) + torch.lgamma(3 / shape))
    )
    assert mean.item() == pytest.approx(samples.mean().item(), rel=0.05)


def test_white_noise_has_gaussian_coefficients():
    luma = 128 + 20 * torch.randn(1, 1, 256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coefficients, deviation = niqe.normalised(luma)
    assert coefficients.mean().abs() < 0.02
    assert deviation.mean().item() == pytest.approx(20, rel=0.1)
    assert niqe.fit_ggd(coefficients.flatten())[0] > 1.9  # at least as flat-topped as a Gaussian


def test_distance_is_that_of_two_gaussians():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = niqe.features(images)[0][0]
    assert values.shape == (9, 36)
    mean, covariance = torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64)
    judged = niqe.NaturalStatistics({"mean": mean, "covariance": covariance})(images)
    pooled = (np.eye(36) + np.cov(values.numpy(), rowvar=False)) / 2
    difference = values.mean(0).numpy()
    assert -judged[0].item() == pytest.approx(np.sqrt(difference @ np.linalg.inv(pooled) @ difference), rel=1e-5)


# ---- the degradation judge


def test_network_is_small_and_takes_any_size():
    network = Network().eval()
    assert sum(p.numel() for p in network.parameters()) <= 1_000_000
    for size in ((32, 48), (129, 97)):
        logits, strengths = network(torch.rand(2, 3, *size))
        assert logits.shape == strengths.shape == (2, 1 + len(KINDS))


@pytest.fixture
def photo(tmp_path):
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40), (160, 160), mode="bicubic")[0].clamp(0, 1)
    Image.fromarray((smooth.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_interrupted_training_goes_on(photo, tmp_path, monkeypatch):
    checkpoint, batches = tmp_path / "judge.pt", []
    draw = Examples.batch

    def interrupted(examples, *size):
        batches.append(size)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return draw(examples, *size)

    monkeypatch.setattr(Examples, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        degradation_judge.train([photo], 1, checkpoint, batch=8, side=32, save_every=0)
    spent = torch.load(checkpoint, weights_only=True)["seconds"]
    assert spent > 0
    network = degradation_judge.train([photo], spent / 60 + 1e-6, checkpoint, batch=8, side=32)
    assert len(batches) == 5  # one step was left of the time
    assert not network.training
    assert not checkpoint.exists()


def test_network_learns(photo):
    images, kinds, strengths = Examples([photo], 8, seed=0).batch(24, 48)
    assert images.shape == (24, 3, 48, 48)
    assert (strengths[kinds == 0] == 0).all()
    network = Network(8)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = loss_of(network, images, kinds, strengths)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_degradations_grow_with_strength(kind):
    yy, xx = np.mgrid[:128, :128] / 128
    image = np.stack([yy, (np.sin(40 * xx) + 1) / 3, xx * yy], -1)
    image = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    change = [
        np.mean(
            [np.abs(degrade(image, kind, s, np.random.default_rng(n)).astype(int) - image).mean() for n in range(8)]
        )
        for s in (0.1, 0.5, 0.9)
    ]
    assert 0 < change[0] < change[1] < change[2]


@pytest.mark.data
@pytest.mark.parametrize(("kind", "strength"), [("blur", 0.6), ("noise", 0.7), ("blocks", 0.6)])
def test_judges_put_held_out_crops_above_their_degraded_twins(data_dir, kind, strength):
    held_out = split(data_dir)[1]
    clean = clean_crops(held_out[:40], 1, seed=5)
    pixels = (clean.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    rng = np.random.default_rng(0)
    degraded = to_tensor([degrade(p, kind, strength, rng) for p in pixels])
    for name, judge in judges().items():
        assert (judge(degraded) < judge(clean)).float().mean() >= 0.75, name


@pytest.mark.data
def test_no_photograph_is_on_both_sides(data_dir):
    fit, held_out = split(data_dir)
    assert not set(fit) & set(held_out)
    assert len(held_out) == pytest.approx(len(fit) / 4, abs=1)
    sizes = {crop.size for crop in crops(held_out[0], 3, np.random.default_rng(0))}
    assert sizes == {(128, 128)}


# ---- artefact measures


def test_a_picture_has_left_the_range_if_its_twin_is_inside():
    values = {"unguided": [1, 2, 9, -5], "guided": [1, 7, 3, -4]}  # the second leaves 0 to 5, the third comes in
    measured = {method: {"hf_share": np.array(own)} for method, own in values.items()}
    rows = demo_statistics.artefact_table(measured, {"hf_share": (0, 5)}).splitlines()
    assert rows[-2:] == ["| unguided | 50% (1.50) |", "| guided | 50% (2.00), 1 left |"]


def test_high_frequency_energy_of_a_sine():
    x = torch.arange(128) / 128
    high, low = (0.5 + 0.1 * torch.sin(2 * torch.pi * cycles * x).expand(1, 3, 128, 128) for cycles in (48, 8))
    assert 10 ** artefacts.hf_energy(high).item() == pytest.approx(0.1**2 / 2, rel=0.02)
    assert artefacts.hf_energy(low).item() < -5
    assert 10 ** artefacts.hf_share(high).item() == pytest.approx(1, rel=0.02)


def test_saturation_of_flat_colours():
    colours = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.4, 0.2, 0.3]]).view(3, 3, 1, 1).expand(3, 3, 8, 8)
    assert artefacts.chroma(colours).tolist() == pytest.approx([1, 0, 0.2])
    assert artefacts.saturation(colours).tolist() == pytest.approx([1, 0, 0.5])


# ---- tables and statistics


def test_writing_a_table_twice_changes_nothing_more(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- x -->\nold\n<!-- /x -->\n\nafter\n")
    tables.write_between(page, "x", tables.table(("a", "b"), [[1, 2]]))
    once = page.read_text()
    tables.write_between(page, "x", tables.table(("a", "b"), [[1, 2]]))
    assert page.read_text() == once
    assert once == "before\n\n<!-- x -->\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n<!-- /x -->\n\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        tables.write_between(page, "y", "text")


def test_the_page_has_every_marker():
    page = tables.README.read_text()
    for name in ("demo-quality", "demo-costs", "demo-samples", "demo-distance", "tiny-quality", "judges"):
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1


def test_compare_counts_the_lower_half():
    before = np.array([0.0, 1, 2, 3])
    result = demo_statistics.compare(before, np.array([1.0, 0, 2.5, 3.5]))
    spread = before.std(ddof=1)
    assert result["wins_lower"] == 0.5
    assert result["mean"] == pytest.approx(0.25 / spread)
    assert result["lower"] == pytest.approx(0)
    assert result["upper"] == pytest.approx(0.5 / spread)
    assert result["low"] <= result["mean"] <= result["high"]


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = tables.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05)


def test_a_series_falls_step_by_step():
    assert tiny_quality.falls([5, 3, 3, 1]) == [True, False, True]


def test_steps_are_counted_with_and_without_those_from_the_clean_picture():
    page = tiny_quality.step_table("own", {"big_blur": [[False, True, True], [False, True]], "noise": [[True, False]]})
    assert "| big blur | 5 | 60% | 3 | 100% |" in page
    assert "| **all** | **7** | **57.1%** | **4** | **75.0%** |" in page


def test_correlations_have_their_sign():
    mos = np.arange(40.0)
    found = tiny_quality.correlations(-(mos**3), mos, draws=50)
    assert found["SRCC"][0] == pytest.approx(-1)
    assert -1 < found["PLCC"][0] < -0.8


# ---- the harness, on a real pipeline at tiny size


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder of it."""
    folder = tmp_path_factory.mktemp("pipeline")
    demo_like_pipeline(folder).save_pretrained(folder / "saved")
    return folder / "saved"


def run_harness(pipeline, out, *more):
    options = "--weights random --seeds 0:3 --best-of 2 --batch 3 --steps 3 --no-costs"
    demo_quality.main(["--pipeline", str(pipeline), "--out", str(out), *options.split(), *more])


def test_harness_end_to_end_and_resumed(pipeline, tmp_path, capsys, monkeypatch):
    weights = create_model("tiny", weights="random")  # the same random weights in every run
    monkeypatch.setattr(demo_quality, "create_model", lambda *_, **__: weights)
    run_harness(pipeline, tmp_path)
    table = capsys.readouterr().out
    assert "guided, best of 2" in table
    for method in ("unguided", "guided", "best_of_2", "guided_best_of_2"):
        assert {p.name for p in (tmp_path / method).glob("*.png")} == {"0.png", "1.png", "2.png"}
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (3 * 128, 2 * 128 + 6)
    rows = (tmp_path / "demo_quality.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 3
    assert rows[0].startswith("seed,prompt,method,reward,natural statistics,degradations,log-odds of clean,hf_energy")
    unguided, guided = (np.asarray(Image.open(tmp_path / m / "1.png"), int) for m in ("unguided", "guided"))
    assert not np.array_equal(unguided, guided)

    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "candidates").rglob("*.png")}
    assert len(times) == 2 * 3 * 2
    lost = tmp_path / "candidates" / "unguided" / "1-0.png"
    before = lost.read_bytes()
    lost.unlink()
    run_harness(pipeline, tmp_path)
    assert lost.read_bytes() == before or np.abs(np.asarray(Image.open(lost), int) - unguided).max() <= 1
    assert all(p.stat().st_mtime_ns == time for p, time in times.items() if p != lost)

    settings = tmp_path / "candidates" / "unguided" / "settings.json"
    log = json.loads(settings.read_text())
    del log["processor"]["1-0"]  # killed after the picture was written and before its time was
    settings.write_text(json.dumps(log))
    run_harness(pipeline, tmp_path)
    assert "1-0" in json.loads(settings.read_text())["processor"]

    run_harness(pipeline, tmp_path, "--guidance", '{"scale": 0.3}')
    changed = [p for p, time in times.items() if p.exists() and p.stat().st_mtime_ns != time and p != lost]
    assert {p.parent.name for p in changed} == {"guided"}
    assert len(changed) == 6


def test_ceiling_of_best_of_n_is_the_judges_own_choice(monkeypatch):
    monkeypatch.setattr(demo_quality, "judges", lambda: {"judge": None})
    candidates = np.array([1.0, 4.0, 2.0, 0.0, 3.0, 3.5])  # two of each seed; the method's picture is the first
    rows = {"unguided": candidates[::2], "best of 2": candidates[::2]}
    rows = {name: {"judge": values, "reward": values} for name, values in rows.items()}
    for name in ("unguided", "guided"):
        rows[f"{name}, all candidates"] = {"judge": candidates, "reward": candidates}
    results = demo_quality.results_of(rows, demo_quality.Plan((0, 1, 2), best_of=2))
    assert results["judge"]["best of 2, chosen by this judge"]["mean"] == pytest.approx((3 + 0 + 0.5) / 3)
    assert results["judge"]["best of 2"]["mean"] == 0
    assert "best of 2, chosen by this judge" not in results["reward"]


def test_attributes_are_what_the_words_name():
    grey = torch.full((1, 3, 32, 32), 0.4)
    orange = grey + torch.tensor([0.3, 0.0, -0.3]).view(3, 1, 1)
    stripes = grey + 0.1 * torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)
    values = demo_samples.attributes(torch.cat([grey, orange, stripes]))
    np.testing.assert_allclose(values["brightness"], [0.4, 0.4 + 0.3 * (0.299 - 0.114), 0.4], atol=1e-6)
    np.testing.assert_allclose(values["warmth"], [0, 0.6, 0], atol=1e-6)
    luma = 0.3 * (0.299 - 0.114)
    colour = (0.3 - luma + luma + 0.3 + luma) / 3
    np.testing.assert_allclose(values["colourfulness"], [0, colour, 0], atol=1e-6)
    np.testing.assert_allclose(values["busyness"], np.log([1e-3, 1e-3, 0.2 + 1e-3]), atol=1e-4)


def test_a_word_that_works_is_seen_to_work():
    prompts = np.array([""] * 50 + [word for _, *pair in demo_samples.PAIRS for word in pair for _ in range(50)])
    rng, values = np.random.default_rng(0), {}
    for name, low, high in demo_samples.PAIRS:
        push = (prompts == high).astype(float) - (prompts == low)
        values[name] = rng.standard_normal(len(prompts)) + 2 * push * (name != "warmth")
    rows = {line.split("|")[1].strip(): line for line in demo_samples.words_table(values, prompts).splitlines()[2:]}
    apart = {name: float(line.split("|")[6].split()[0]) for name, line in rows.items()}
    assert all(3 < apart[name] < 5.5 for name in ("brightness", "colourfulness", "busyness"))
    assert abs(apart["warmth"]) < 0.7


def test_samples_are_those_of_the_harness(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_quality, "create_model", lambda *_, **__: create_model("tiny", weights="random"))
    options = "--seeds 0:18 --best-of 1 --batch 9 --steps 2 --no-costs"
    demo_quality.main(["--pipeline", str(pipeline), "--out", str(tmp_path), *options.split()])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["demo_samples.py", "--out", str(tmp_path)])
    demo_samples.main()
    page = capsys.readouterr().out
    assert page.startswith("18 pictures.")
    shares = [int(line.split("|")[2].strip(" %")) for line in page.split("named by")[1].splitlines()[2:]]
    assert sum(shares) == pytest.approx(100, abs=3)


def test_best_of_n_takes_the_best_by_the_reward(pipeline, tmp_path, monkeypatch):
    brightness = type("Brightness", (torch.nn.Module,), {"forward": lambda self, images: images.mean((1, 2, 3))})()
    monkeypatch.setattr(demo_quality, "create_model", lambda *_, **__: brightness)
    run_harness(pipeline, tmp_path)
    for seed in range(3):
        candidates = [np.asarray(Image.open(tmp_path / "candidates" / "unguided" / f"{seed}-{k}.png")) for k in (0, 1)]
        chosen = np.asarray(Image.open(tmp_path / "best_of_2" / f"{seed}.png"))
        assert chosen.mean() == max(c.mean() for c in candidates)


def test_costs_add_up(pipeline):
    pipe = demo_quality.load_pipeline(str(pipeline), torch.device("cpu"))
    guidance = RewardGuidance(create_model("tiny", weights="random"))
    plan = demo_pictures.Plan((0,), steps=4)
    result = demo_costs.costs(pipe, plan, guidance, batch=1, repeats=1)
    assert all(share > 0 for share in result["parts"].values())
    assert sum(result["parts"].values()) < 1
    assert "scale 0" in demo_costs.cost_table([result])


def test_judging_two_folders(tmp_path, capsys):
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:96, :128] / 16
    for n in range(4):
        clean = np.clip(np.stack([np.sin(xx + n), np.cos(yy * n), np.sin(xx * yy)], -1) / 4 + 0.5, 0, 1)
        for folder, image in (("good", clean), ("bad", clean + rng.normal(0, 0.2, clean.shape))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(tmp_path / folder / f"{n}.png")
    demo_quality.main(["--judge-only", str(tmp_path / "bad"), str(tmp_path / "good")])
    printed = capsys.readouterr().out
    assert printed.startswith("4 pairs.")
    for judge in judges():
        assert judge in printed


def test_judges_share_nothing_with_the_reward():
    """No module of the judges imports the package that they judge."""
    folder = Path(niqe.__file__).parent
    for name in ("niqe", "degradation_judge", "degradations", "photographs", "artefacts", "judges", "tables"):
        assert "iqguide" not in (folder / f"{name}.py").read_text(), name
