"""Configs inside weights files, by accident or by ill will: held to what is known before anything is built."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import iqguide
from iqguide.models import BPCLIP, BPCLIPConfig, ClipConfig, WeightsError, save_model
from iqguide.models.clip_towers import VisionTransformer
from iqguide.models.tiny import Tiny

BPCLIP_SMALL = BPCLIPConfig(
    backbone="resnet18", channels=(8, 8, 8, 8), width=8, heads=2, mask_width=2, text_dim=8, positions=2
)
CLIP_SMALL = ClipConfig(layers=(1, 1, 1, 1), width=8, embed_dim=16, text_width=32, text_heads=2, text_layers=2)
SMALL = {"bpclip": {"config": BPCLIP_SMALL}, "qualiclip": {"config": CLIP_SMALL}, "clipiqa": {"config": CLIP_SMALL}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sound files by the names of their models."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("tiny", *SMALL):
        save_model(iqguide.create_model(name, weights="random", **SMALL.get(name, {})), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def with_config(files, tmp_path):
    """Write a file again with other values in its config, and say where it is."""

    def write(name, **changes):
        with safe_open(files / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            config = json.loads(file.metadata()["config"])
        for key, value in changes.items():
            place = config["clip"] if name != "bpclip" and key in config.get("clip", {}) else config
            place[key] = value
        save_file(tensors, tmp_path / "it.safetensors", {"config": json.dumps(config)})
        return tmp_path / "it.safetensors"

    return write


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize(
    "backbone",
    [
        *("hf-hub:someone/backbone", "hf_hub:someone/backbone", "local-dir:/etc", "https://example.org/resnet18"),
        *("vit_base_patch16_224", "../resnet18", "", 18, None, ["resnet18"]),
    ],
)
def test_a_backbone_that_is_an_address_is_never_asked_for(with_config, monkeypatch, backbone, offline):
    import timm

    monkeypatch.setenv("IQGUIDE_OFFLINE", offline)
    monkeypatch.setattr(timm, "create_model", lambda *names, **sizes: pytest.fail("timm was asked"))
    with pytest.raises(WeightsError, match=r"it\.safetensors has a config that this version does not know"):
        iqguide.create_model("bpclip", weights=with_config("bpclip", backbone=backbone))


BAD = [
    *[("bpclip", "width", value) for value in (0, -8, 10**9, 8.0, "8", True, None, [8])],
    *[("bpclip", "heads", value) for value in (0, 3, 10**6)],
    *[("bpclip", "positions", value) for value in (0, 10**6)],
    *[("bpclip", "channels", value) for value in ([8, 8, 8], [8, 8, 8, 10**6], [8, 8, 8, 0], "8888")],
    *[
        ("bpclip", "pairs", value)
        for value in ([], [["a", "b"]], [["a", "b", 3]], "abc", None, [["a", "b", "c"]] * 513)
    ],
    *[("bpclip", "template", value) for value in ("", "{0.__class__}", "{}" * 2, 3)],
    *[("bpclip", "full_reference", value) for value in ("yes", 1, None)],
    *[("bpclip", "text_source", value) for value in (3, "x" * 300)],
    ("bpclip", "address", "https://example.org"),
    *[("qualiclip", "width", value) for value in (0, 10**9, "8", 7)],
    *[("qualiclip", "layers", value) for value in ([1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 10**6], 4)],
    *[("qualiclip", "temperature", value) for value in (0, -1, "nan", "inf", [])],
    *[("clipiqa", "pairs", value) for value in ([], [["a"]], [[1, 2]], 3, [["a", "b"]] * 300)],
    *[("clipiqa", "vocab_size", value) for value in (0, 10**12)],
    ("clipiqa", "clip", {"depth": 3}),
    ("tiny", "width", 8),
    ("tiny", "trust_remote_code", True),
]


@pytest.mark.parametrize(("name", "field", "value"), BAD)
def test_values_out_of_range_are_refused_before_anything_is_built(with_config, monkeypatch, name, field, value):
    path = with_config(name, **{field: value})
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self: pytest.fail("a network was built"))
    with pytest.raises(WeightsError, match=r"it\.safetensors has a config .*\("):
        iqguide.create_model(name, weights=path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '"resnet18"', "[" * 100_000, '{"model": "Tiny", "model": 3}'])
def test_a_config_that_is_no_object(tmp_path, text):
    save_file(Tiny().state_dict(), tmp_path / "it.safetensors", {"config": text})
    with pytest.raises(WeightsError, match=r"it\.safetensors (has a config|holds a 3)"):
        iqguide.create_model("tiny", weights=tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    ("name", "buffer"),
    [("tiny", "margin_std"), ("tiny", "score_scale"), ("bpclip", "margin_std"), ("clipiqa", "margin_std")],
)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_calibration_that_turns_the_order_round_is_refused(tmp_path, name, buffer, value):
    model = iqguide.create_model(name, weights="random", **SMALL.get(name, {}))
    getattr(model, buffer).fill_(value)
    save_model(model, tmp_path / "it.safetensors")
    with pytest.raises(WeightsError, match=rf"holds {value:g} in {buffer}; expected positive numbers"):
        iqguide.create_model(name, weights=tmp_path / "it.safetensors")


@pytest.mark.parametrize("name", ["bpclip", "qualiclip", "clipiqa", "tiny"])
def test_files_of_version_0_1_do_not_name_their_class(with_config, files, name):
    """They are read by what they hold; the class stands in the metadata of what is written now."""
    with safe_open(files / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    now = iqguide.create_model(name, weights=files / f"{name}.safetensors")
    assert config.pop("model") == type(now).__name__
    path = with_config(name)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    for key in ("patch", "positions", "quick_gelu"):
        config.get("clip", {}).pop(key, None)
    save_file(tensors, path, {"config": json.dumps(config)})
    images = torch.rand(2, 3, 40, 48)
    assert torch.equal(iqguide.create_model(name, weights=path)(images), now(images))


def test_one_class_in_place_of_another(files):
    for name, other in (("clipiqa", "qualiclip"), ("tiny", "bpclip"), ("bpclip", "tiny")):
        with pytest.raises(WeightsError, match=rf"{other}\.safetensors holds a \w+; expected a \w+"):
            iqguide.create_model(name, weights=files / f"{other}.safetensors")


def test_what_else_a_file_says_of_itself(tmp_path):
    model = BPCLIP(BPCLIP_SMALL, torch.randn(40, 8))
    model.save(tmp_path / "it.safetensors", {"held_out": "7"})
    with safe_open(tmp_path / "it.safetensors", "pt") as file:
        assert file.metadata()["held_out"] == "7"
    assert BPCLIP.load(tmp_path / "it.safetensors").config == BPCLIP_SMALL


@pytest.mark.parametrize(
    "change",
    [{"layers": (1, 1)}, {"patch": 0}, {"patch": 14.0}, {"head_width": 5}, {"positions": 1}, {"quick_gelu": None}],
)
def test_sizes_of_a_clip(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CLIP_SMALL, **change)
    sizes = dataclasses.replace(CLIP_SMALL, patch=14, layers=(2,), width=16, head_width=8)
    assert isinstance(VisionTransformer(sizes), torch.nn.Module)
