"""Writing models, and the hub's layout, with no network."""

import copy
import json

import pytest
import torch
from huggingface_hub import HfApi

import iqguide
from iqguide.models import ClipConfig, WeightsError, hub, save_model
from iqguide.models.tiny import Tiny

SMALL = ClipConfig(layers=(1, 2, 1, 1), width=8, head_width=32, embed_dim=16, image_size=64)
PAIRS = (("Calm.", "Loud."), ("Old.", "New."))


def make(name):
    options = {"qualiclip": {"temperature": 3.0, "config": SMALL}, "clipiqa": {"pairs": PAIRS, "config": SMALL}}
    model = iqguide.create_model(name, weights="random", **options.get(name, {}))
    model.margin_mean.fill_(0.25)
    return model


NAMES = ("tiny", "qualiclip", "clipiqa", "bpclip-mini")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_says_the_same(name, images, tmp_path):
    model = make(name)
    save_model(model, tmp_path / "it.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["it.safetensors"]  # nothing unfinished is left
    again = iqguide.create_model(name, weights=tmp_path / "it.safetensors")
    tolerance = 0 if "clip" in name and "bp" not in name else 5e-3  # halves of the matrices of the others
    torch.testing.assert_close(again.margin(images), model.margin(images), rtol=tolerance, atol=tolerance)
    if name == "clipiqa":
        assert again.pairs == PAIRS
    if name == "qualiclip":
        assert again.temperature == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_there_and_back(name, images, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {path.name for path in tmp_path.iterdir()}
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(again(images), model(images), rtol=5e-3, atol=5e-3)
    second = tmp_path / "second"
    again.save_pretrained(second)
    assert (second / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_repository_is_read_through_the_hub(images, tmp_path, monkeypatch):
    model = make("tiny")
    model.save_pretrained(tmp_path)
    asked = []

    def download(repository, filename, **options):
        asked.append((repository, filename, options["revision"]))
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda *given, **options: str(tmp_path / "config.json")
    )
    again = type(model).from_pretrained("someone/tiny-tuned", revision="v2")
    assert asked == [("someone/tiny-tuned", "model.safetensors", "v2")]
    torch.testing.assert_close(again(images), model(images), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("variable", ["IQGUIDE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_of_the_hub(monkeypatch, tmp_path, variable):
    def connect(*address, **options):
        raise AssertionError("a connection was tried")

    for name in ("IQGUIDE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("socket.getaddrinfo", connect)
    with pytest.raises(WeightsError, match=r"someone/tiny-tuned is not in .* downloads are off"):
        Tiny.from_pretrained("someone/tiny-tuned", cache_dir=tmp_path)
    make("tiny").save_pretrained(tmp_path / "folder")
    assert isinstance(Tiny.from_pretrained(tmp_path / "folder"), Tiny)


def test_push_to_hub_sends_the_folder(monkeypatch):
    sent = {}

    def upload_folder(self, *, repo_id, folder_path, **options):
        from pathlib import Path

        sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    class Created:
        repo_id = "someone/mine"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: Created())
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    make("bpclip-mini").push_to_hub("someone/mine")
    assert sent["someone/mine"] >= {"model.safetensors", "config.json", "README.md"}


def test_one_class_is_not_read_as_another(tmp_path):
    make("clipiqa").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"holds a ClipIQA; expected a QualiCLIP"):
        iqguide.models.QualiCLIP.from_pretrained(tmp_path)


def test_a_saved_clipiqa_keeps_its_pairs_and_takes_another_temperature(images, tmp_path):
    path, model = tmp_path / "it.safetensors", make("clipiqa")
    model.margin_mean.fill_(0.3)
    model.margin_std.fill_(0.2)
    save_model(model, path)
    same = iqguide.create_model("clipiqa", weights=path, pairs=PAIRS, temperature=7)
    torch.testing.assert_close(same.logits(images) * 7, model.logits(images))
    torch.testing.assert_close(same.margin(images), model.margin(images), atol=1e-4, rtol=1e-4)  # calibrated anew
    with pytest.raises(ValueError, match=r"it\.safetensors brings its own pairs, \(\('Calm"):
        iqguide.create_model("clipiqa", weights=path, pairs=PAIRS[::-1])


def test_seven_pairs_of_ones_own_are_no_qualiclip(tmp_path):
    pairs = tuple((f"good {n}", f"bad {n}") for n in range(7))
    model = iqguide.create_model("clipiqa", weights="random", pairs=pairs, config=SMALL)
    save_model(model, tmp_path / "it.safetensors")
    with pytest.raises(WeightsError, match="holds a ClipIQA; expected a QualiCLIP"):
        iqguide.create_model("qualiclip", weights=tmp_path / "it.safetensors")


def test_something_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got Linear; expected a quality model"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_config_from_the_future_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(make("qualiclip"), tmp_path / "it.safetensors")
    state = load_file(tmp_path / "it.safetensors")
    config = {"clip": {"depth": 3}, "temperature": 2.0, "pairs": []}
    save_file(state, tmp_path / "it.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"has a config that this version does not know \(.*depth"):
        iqguide.create_model("qualiclip", weights=tmp_path / "it.safetensors")


def test_models_can_still_be_copied(images):
    for name in NAMES:
        model = make(name)
        assert torch.equal(copy.deepcopy(model)(images), model(images))


@pytest.mark.parametrize(("name", "known"), [("tiny", True), ("nobody's", False), (["tiny"], False), (None, False)])
def test_the_name_in_a_file_may_be_anything(name, known, tmp_path):
    from safetensors.torch import save_file

    make("tiny").save_pretrained(tmp_path)
    state = {key: value for key, value in make("tiny").state_dict().items() if "num_batches" not in key}
    save_file(state, tmp_path / "model.safetensors", metadata={"config": json.dumps({"model": "Tiny", "name": name})})
    assert (Tiny.from_pretrained(tmp_path).spec is not None) == known
