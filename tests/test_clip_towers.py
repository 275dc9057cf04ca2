"""ViT towers, positional embeddings at other sizes, CLIPs with plain GELU: against open_clip's own at small size."""

import dataclasses
import json
import logging

import open_clip
import pytest
import torch
from test_qualiclip import SMALL, normalised, open_clip_model
from torch.nn import functional as F

import iqguide
from iqguide.models import ClipConfig, WeightsError
from iqguide.models.clip_towers import resized_positions, text_tower, vision_tower
from iqguide.models.learned_prompts import save_prompts, start_tuning

VIT = ClipConfig(
    **{"layers": (2,), "width": 32, "patch": 14, "head_width": 16, "embed_dim": 16, "image_size": 56},
    **{"text_width": 32, "text_heads": 2, "text_layers": 2, "positions": True},
)


def open_clip_vit(config):
    """open_clip's CLIP with a ViT, with random weights."""
    vision = {"layers": config.layers[0], "width": config.width, "head_width": config.head_width}
    return open_clip.CLIP(
        config.embed_dim,
        {**vision, "patch_size": config.patch, "image_size": config.image_size},
        {"width": config.text_width, "heads": config.text_heads, "layers": config.text_layers},
        quick_gelu=config.quick_gelu,
    ).eval()


@pytest.fixture(scope="module", params=[True, False], ids=["QuickGELU", "GELU"])
def vit(request):
    torch.manual_seed(3)
    config = dataclasses.replace(VIT, quick_gelu=request.param)
    return config, open_clip_vit(config)


def test_the_vit_is_that_of_open_clip_at_its_own_size(vit):
    config, theirs = vit
    ours = vision_tower(config)
    ours.load_state_dict(theirs.visual.state_dict())
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs.visual(pixels), atol=1e-5, rtol=1e-5)


def test_the_text_tower_has_the_activation_of_its_clip(vit):
    config, theirs = vit
    ours = text_tower(config).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in ours.state_dict()})
    tokens = open_clip.tokenize(["Good photo.", "a rather bad photo"])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_the_resnet_with_positions_is_that_of_open_clip_at_its_own_size():
    torch.manual_seed(3)
    theirs = open_clip_model(SMALL).visual
    ours = vision_tower(dataclasses.replace(SMALL, positions=True)).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels), atol=1e-5, rtol=1e-5)
        ours.attnpool.positions = False
        assert (ours(pixels) - theirs(pixels)).abs().amax() > 1e-3


def test_positions_at_another_size_are_those_of_iqa_pytorch():
    """Its code: bicubic over the whole (tokens, channels) matrix, of which only the number of tokens changes."""
    embedding = torch.randn(50, 24)
    expected = F.interpolate(embedding[None, None], size=(97, 24), mode="bicubic").squeeze(0).squeeze(0)
    assert torch.equal(resized_positions(embedding, 97), expected)
    torch.testing.assert_close(resized_positions(embedding, 50), embedding)
    assert resized_positions(embedding.half(), 97).dtype == torch.float16


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (100, 56)])
def test_any_size_has_a_gradient(size):
    model = iqguide.create_model("clipiqa+_vitL14_512", weights="random", config=VIT)
    images = torch.rand(1, 3, *size, requires_grad=True)
    model.margin(images).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0


@pytest.mark.parametrize(
    ("name", "config"),
    [("clipiqa+_vitL14_512", VIT), ("clipiqa+_rn50_512", dataclasses.replace(SMALL, positions=True))],
)
def test_learned_prompts_on_these_towers(name, config, tmp_path):
    """The file that holds the prompts, the CLIP beside it, and a saved model that needs neither."""
    torch.manual_seed(5)
    theirs = open_clip_vit(config) if config.patch else open_clip_model(config)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    start = start_tuning(name, base=tmp_path / "clip.pt", config=config, seed=2)
    save_prompts(start.prompts, tmp_path / "plus.pth")
    model = iqguide.create_model(name, weights=tmp_path / "plus.pth", base=tmp_path / "clip.pt", config=config)
    images = torch.rand(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        x = F.normalize(theirs.visual(normalised(images)), dim=-1)
        t = F.normalize(start.prompts(start.tower), dim=-1)
        expected = (theirs.logit_scale.exp() * x @ t.T).softmax(-1)[:, 0]
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
    model.save(tmp_path / "whole.safetensors")
    again = iqguide.create_model("clipiqa", weights=tmp_path / "whole.safetensors")
    assert torch.equal(again(images), model(images))


@pytest.fixture
def gelu_clip(tmp_path):
    """A file of a CLIP with plain GELU, and the features of two prompts by open_clip."""
    torch.manual_seed(4)
    config = dataclasses.replace(VIT, quick_gelu=False)
    theirs = open_clip_vit(config)
    torch.save(theirs.state_dict(), tmp_path / "open_clip_model.pt")
    with torch.no_grad():
        features = theirs.encode_text(open_clip.tokenize(["Good photo.", "Bad photo."]), normalize=True)
    return tmp_path / "open_clip_model.pt", features


def tell(path, quick_gelu):
    sizes = {"embed_dim": 16} | ({} if quick_gelu is None else {"quick_gelu": quick_gelu})
    path.with_name("open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))


@pytest.mark.parametrize("by", ["option", "file", "file that leaves it out"])
def test_plain_gelu(gelu_clip, by, caplog):
    path, features = gelu_clip
    options = {"quick_gelu": False} if by == "option" else {}
    if by != "option":
        tell(path, False if by == "file" else None)
    with caplog.at_level(logging.INFO, logger="iqguide"):
        model = iqguide.create_model("clipiqa", weights=path, config=VIT, **options)
    torch.testing.assert_close(model.prompts_features, features, atol=1e-5, rtol=1e-5)
    said = "was trained with plain GELU, as open_clip_config.json beside it says"
    assert (said in caplog.text) == (by != "option")
    other = iqguide.create_model("clipiqa", weights=path, config=VIT, quick_gelu=True)
    assert (other.prompts_features - features).abs().amax() > 1e-4


def test_an_option_against_what_the_file_tells_is_warned_of(gelu_clip, caplog):
    path, _ = gelu_clip
    tell(path, False)
    with caplog.at_level(logging.WARNING, logger="iqguide"):
        iqguide.create_model("clipiqa", weights=path, config=VIT, quick_gelu=True)
    assert "was trained with plain GELU" in caplog.text
    assert "is read with QuickGELU, as asked for" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_cfg": 3}', "[" * 100_000])
def test_a_damaged_config_beside_the_file(gelu_clip, text):
    path, _ = gelu_clip
    path.with_name("open_clip_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"open_clip_config\.json cannot be read"):
        iqguide.create_model("clipiqa", weights=path, config=VIT)


def test_adjectives_of_a_bpclip_by_a_clip_with_plain_gelu(gelu_clip):
    path, features = gelu_clip
    words = (("overall", "Good photo.", "Bad photo."),)
    config = iqguide.models.BPCLIPConfig(
        **{"backbone": "resnet18", "channels": (8, 8, 8, 8), "width": 8, "heads": 2, "mask_width": 2, "positions": 2},
        pairs=words,
    )
    # the heads of a text tower are 64 channels wide in every published CLIP; this one has two of 16
    make = lambda **options: iqguide.create_model("bpclip", weights="random", config=config, text=path, **options)
    plain, quick = make(quick_gelu=False).text_features, make(quick_gelu=True).text_features
    assert plain.shape == features.shape
    assert (plain - quick).abs().amax() > 1e-4
