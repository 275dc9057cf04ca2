"""QualiCLIP against open_clip's own towers, the published file layout and the paper's formula."""

import math
from functools import partial

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from iqguide import create_model
from iqguide.models import ClipConfig, WeightsError, clip_towers
from iqguide.models.clip import text_layout
from iqguide.models.clip_config import RN50
from iqguide.models.clip_towers import FirstTokenPool, vision_tower
from iqguide.models.qualiclip import PAIRS, PROMPTS

SMALL = ClipConfig(layers=(1, 1, 1, 1), width=8, embed_dim=16, text_width=32, text_heads=2, text_layers=2)
make = partial(create_model, "qualiclip", config=SMALL)


def open_clip_model(config):
    """The real CLIP of open_clip in the sizes of a config, with random weights and random batch-norm statistics."""
    model = open_clip.CLIP(
        config.embed_dim,
        {
            "layers": list(config.layers),
            "width": config.width,
            "head_width": config.head_width,
            "image_size": config.image_size,
        },
        {"width": config.text_width, "heads": config.text_heads, "layers": config.text_layers},
        quick_gelu=True,
    )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".bn" in name or "downsample.1" in name:
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
    return model.eval()


def published(model, features):
    """A state dict in the layout of the published file."""
    prefixed = {f"clip_model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    return {"prompts_features": features, **prefixed}


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(3)
    return open_clip_model(SMALL)


@pytest.fixture(scope="module")
def features():
    return F.normalize(torch.randn(14, SMALL.embed_dim, generator=torch.Generator().manual_seed(4)), dim=-1)


@pytest.fixture
def checkpoint(tmp_path, reference, features):
    path = tmp_path / "qualiclip.pth"
    torch.save(published(reference, features), path)
    return path


@pytest.fixture
def no_text_tower(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the text tower was built")

    monkeypatch.setattr(clip_towers, "TextTransformer", refuse)


def without_positions(model):
    """Encode pictures with open_clip's own pool, its positional embedding set to zero (it takes 224 px only)."""
    with torch.no_grad():
        model.visual.attnpool.positional_embedding.zero_()
    return model.encode_image


def normalised(images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (images - mean) / std


def test_fourteen_prompts_in_seven_pairs():
    assert len(PROMPTS) == len(set(PROMPTS)) == 14
    assert len(PAIRS) == 7
    assert all(prompt.endswith(".") and prompt.count(".") == 1 for prompt in PROMPTS)
    tokens = open_clip.tokenize(list(PROMPTS))
    lengths = (tokens != 0).sum(1) - 2  # without start and end
    assert lengths.tolist() == [3, 3, 3, 3, 3, 3, 5, 5, 5, 3, 5, 5, 3, 3]  # CLIP's own tokenizer on the paper's prompts


def test_full_size_checkpoint_agrees_with_open_clip(tmp_path, no_text_tower):
    theirs = open_clip_model(RN50)
    assert len(theirs.state_dict()) == 489
    features = F.normalize(torch.randn(14, 1024), dim=-1)
    path = tmp_path / "qualiclip.pth"
    torch.save(published(theirs, features), path)
    ours = create_model("qualiclip", weights=path)
    path.unlink()  # 408 MB

    assert sum(parameter.numel() for parameter in ours.parameters()) == 38_316_896
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = F.normalize(without_positions(theirs)(normalised(images)), dim=-1)
        actual = F.normalize(ours.visual(normalised(images)), dim=-1)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        pairs = (theirs.logit_scale.exp() * expected @ features.T).view(1, 7, 2)
        torch.testing.assert_close(ours(images), (pairs / 2).softmax(-1)[..., 0].mean(1), atol=1e-4, rtol=0)


def test_the_layout_is_that_of_open_clip_at_full_size():
    with torch.device("meta"):
        theirs = open_clip_model(RN50)
        ours = {f"visual.{name}" for name in vision_tower().state_dict()}
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    text = text_layout()
    assert {name: shapes[name] for name in text} == text
    assert shapes.keys() == ours | text.keys() | {"logit_scale"}


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (3, 11)])
def test_pool_asks_with_the_first_token_only(size):
    """Against torch's multi-head attention over all tokens, at any size."""
    pool = FirstTokenPool(7, 64, 4, 10).eval()
    maps = torch.randn(2, 64, *size)
    whole = maps.flatten(2).permute(2, 0, 1)
    whole = torch.cat([whole.mean(0, keepdim=True), whole])
    biases = torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias])
    weights = {f"{name}_proj_weight": getattr(pool, f"{name}_proj").weight for name in "qkv"}
    with torch.no_grad():
        expected, _ = F.multi_head_attention_forward(
            *(whole, whole, whole, 64, 4, None, biases, None, None, False, 0.0),
            *(pool.c_proj.weight, pool.c_proj.bias),
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            **weights,
        )
        torch.testing.assert_close(pool(maps), expected[0], atol=1e-5, rtol=0)


def test_score_is_the_formula(checkpoint, reference, features, no_text_tower):
    images = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        x = F.normalize(without_positions(reference)(normalised(images)), dim=-1)
        logits = (reference.logit_scale.exp() * x @ features.T).view(3, 7, 2)
        for options, temperature, alpha in (
            ({}, 2.0, 1 / 0.07),  # open_clip starts its logit_scale at ln(1 / 0.07)
            ({"temperature": 3.0}, 3.0, 1 / 0.07),
            ({"preset": "hub"}, 1.0, 100.0),
            ({"preset": "hub", "temperature": 2.0}, 2.0, 100.0),
        ):
            model = make(weights=checkpoint, **options)
            pairs = logits * alpha * 0.07 / temperature
            probabilities = pairs.softmax(-1)[..., 0]
            torch.testing.assert_close(model.scores(images), probabilities, atol=1e-5, rtol=0)
            torch.testing.assert_close(model(images), probabilities.mean(1), atol=1e-5, rtol=0)
            margin = (pairs[..., 0] - pairs[..., 1]).mean(1)
            torch.testing.assert_close(model.margin(images), margin, atol=1e-4, rtol=0)


def test_margin_does_not_saturate(checkpoint):
    """Where sigmoid is flat, the score has lost its gradient and the margin has not."""
    model = make(weights=checkpoint, temperature=1e-4)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    (of_score,) = torch.autograd.grad(model(images).sum(), images)
    (of_margin,) = torch.autograd.grad(model.margin(images).sum(), images)
    assert of_score.norm() < 1e-6 * of_margin.norm()


def test_plain_copy_without_the_text_tower(checkpoint, tmp_path, reference, features, no_text_tower):
    state = {name: t.clone() for name, t in reference.state_dict().items() if name.startswith("visual.")}
    path = tmp_path / "plain.safetensors"
    save_file({**state, "logit_scale": reference.logit_scale.detach().clone(), "prompts_features": features}, path)
    images = torch.rand(2, 3, 48, 64)
    assert torch.equal(make(weights=path)(images), make(weights=checkpoint)(images))


def test_vision_tower_and_prompts_alone_have_the_scale_of_openai(tmp_path, reference, features, no_text_tower):
    state = {f"clip_model.{name}": t for name, t in reference.state_dict().items() if name.startswith("visual.")}
    state["prompts_features"] = features
    bare, whole = tmp_path / "bare.pth", tmp_path / "whole.pth"
    torch.save(state, bare)
    torch.save(state | {"logit_scale": torch.tensor(math.log(100))}, whole)
    images = torch.rand(2, 3, 48, 64)
    torch.testing.assert_close(make(weights=bare).margin(images), make(weights=whole).margin(images))


def test_without_prompts_features_the_text_tower_makes_them_once(tmp_path, reference, monkeypatch):
    built = []
    real = clip_towers.TextTransformer
    monkeypatch.setattr(clip_towers, "TextTransformer", lambda **sizes: built.append(real(**sizes)) or built[-1])
    path = tmp_path / "clip.pt"
    torch.save(reference.state_dict(), path)
    model = make(weights=path)
    assert len(built) == 1
    assert not any(module is built[0] for module in model.modules())
    with torch.no_grad():
        expected = reference.encode_text(open_clip.tokenize(list(PROMPTS)), normalize=True)
    torch.testing.assert_close(model.prompts_features, expected, atol=1e-6, rtol=0)


def test_own_state_dict_can_be_read_again(checkpoint, tmp_path):
    model = make(weights=checkpoint, preset="hub")
    model.calibrate_margin(torch.rand(2, 4, 3, 32, 32))
    path = tmp_path / "own.safetensors"
    save_file(model.state_dict(), path)
    again = make(weights=path, preset="hub")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert torch.equal(again.margin(images), model.margin(images))


def test_calibrated_margin_is_in_units_of_its_spread(checkpoint):
    model = make(weights=checkpoint)
    batches = torch.rand(3, 5, 3, 32, 40) * torch.rand(3, 5, 1, 1, 1)
    raw = torch.cat([model.margin(images) for images in batches])
    model.calibrate_margin(batches)
    margins = torch.cat([model.margin(images) for images in batches])
    assert abs(margins.mean()) < 1e-4
    assert abs(margins.std() - 1) < 1e-4
    assert torch.equal(margins.argsort(), raw.argsort())
    with pytest.raises(ValueError, match="got 1 pictures without spread"):
        model.calibrate_margin(batches[:1, :1])


def change(state, fault):
    if fault == "visual missing":
        del state["clip_model.visual.layer1.0.conv1.weight"]
    elif fault == "text missing":
        del state["clip_model.ln_final.bias"]
    elif fault == "scale missing":
        del state["clip_model.logit_scale"]
    elif fault == "extra":
        state["classifier.weight"] = torch.zeros(1)
    elif fault == "extra visual":
        state["clip_model.visual.layer9.weight"] = torch.zeros(1)
    elif fault == "thirteen prompts":
        state["prompts_features"] = state["prompts_features"][:13].clone()
    elif fault == "other size":
        state["clip_model.visual.attnpool.c_proj.weight"] = torch.zeros(8, 256)
    elif fault == "nan":
        state["clip_model.visual.bn1.bias"][0] = math.nan
    return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("visual missing", r"another layout.*1 missing \(first: layer1\.0\.conv1\.weight\)"),
        ("text missing", r"another layout.*1 missing \(first: ln_final\.bias\)"),
        ("scale missing", "no logit_scale"),
        ("extra", r"not expected \(first: classifier\.weight\)"),
        ("extra visual", r"1 unexpected \(first: layer9\.weight\)"),
        ("thirteen prompts", r"prompts_features of shape \(13, 16\); expected \(14, 16\)"),
        ("other size", r"attnpool\.c_proj\.weight has shape \(8, 256\), expected \(16, 256\)"),
        ("nan", r"NaN or infinite numbers in clip_model\.visual\.bn1\.bias"),
    ],
)
def test_layout_is_read_strictly(tmp_path, reference, features, fault, message):
    path = tmp_path / "broken.pth"
    torch.save(change(published(reference, features), fault), path)
    with pytest.raises(WeightsError, match=message):
        make(weights=path)


def test_bad_options():
    with pytest.raises(ValueError, match="unknown preset 'pyiqa'; expected one of paper, hub"):
        make(weights="random", preset="pyiqa")
    for temperature in (0, -1, math.nan):
        with pytest.raises(ValueError, match=r"temperature is .*; expected a positive number"):
            make(weights="random", temperature=temperature)


def test_casting_rounds_the_tower_but_not_the_head(checkpoint):
    model = make(weights=checkpoint)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if not name.startswith("visual.")}
    assert {"prompts_features", "alpha", "margin_mean", "margin_std"} <= exact.keys()
    for cast in (model.half, model.bfloat16, model.float):
        cast()
        for name, buffer in exact.items():
            assert torch.equal(model.get_buffer(name), buffer), name
