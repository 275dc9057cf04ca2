"""CLIP-IQA with real open_clip towers at small size."""

from functools import partial

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from iqguide import create_model
from iqguide.models import ClipConfig, WeightsError

SMALL = ClipConfig(layers=(1, 1, 1, 1), width=8, embed_dim=16, text_width=32, text_heads=2, text_layers=2)
PAIRS = (("Good photo.", "Bad photo."), ("Bright photo.", "Dark photo."), ("Sharp photo.", "Blurry photo."))
make = partial(create_model, "clipiqa", config=SMALL)


@pytest.fixture(scope="module")
def reference():
    """The real CLIP of open_clip at small size, its last batch norms opened (they start at zero)."""
    torch.manual_seed(5)
    text = {"width": SMALL.text_width, "heads": SMALL.text_heads, "layers": SMALL.text_layers}
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 224}
    model = open_clip.CLIP(SMALL.embed_dim, vision, text, quick_gelu=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(1)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path, reference):
    path = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensor.clone() for name, tensor in reference.state_dict().items()}, path)
    return path


def by_hand(reference, images, pairs):
    """softmax([alpha x.t+, alpha x.t-])[0] from open_clip's own encoders, its positional embedding zeroed."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        reference.visual.attnpool.positional_embedding.zero_()
        x = reference.encode_image((images - mean) / std, normalize=True)
        texts = reference.encode_text(open_clip.tokenize([p for pair in pairs for p in pair]), normalize=True)
        logits = reference.logit_scale.exp() * x @ texts.T
        return logits.view(len(images), -1, 2).softmax(-1)[..., 0]


def test_default_pair(checkpoint, reference):
    images = torch.rand(2, 3, 224, 224)
    model = make(weights=checkpoint)
    expected = by_hand(reference, images, PAIRS[:1])
    torch.testing.assert_close(model(images), expected[:, 0], atol=1e-5, rtol=0)
    assert model.pairs == PAIRS[:1]


def test_any_pairs_one_score_each(checkpoint, reference):
    images = torch.rand(2, 3, 224, 224)
    model = make(weights=checkpoint, pairs=[list(pair) for pair in PAIRS])
    expected = by_hand(reference, images, PAIRS)
    torch.testing.assert_close(model.scores(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images), expected.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.margin(images), expected.logit().mean(1), atol=1e-4, rtol=0)
    assert model.pairs == PAIRS


def test_turned_pair_turns_the_score(checkpoint):
    images = torch.rand(3, 3, 40, 56)
    score, turned = make(weights=checkpoint)(images), make(weights=checkpoint, pairs=[PAIRS[0][::-1]])(images)
    torch.testing.assert_close(score + turned, torch.ones(3), atol=1e-6, rtol=0)


def test_temperature(checkpoint):
    images = torch.rand(2, 3, 64, 64)
    soft = make(weights=checkpoint, temperature=4.0).margin(images)
    torch.testing.assert_close(soft * 4, make(weights=checkpoint).margin(images), atol=1e-5, rtol=0)


def half(state):
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("wrap", "tolerance"),
    [
        (lambda state: state, 0),
        (lambda state: {"state_dict": state, "epoch": 3}, 0),
        (lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, 0),
        (lambda state: {**state, "input_resolution": torch.tensor(224), "vocab_size": torch.tensor(49408)}, 0),
        (half, 0.02),  # as OpenAI stores them
    ],
)
def test_layouts_of_open_clip_and_openai(checkpoint, tmp_path, reference, wrap, tolerance):
    path = tmp_path / "clip.pt"
    torch.save(wrap(reference.state_dict()), path)
    images = torch.rand(2, 3, 64, 96)
    model = make(weights=path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(images), make(weights=checkpoint)(images), atol=tolerance, rtol=0)


def test_a_qualiclip_file_serves_with_other_prompts(checkpoint, tmp_path, reference):
    path = tmp_path / "qualiclip.pth"
    state = {f"clip_model.{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({"prompts_features": F.normalize(torch.randn(14, 16), dim=-1), **state}, path)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(make(weights=path)(images), make(weights=checkpoint)(images))


def test_without_a_text_tower_it_cannot_read_the_prompts(tmp_path, reference):
    path = tmp_path / "visual.pt"
    state = reference.state_dict()
    torch.save({name: t for name, t in state.items() if name.startswith("visual.") or name == "logit_scale"}, path)
    with pytest.raises(WeightsError, match="no text tower"):
        make(weights=path)


@pytest.mark.parametrize(
    "pairs",
    ["Good photo.", (), ("Good photo.", "Bad photo."), [("one",)], [("a", "b", "c")], [("good", 1)], [("good", " ")]],
)
def test_bad_pairs(pairs):
    with pytest.raises(ValueError, match="expected one or more pairs of texts"):
        make(weights="random", pairs=pairs)


def test_prompt_that_clip_cannot_read(checkpoint):
    with pytest.raises(ValueError, match="is too long; CLIP reads at most 76 tokens"):
        make(weights=checkpoint, pairs=[("Good photo.", "bad " * 80)])
