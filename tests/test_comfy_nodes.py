"""The nodes inside the real ComfyUI, one after the other as a workflow runs them."""

import csv
import json
import math

import pytest
import torch
from PIL import Image
from torch import nn

from iqguide.images import to_tensor
from iqguide.nodes.labels import labelled
from iqguide.nodes.tables import number

pytestmark = [pytest.mark.comfy, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def tiny():
    import tiny_comfy

    return tiny_comfy


@pytest.fixture(scope="module")
def pack(tiny):
    """The modules of the pack, loaded as ComfyUI loads them, with models/iqa known."""
    from iqguide.nodes import attributes, best_of_n, combine, guide, load, quality_model, rank, report, save, score

    load.add_model_folder()
    modules = (attributes, best_of_n, combine, guide, load, rank, report, save, score)
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    return type("Pack", (), {**found, "module": quality_model, "load": load, "add_model_folder": load.add_model_folder})


@pytest.fixture(scope="module")
def quality(pack):
    """The bundled model, through its node."""
    with torch.inference_mode():
        return pack.LoadQualityModel.execute("tiny", "default", False, "float32", True).result[0]


class Brightness(nn.Module):
    """A score that anybody can work out."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.mean((1, 2, 3)) * self.gain


@pytest.fixture
def brightness(pack, tiny):
    import comfy.model_management as mm
    from comfy.model_patcher import ModelPatcher

    with torch.inference_mode():
        patcher = ModelPatcher(Brightness(), mm.get_torch_device(), mm.unet_offload_device())
        return pack.QualityModel("brightness", patcher.model, (patcher,))


def levels(*values, size=40):
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, size, size + 8, 3).contiguous()


def run(node, *args, **kwargs):
    """One value at each input, as a list where the node takes lists; of Rank Images the one value at each output."""
    if node.INPUT_IS_LIST:
        args, kwargs = [[value] for value in args], {name: [value] for name, value in kwargs.items()}
    with torch.inference_mode():
        result = node.execute(*args, **kwargs).result
    if node.__name__ == "RankImages":
        assert all(len(output) == 1 for output in result[:4])
        return [output[0] for output in result[:4]] + list(result[4:])
    return result


def run_list(node, model, images, *settings, **lists):
    with torch.inference_mode():
        return node.execute([model], images, *([value] for value in settings), **lists).result


def test_scores_are_those_of_the_library(pack, quality):
    import iqguide

    images = torch.rand(5, 40, 56, 3)
    scores, mean, table = run(pack.ScoreImages, quality, images, 2)
    expected = iqguide.rank(images.movedim(-1, 1), iqguide.create_model("tiny")).scores
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-5)
    assert mean == pytest.approx(sum(scores) / 5)
    rows = json.loads(table)["images"]
    assert [row["index"] for row in rows] == list(range(5))
    assert [row["score"] for row in rows] == scores


def test_large_pictures_are_reduced_first(pack, quality):
    from iqguide.images import resize_short_side

    images = torch.rand(1, 600, 700, 3)
    scores, *_ = run(pack.ScoreImages, quality, images, 2)
    reduced = resize_short_side(images.movedim(-1, 1), 512)
    torch.testing.assert_close(torch.tensor(scores), quality.reward(reduced).detach(), rtol=1e-4, atol=1e-5)


def test_a_transparent_picture_has_the_score_of_the_library_and_keeps_its_alpha(pack, quality, tmp_path):
    import iqguide
    from iqguide.images import to_pil
    from iqguide.nodes.save import as_saved

    picture = (torch.rand(1, 140, 160, 4) * 255).round() / 255
    scores, *_ = run(pack.ScoreImages, quality, picture, 2)
    saved = as_saved(picture[0])
    saved.save(tmp_path / "a.png")
    assert saved.mode == "RGBA"
    assert saved.convert("RGB").tobytes() == to_pil(picture[0, ..., :3].movedim(-1, 0)).tobytes()
    expected = iqguide.rank([tmp_path / "a.png"], iqguide.create_model("tiny")).scores
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-3)  # the file has 8 bits


def test_comfyui_manages_the_memory_of_the_model(pack, quality):
    import comfy.model_management as mm

    mm.unload_all_models()
    run(pack.ScoreImages, quality, levels(0.5), 8)
    assert any(loaded.model is quality.patcher for loaded in mm.current_loaded_models)
    assert quality.get_models() == [quality.patcher]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_picture_that_is_no_numbers_has_no_score_and_the_others_have(batch_size, pack, brightness, caplog):
    images = levels(0.5, 0.6, 0.7)
    images[1, 3, 3, 0] = math.nan
    scores, mean, table = run(pack.ScoreImages, brightness, images, batch_size)
    assert [scores[0], scores[2], mean] == pytest.approx([0.5, 0.7, 0.6])
    assert math.isnan(scores[1])
    assert json.loads(table)["images"][1]["score"] is None
    assert "1 of 3 pictures have no score" in caplog.text
    with pytest.raises(ValueError, match="no picture of 1 has a score: 1 hold NaN"):
        run(pack.ScoreImages, brightness, images[1:2], batch_size)
    broken = pack.QualityModel("broken", lambda x: x.mean((1, 2, 3)) * math.nan, brightness.patchers)
    with pytest.raises(ValueError, match=r"no picture of 3 .* of 2 the score by broken"):
        run(pack.ScoreImages, broken, images, batch_size)


def test_a_broken_picture_is_ranked_last_and_never_kept(pack, brightness):
    images = levels(0.5, 0.6, 0.7)
    images[1] = math.nan
    best, rest, *_, scores, indices, table = run(pack.RankImages, brightness, images, 3, -1000.0, 8)
    assert torch.equal(best, images[[2, 0]])
    assert len(rest) == 1
    assert indices == [2, 0, 1]
    assert [row["kept"] for row in json.loads(table)["images"]] == [True, True, False]


def mixed():
    """Five pictures of two sizes as a list, the last two of them as one batch."""
    return [levels(0.2), levels(0.8, size=64), levels(0.5), levels(0.6, 0.4)]


def test_a_list_of_mixed_sizes_is_ranked_as_one_job(pack, brightness):
    latents = [{"samples": torch.full((len(batch), 4, 5, 6), batch.mean().item())} for batch in mixed()]
    best, rest, chosen, masks, scores, indices, _ = run_list(
        pack.RankImages, brightness, mixed(), 2, -1000.0, 8, latents=latents, masks=[torch.ones(1, 8, 8)]
    )
    assert indices == [1, 3, 2, 4, 0]
    assert scores == pytest.approx([0.8, 0.6, 0.5, 0.4, 0.2])
    assert [tuple(image.shape) for image in best] == [(1, 64, 72, 3), (1, 40, 48, 3)]
    assert [tuple(image.shape) for image in rest] == [(3, 40, 48, 3)]
    assert [latent["samples"].shape[0] for latent in chosen] == [1, 1]
    assert chosen[0]["samples"].mean() == pytest.approx(0.8)
    assert len(masks) == 1
    with pytest.raises(ValueError, match="a list of 2 for a list of 4 images"):
        run_list(pack.RankImages, brightness, mixed(), 2, -1000.0, 8, latents=latents[:2])
    with pytest.raises(ValueError, match="a list of 2 at reference"):
        run_list(pack.RankImages, brightness, mixed(), 2, -1000.0, 8, reference=mixed()[:2])


def test_a_list_of_mixed_sizes_is_scored_as_one_job(pack, brightness):
    scores, mean, table = run_list(pack.ScoreImages, brightness, mixed(), 8)
    assert scores == pytest.approx([0.2, 0.8, 0.5, 0.6, 0.4])
    assert mean == pytest.approx(0.5)
    assert [row["index"] for row in json.loads(table)["images"]] == list(range(5))
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\); expected"):
        run_list(pack.ScoreImages, brightness, [torch.rand(8, 8, 3)], 8)
    assert run_list(pack.ScoreImages, brightness, [levels(0.3)[..., :1]], 8)[0] == pytest.approx([0.3])  # grey


def test_a_list_of_mixed_sizes_is_saved_as_one_job(pack, brightness, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    hidden = type("H", (), {"prompt": None, "extra_pnginfo": None, "unique_id": None})
    monkeypatch.setattr(pack.ScoreAndSave, "hidden", hidden)
    images = mixed()
    images[2][:, 3, 3] = math.nan
    (scores,) = run_list(pack.ScoreAndSave, brightness, images, "list", 8)
    assert scores[:2] == pytest.approx([0.2, 0.8])
    with open(tmp_path / "list.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"list_0000{number}_.png" for number in range(1, 6)]
    assert [row["score"] != "" for row in rows] == [True, True, False, True, True]
    sizes = []
    for row in rows:
        with Image.open(tmp_path / row["file"]) as picture:
            sizes.append(picture.size)
    assert sizes == [(48, 40), (72, 64), (48, 40), (48, 40), (48, 40)]


def test_alpha_and_overshoot_do_not_count(pack, brightness):
    images = torch.cat([levels(1.5), torch.zeros(1, 40, 48, 1)], -1)
    assert run(pack.ScoreImages, brightness, images, 8)[0] == [1.0]


def test_ranking_keeps_the_best_and_what_belongs_to_them(pack, brightness):
    import folder_paths

    images = levels(0.2, 0.8, 0.5)
    latents = {"samples": torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 4, 5, 6)}
    best, rest, picked, masks, scores, indices, table = run(
        pack.RankImages, brightness, images, 2, -1000.0, 8, latents, torch.arange(3.0).reshape(3, 1, 1)
    )
    assert torch.equal(best, images[[1, 2]])
    assert torch.equal(rest, images[[0]])
    assert picked["samples"][:, 0, 0, 0].tolist() == [1, 2]
    assert picked["batch_index"] == [1, 2]
    assert masks.flatten().tolist() == [1, 2]
    assert indices == [1, 2, 0]
    assert scores == pytest.approx([0.8, 0.5, 0.2])
    assert [row["kept"] for row in json.loads(table)["images"]] == [True, True, False]
    assert folder_paths.get_temp_directory()


def test_ranking_blocks_outputs_that_have_nothing(pack, brightness):
    from comfy_execution.graph_utils import ExecutionBlocker

    best, rest, latents, masks, *_ = run(pack.RankImages, brightness, levels(0.2, 0.8), 5, -1000.0, 8)
    assert len(best) == 2
    assert isinstance(rest, ExecutionBlocker)
    assert rest.message is None
    assert "nothing at its input latents" in latents.message
    best, rest, latents, *_ = run(pack.RankImages, brightness, levels(0.2, 0.8), 5, 0.9, 8)
    assert isinstance(best, ExecutionBlocker)
    assert best.message is None
    assert latents.message is None
    assert len(rest) == 2


def test_weighted_sums_add_scores_and_guide(pack, brightness):
    (both,) = run(pack.CombineQualityModels, brightness, brightness, "weighted sum", 2.0, -0.5)
    assert run(pack.ScoreImages, both, levels(0.4), 8)[0] == pytest.approx([0.6])
    assert both.reward_for() is not None
    assert len(both.get_models()) == 2


def test_mean_ranks_are_of_the_whole_batch_and_do_not_guide(pack, brightness):
    (dark,) = run(pack.CombineQualityModels, brightness, brightness, "weighted sum", -1.0, 0.0)
    (both,) = run(pack.CombineQualityModels, brightness, dark, "mean rank", 1.0, 1.0)
    assert run(pack.ScoreImages, both, levels(0.1, 0.5, 0.9), 1)[0] == pytest.approx([0.5, 0.5, 0.5])
    (same,) = run(pack.CombineQualityModels, brightness, brightness, "mean rank", 1.0, 1.0)
    assert run(pack.ScoreImages, same, levels(0.1, 0.5, 0.9), 1)[0] == pytest.approx([0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="no gradient"):
        same.reward_for()


def test_full_reference_models_need_one_picture_of_the_same_size(pack, brightness):
    model = pack.QualityModel("near", lambda a, b: -(a - b).abs().mean((1, 2, 3)), brightness.patchers, True)
    assert run(pack.ScoreImages, model, levels(0.4, 0.5), 8, levels(0.5))[0] == pytest.approx([-0.1, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="connect one picture to the input reference"):
        run(pack.ScoreImages, model, levels(0.4), 8)
    with pytest.raises(ValueError, match="equal sizes"):
        run(pack.ScoreImages, model, levels(0.4), 8, levels(0.5, size=64))


def test_saved_pictures_hold_their_scores(pack, brightness, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(
        pack.ScoreAndSave, "hidden", type("H", (), {"prompt": {"1": {}}, "extra_pnginfo": None, "unique_id": None})
    )
    for value in (0.2, 0.8):
        run(pack.ScoreAndSave, brightness, levels(value), "part/test", 8)
    files = sorted((tmp_path / "part").glob("*.png"))
    assert [file.name for file in files] == ["test_00001_.png", "test_00002_.png"]
    with Image.open(files[1]) as picture:
        assert json.loads(picture.text["iqguide"])["score"] == pytest.approx(0.8)
        assert json.loads(picture.text["prompt"]) == {"1": {}}
        assert picture.getpixel((0, 0)) == (204, 204, 204)
    with open(tmp_path / "part" / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], round(float(row["score"]), 4)) for row in rows] == [
        ("test_00001_.png", 0.2),
        ("test_00002_.png", 0.8),
    ]


def test_the_place_in_the_batch_is_in_the_file_names(pack, brightness, monkeypatch, tmp_path):
    import folder_paths
    from comfy_api.latest import ui

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    hidden = type("H", (), {"prompt": None, "extra_pnginfo": None, "unique_id": None})
    monkeypatch.setattr(pack.ScoreAndSave, "hidden", hidden)
    images = levels(0.2, 0.8)
    run(pack.ScoreAndSave, brightness, images, "ours/p%batch_num%_%width%", 8)
    ui.ImageSaveHelper.get_save_images_ui(images, "theirs/p%batch_num%_%width%", cls=None)
    ours, theirs = (sorted(file.name for file in (tmp_path / name).glob("*.png")) for name in ("ours", "theirs"))
    assert ours == theirs == ["p0_48_00001_.png", "p1_48_00002_.png"]
    run(pack.ScoreAndSave, brightness, images, "ours/p%batch_num%_%width%", 8)
    assert len(list((tmp_path / "ours").glob("*.png"))) == 4  # the first two are still there
    with open(tmp_path / "ours" / "p_48.csv", newline="") as file:
        rows = [row["file"] for row in csv.DictReader(file)]
    assert rows[:2] == ours
    assert len(set(rows)) == 4


def test_a_batch_without_pictures_is_refused_and_nothing_is_written(pack, brightness, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    nothing = torch.zeros(0, 40, 48, 3)
    for node, settings in (
        (pack.ScoreImages, (8,)),
        (pack.RankImages, (1, -1000.0, 8)),
        (pack.ScoreAndSave, ("test", 8)),
    ):
        with pytest.raises(ValueError, match="a batch of no pictures"):
            run(node, brightness, nothing, *settings)
    assert list(tmp_path.iterdir()) == []


def test_guidance_and_its_report(pack, quality, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    settings = (0.3, 0.0, 0.95, "auto", 0, 1, 1, 0.5)
    (patched,) = run(pack.QualityGuidance, model, quality, *settings, vae)
    before, after = (tiny.sample(each, 4, batch=6, size=8) for each in (model, patched))
    with torch.inference_mode():
        margins = [quality.reward_for().margin(vae.decode(z).movedim(-1, 1)) for z in (before, after)]
    assert (margins[1] > margins[0]).sum() >= 5
    plot, log = run(pack.GuidanceReport, patched, after)
    assert plot.shape[0] == 1
    assert plot.shape[-1] == 3
    entries = json.loads(log)[0]
    assert len(entries) == 6
    assert all(entry["score_after"][0] > entry["score_before"][0] for entry in entries if entry["skipped"] is None)
    assert all(parameter.requires_grad is False for parameter in quality.reward.parameters())


def test_a_report_says_what_is_missing(pack, quality, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    plot, log = run(pack.GuidanceReport, model, None)  # Quality Guidance is bypassed: the workflow is to go on
    assert (plot.ndim, plot.shape[0], plot.shape[-1]) == (4, 1, 3)
    assert plot.std() > 0.01
    assert log == "[]"
    (patched,) = run(pack.QualityGuidance, model, quality, 0.3, 0.2, 0.9, "auto", 0, 1, 1, 0.5, vae)
    with pytest.raises(ValueError, match="connect after to the output of the sampler"):
        run(pack.GuidanceReport, patched, None)


def test_a_report_of_scores_that_are_no_numbers(pack, quality, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    (patched,) = run(pack.QualityGuidance, model, quality, 0.3, 0.0, 0.95, "auto", 0, 1, 1, 0.5, vae)
    reward = patched.get_attachment("iqguide")[0].guidance.reward
    with pytest.MonkeyPatch.context() as patch:
        margin = type(reward).margin
        patch.setattr(type(reward), "margin", lambda self, images: margin(self, images) * math.nan)
        after = tiny.sample(patched, 4)
    plot, log = run(pack.GuidanceReport, patched, after)
    assert plot.isfinite().all()
    scores = [entry["score_before"] for entry in json.loads(log)[0] if entry["score_before"]]
    assert scores
    assert all(score == [None] for score in scores)


def test_an_empty_window_is_refused_before_the_run(pack):
    assert pack.QualityGuidance.validate_inputs(start_percent=0.2, end_percent=0.9) is True
    assert "start must be below end" in pack.QualityGuidance.validate_inputs(start_percent=0.9, end_percent=0.2)


def test_nothing_is_downloaded_unasked(pack, monkeypatch, tmp_path):
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(pack.load, "is_cached", lambda spec: False)
    with pytest.raises(ValueError, match=r"put qualiclip\.pth into models/iqa, or switch download on"):
        run(pack.LoadQualityModel, "qualiclip", "default", False, "float32", True)


def test_the_weights_that_learned_prompts_need_are_not_downloaded_unasked_either(pack, monkeypatch):
    """The small file is there, the CLIP that it was learned on is not."""
    monkeypatch.setattr(pack.load, "is_cached", lambda spec: spec.name == "qualiclip+")
    with pytest.raises(ValueError, match=r"qualiclip \(408 MB.*qualiclip\.pth into models/iqa"):
        run(pack.LoadQualityModel, "qualiclip+", "default", False, "float32", True)


def test_what_is_missing_is_said_in_the_words_of_comfyui(pack, monkeypatch, tmp_path):
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path))
    monkeypatch.setenv("IQGUIDE_OFFLINE", "1")
    with pytest.raises(RuntimeError, match=r"put it into models/iqa as qualiclip\.pth"):
        run(pack.LoadQualityModel, "qualiclip", "default", True, "float32", True)

    def without_timm(*args, **options):
        raise ModuleNotFoundError("No module named 'timm'")

    monkeypatch.setattr(pack.load, "create_model", without_timm)
    with pytest.raises(ImportError, match=r"'timm'; tiny needs it: .*requirements\.txt"):
        run(pack.LoadQualityModel, "tiny", "default", False, "float32", True)


def test_models_without_weights_are_offered_when_there_are_files(pack, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "iqa", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    assert "bpclip" not in pack.load.offered_models()
    assert {"tiny", "bpclip-mini", "qualiclip"} <= set(pack.load.offered_models())
    (tmp_path / "mine.safetensors").touch()
    folder_paths.filename_list_cache.clear()
    assert "bpclip" in pack.load.offered_models()
    folder_paths.filename_list_cache.clear()


def test_weights_from_the_folder(pack, tiny, monkeypatch, tmp_path):
    import folder_paths
    import safetensors.torch

    import iqguide

    other = iqguide.create_model("tiny", weights="random", seed=5)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "mine.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "iqa", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    (loaded,) = run(pack.LoadQualityModel, "tiny", "mine.safetensors", False, "float32", True)
    images = torch.rand(2, 40, 40, 3)
    expected = iqguide.rank(images.movedim(-1, 1), other).scores
    torch.testing.assert_close(torch.tensor(run(pack.ScoreImages, loaded, images, 8)[0]), expected)
    assert pack.LoadQualityModel.fingerprint_inputs(weights="mine.safetensors") > 0
    folder_paths.filename_list_cache.clear()


def test_attributes_guide(pack, tiny, monkeypatch):
    """With a CLIP of random weights, whose words mean nothing but have a gradient."""
    from iqguide.nodes import load

    monkeypatch.setattr(load.folder_paths, "get_full_path_or_raise", lambda folder, name: "random")
    model, vae = tiny.v_model(), tiny.taesd_vae()
    settings = ("Sharp / Blurry\nBright / Dark = -0.5", "clip.safetensors", False, 0.3, 0.0, 0.95, "auto", vae)
    check_steered(run(pack.AttributeGuidance, model, *settings)[0], pack, tiny)
    check = pack.AttributeGuidance.validate_inputs
    assert check(attributes="Sharp / Blurry") is True
    assert "expected wanted / unwanted" in check(attributes="Sharp")


def check_steered(patched, pack, tiny):
    latents = tiny.sample(patched, 4, steps=3)
    assert latents.isfinite().all()
    entries = json.loads(run(pack.GuidanceReport, patched, latents)[1])[0]
    guided = [entry for entry in entries if entry["skipped"] is None and entry["score_after"]]
    assert guided
    assert all(entry["score_after"][0] > entry["score_before"][0] for entry in guided)


def test_dimensions_guide(pack, tiny, monkeypatch):
    """With a BPCLIP of random weights."""
    from iqguide.nodes import load

    monkeypatch.setattr(load.folder_paths, "get_full_path_or_raise", lambda folder, name: "random")
    model, vae = tiny.v_model(), tiny.taesd_vae()
    settings = ("", "bpclip-mini.safetensors", False, 0.3, 0.0, 0.95, "auto", vae)
    check_steered(run(pack.AttributeGuidance, model, *settings, sharpness=1.0, noise=-0.5, colour=0.0)[0], pack, tiny)
    with pytest.raises(ValueError, match=r"got pairs and dimensions \(noise\)"):
        run(pack.AttributeGuidance, model, "Sharp / Blurry", *settings[1:], noise=0.5)
    assert pack.AttributeGuidance.validate_inputs(attributes="") is True
    with pytest.raises(ValueError, match="there are no attributes with a weight"):
        run(pack.AttributeGuidance, model, *settings, noise=0.0)


def test_dimensions_without_weights_say_what_is_missing(pack, tiny, monkeypatch, tmp_path):
    from dataclasses import replace

    from iqguide.nodes import attributes, load

    spec = replace(load.MODELS["bpclip-mini"], trained=False)
    monkeypatch.setitem(load.MODELS, "bpclip-mini", spec)
    monkeypatch.setattr(load, "is_cached", lambda spec: False)
    with pytest.raises(ValueError, match=r"put bpclip-mini\.safetensors into models/iqa"):
        attributes.judge_of("", "default", False, {"sharpness": 1.0})


def best_of(pack, model, quality, tiny, vae, *, keep=2, drop_at="0.5", decoder="vae", batch_size=2, **latent):
    settings = (6, 2.0, "euler_ancestral", "karras", 1.0, drop_at, decoder, batch_size)
    latent = {"samples": torch.zeros(1, 4, 4, 4), "batch_index": [0], **latent}
    prompts = tiny.conditioning(seed=1), tiny.conditioning(seed=2)
    return run(pack.BestOfNSampler, model, quality, *prompts, latent, vae, 11, 5, keep, *settings)


def test_the_best_of_n_come_with_what_makes_them_again(pack, brightness, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    latents, images, scores, seeds, table = best_of(pack, model, brightness, tiny, vae)
    assert latents["samples"].shape == (2, 4, 4, 4)
    assert "batch_index" not in latents
    assert images.shape == (2, 32, 32, 3)
    assert scores == sorted(scores, reverse=True)
    torch.testing.assert_close(torch.tensor(scores), images.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    for seed, image in zip(seeds, images, strict=True):
        alone = tiny.sample(model, 4, seed=seed, sampler="euler_ancestral", scheduler="karras")
        with torch.inference_mode():
            torch.testing.assert_close(vae.decode(alone)[0], image, rtol=1e-3, atol=1e-3)
    rows = json.loads(table)["candidates"]
    assert sorted(row["seed"] for row in rows) == list(range(11, 16))
    assert [row["dropped_at"] for row in rows] == [None] * 3 + [0.5] * 2
    assert {row["seed"] for row in rows if row["kept"]} == set(seeds)


def test_without_dropping_the_best_are_those_of_all(pack, brightness, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    _, _, scores, seeds, table = best_of(pack, model, brightness, tiny, vae, drop_at="", keep=1)
    rows = json.loads(table)["candidates"]
    assert len(rows) == 5
    assert (scores[0], seeds[0]) == max((row["score"], row["seed"]) for row in rows)
    assert len(best_of(pack, model, brightness, tiny, vae, keep=9)[3]) == 5


def test_the_winners_are_the_last_preview_and_the_bar_only_rises(pack, quality, tiny, monkeypatch):
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    calls = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *call, node_id=None: calls.append(call))
    _, images, scores, *_ = best_of(pack, tiny.v_model(), quality, tiny, tiny.taesd_vae(), keep=2)
    *sampling, (value, total, preview) = calls
    assert value == total == 1
    assert preview[1].size == (2 * 32, 32)
    shown = to_tensor(preview[1])[0].movedim(0, -1)
    titles = [f"#{rank} {number(score)}" for rank, score in enumerate(scores, 1)]
    expected = torch.cat(list(map(labelled, images, titles)), 1)
    torch.testing.assert_close(shown, expected, atol=0.01, rtol=0)
    assert len({total for _, total, _ in sampling}) == 1  # one bar, and none of the scoring
    values = [value for value, _, _ in sampling]
    assert values == sorted(values)
    assert values[-1] == sampling[-1][1]
    assert any(preview is not None for _, _, preview in sampling)


@pytest.mark.parametrize("drop_at", ["", "0.5"])
def test_one_candidate_without_a_score_does_not_end_the_search(drop_at, pack, brightness, tiny):
    model, vae = tiny.v_model(), tiny.taesd_vae()
    sound = best_of(pack, model, brightness, tiny, vae, drop_at=drop_at, keep=1)
    calls = []

    def breaks(images):
        calls.append(len(images))
        scores = images.mean((1, 2, 3))
        scores[0] = math.nan if len(calls) == 1 else scores[0]  # the first candidate, at the first look
        return scores

    broken = pack.QualityModel("breaks", breaks, brightness.patchers)
    _, images, scores, seeds, table = best_of(pack, model, broken, tiny, vae, drop_at=drop_at, keep=5)
    rows = {row["seed"]: row for row in json.loads(table)["candidates"]}
    assert 11 not in seeds
    assert rows[11]["score"] is None
    assert len(seeds) == len(images) == 4
    assert all(map(math.isfinite, scores))
    assert sound[3][0] in seeds or sound[3][0] == 11
    none = pack.QualityModel("none", lambda images: images.mean((1, 2, 3)) * math.nan, brightness.patchers)
    with pytest.raises(ValueError, match="the score by none is not a finite number"):
        best_of(pack, model, none, tiny, vae, drop_at=drop_at)


def test_unfinished_candidates_are_seen_through_a_tiny_decoder(pack, brightness, tiny, monkeypatch, tmp_path):
    import folder_paths
    import safetensors.torch

    network = tiny.taesd(seed=3)
    safetensors.torch.save_file(network.taesd_decoder.state_dict(), tmp_path / "taesd_decoder.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    model, vae = tiny.v_model(), tiny.taesd_vae()
    by_tiny, by_vae = (
        json.loads(best_of(pack, model, brightness, tiny, vae, decoder=decoder, keep=1, drop_at="0.9")[4])
        for decoder in ("auto", "vae")
    )
    folder_paths.filename_list_cache.clear()
    dropped = [[row for row in table["candidates"] if row["dropped_at"]] for table in (by_tiny, by_vae)]
    assert [len(rows) for rows in dropped] == [2, 2]
    seed = dropped[0][0]["seed"]  # at the fifth of six evaluations: what it saw can be worked out
    from iqguide.search import comfy_best_of_n as comfy_search

    prompts = tiny.conditioning(seed=1), tiny.conditioning(seed=2)
    latent = {"samples": torch.zeros(1, 4, 4, 4)}
    sampling = comfy_search.Sampling(model, *prompts, latent, 6, 2.0, "euler_ancestral", "karras")
    looked = []
    with torch.inference_mode():
        look = lambda z: (looked.append(z), torch.zeros(len(z)))[1]
        comfy_search.best_of_n(sampling, [seed, 0], look, shares=(0.9,))
        picture = network.decode(model.get_model_object("latent_format").process_in(looked[0][:1])) * 0.5 + 0.5
    assert dropped[0][0]["score"] == pytest.approx(picture.clamp(0, 1).mean().item(), abs=2e-3)


def test_where_to_drop_is_checked_before_the_run(pack):
    assert pack.BestOfNSampler.validate_inputs(drop_at="") is True
    assert "drop_at is (0.7, 0.4)" in pack.BestOfNSampler.validate_inputs(drop_at="0.7, 0.4")


SENT = ("MODEL", "IQ_MODEL", "CONDITIONING", "LATENT", "VAE")


class Everything:
    """Stands in for loaders, prompts and samplers where a prompt is only validated."""

    RETURN_TYPES = SENT
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


@pytest.fixture
def problems(pack, monkeypatch):
    """What ComfyUI says of a prompt with one of our nodes: (names of its inputs, kinds of their problems)."""
    import asyncio

    import execution
    from comfy_extras import nodes_primitive

    import nodes

    known = {each.define_schema().node_id: each for each in (nodes_primitive.Float, nodes_primitive.String)}
    ours = (pack.QualityGuidance, pack.AttributeGuidance, pack.BestOfNSampler, pack.GuidanceReport)
    known |= {each.define_schema().node_id: each for each in ours} | {"Everything": Everything}
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", known)
    links = {"PrimitiveFloat": 0.5, "PrimitiveString": "anything"}

    def find(node, **changed):
        inputs = {}
        for each in node.define_schema().inputs:
            if each.get_io_type() in SENT:
                inputs[each.id] = ["everything", SENT.index(each.get_io_type())]
            elif not each.optional:
                inputs[each.id] = each.default
        prompt = {name: {"class_type": name, "inputs": {"value": value}} for name, value in links.items()}
        prompt["everything"] = {"class_type": "Everything", "inputs": {}}
        prompt["ours"] = {"class_type": node.define_schema().node_id, "inputs": inputs | changed}
        report = {"model": ["everything", 0], "after": ["ours", 0]}
        prompt["report"] = {"class_type": "IQGuideGuidanceReport", "inputs": report}
        valid, error, _, found = asyncio.run(execution.validate_prompt("1", prompt, None))
        errors = found.get("ours", {"errors": []})["errors"]
        assert valid is not bool(errors), error
        return {each["extra_info"]["input_name"]: each["type"] for each in errors}

    return find


@pytest.mark.parametrize("name", ["QualityGuidance", "AttributeGuidance", "BestOfNSampler"])
def test_every_input_can_be_linked(name, pack, problems):
    node = getattr(pack, name)
    assert problems(node) == {}
    kinds = {"FLOAT": ["PrimitiveFloat", 0], "STRING": ["PrimitiveString", 0]}
    linked = {each.id: kinds[each.get_io_type()] for each in node.define_schema().inputs if each.get_io_type() in kinds}
    assert set(linked) & {"start_percent", "drop_at"}
    assert problems(node, **linked) == {}
    for each, link in linked.items():
        assert problems(node, **{each: link}) == {}


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("QualityGuidance", {"strength": 100}, {"strength": "value_bigger_than_max"}),
        ("QualityGuidance", {"decoder": "foo"}, {"decoder": "value_not_in_list"}),
        ("BestOfNSampler", {"candidates": 0}, {"candidates": "value_smaller_than_min"}),
        ("BestOfNSampler", {"sampler_name": "nope"}, {"sampler_name": "value_not_in_list"}),
        ("BestOfNSampler", {"drop_at": "0.7, 0.4"}, {"drop_at": "custom_validation_failed"}),
        ("AttributeGuidance", {"noise": 11.0}, {"noise": "value_bigger_than_max"}),
    ],
)
def test_comfyui_refuses_values_out_of_range(name, changed, expected, pack, problems):
    assert problems(getattr(pack, name), **changed) == expected


@pytest.mark.parametrize("name", ["QualityGuidance", "AttributeGuidance"])
@pytest.mark.parametrize("percents", [(0.9, 0.2), (-0.1, 0.5), (0.2, 1.5), (["PrimitiveFloat", 0], 1.5)])
def test_comfyui_refuses_a_bad_window_at_its_own_inputs(name, percents, pack, problems):
    found = problems(getattr(pack, name), start_percent=percents[0], end_percent=percents[1])
    assert {"start_percent", "end_percent"} <= set(found) <= {"start_percent", "end_percent", "attributes"}
    assert set(found.values()) == {"custom_validation_failed"}
