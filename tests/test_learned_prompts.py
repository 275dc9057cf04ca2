"""QualiCLIP+ and CLIP-IQA+ against open_clip's own text tower, and the published layout of their files."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_qualiclip import SMALL, normalised, open_clip_model, published, without_positions
from torch.nn import functional as F

from iqguide import create_model
from iqguide.models import WeightsError
from iqguide.models.learned_prompts import TEXTS, load_prompts, save_prompts, start_tuning
from iqguide.models.qualiclip import PROMPTS

NAMES = ("qualiclip+", "clipiqa+")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(3)
    return open_clip_model(SMALL)


@pytest.fixture(scope="module")
def base(tmp_path_factory, clip):
    """A QualiCLIP file, which has all that a CLIP has."""
    path = tmp_path_factory.mktemp("base") / "qualiclip.pth"
    features = F.normalize(torch.randn(14, SMALL.embed_dim), dim=-1)
    torch.save(published(clip, features), path)
    return path


def tuning(name, base, **options):
    return start_tuning(name, base=base, config=SMALL, **options)


def make(name, weights, base, **options):
    return create_model(name, weights=weights, base=base, config=SMALL, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_context_of_words_reads_as_the_words(name, clip, base):
    """With the embeddings of words as context, the features are those of the whole text by open_clip itself."""
    before, after = "one two three four five six seven eight", "red green blue grey black white brown pink"
    prompts = tuning(name, base).prompts
    tokens = open_clip.tokenize([f"{before} {after}"])[0, 1:17]
    assert prompts.ctx.shape == (len(TEXTS[name]), 16, SMALL.text_width)
    with torch.no_grad():
        prompts.ctx.copy_(clip.token_embedding(tokens).expand_as(prompts.ctx))
        texts = [f"{before} {text} {after}" for text in TEXTS[name]]
        expected = clip.encode_text(open_clip.tokenize(texts))
        torch.testing.assert_close(prompts(tuning(name, base).tower), expected, atol=1e-5, rtol=1e-4)


def test_published_shapes(base):
    state = tuning("qualiclip+", base).prompts.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "ctx": (14, 16, SMALL.text_width),
        "token_prefix": (14, 1, SMALL.text_width),
        "token_suffix": (14, 60, SMALL.text_width),
    }
    assert TEXTS["qualiclip+"] == PROMPTS


def test_the_context_is_split_round_the_prompt_alone(base):
    """Numbers of tokens by CLIP's own tokenizer; the published code of CLIP-IQA+ counts three for 'Good photo..'."""
    assert tuning("qualiclip+", base).prompts.lengths == [3, 3, 3, 3, 3, 3, 5, 5, 5, 3, 5, 5, 3, 3]
    assert tuning("clipiqa+", base).prompts.lengths == [3, 3]


@pytest.mark.parametrize(("name", "temperature"), [("qualiclip+", 2.0), ("clipiqa+", 1.0)])
def test_score_is_the_formula(name, temperature, clip, base, tmp_path):
    start = tuning(name, base, seed=5)
    save_prompts(start.prompts, tmp_path / "plus.pth")
    saved = torch.load(tmp_path / "plus.pth", weights_only=True)
    assert set(saved["params"]) == {f"prompt_learner.{name}" for name in ("ctx", "token_prefix", "token_suffix")}
    model = make(name, tmp_path / "plus.pth", base)
    images = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        x = F.normalize(without_positions(clip)(normalised(images)), dim=-1)
        t = F.normalize(start.prompts(start.tower), dim=-1)
        logits = (clip.logit_scale.exp() * x @ t.T).view(3, -1, 2)
        expected = (logits / temperature).softmax(-1)[..., 0].mean(1)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(start(images), expected, atol=1e-5, rtol=0)
    assert not any("token_embedding" in parameter for parameter, _ in model.named_parameters())


def test_only_the_context_learns(base):
    start = tuning("qualiclip+", base).train()
    assert [name for name, parameter in start.named_parameters() if parameter.requires_grad] == ["prompts.ctx"]
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    optimiser = torch.optim.Adam([start.prompts.ctx], 2e-2)
    images = torch.rand(4, 3, 40, 48) * torch.rand(4, 1, 1, 1)
    target = torch.tensor([0.2, 0.8, 0.4, 0.6])
    losses = []
    for _ in range(12):
        loss = (start(images) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = {name for name, tensor in start.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"prompts.ctx"}


@pytest.mark.parametrize("kind", ["bare", "params", "safetensors", "half"])
def test_every_form_of_the_file(kind, base, tmp_path):
    """The bare context, as CLIP-IQA+ was published, and named tensors with or without `params`."""
    start = tuning("clipiqa+", base, seed=2)
    context = start.prompts.ctx.detach().clone()
    path = tmp_path / ("p.safetensors" if kind == "safetensors" else "p.pth")
    if kind == "bare":
        context[:] = context[0]
        torch.save(context[0].half(), path)
    elif kind == "params":
        torch.save({"params": {"prompt_learner.ctx": context}}, path)
    elif kind == "half":
        torch.save({name: tensor.half() for name, tensor in start.prompts.state_dict().items()}, path)
    else:
        save_file({"prompt_learner.ctx": context}, path)
    again = tuning("clipiqa+", base, seed=9).prompts
    load_prompts(again, path)
    torch.testing.assert_close(again.ctx, context, atol=1e-4, rtol=0)


def change(state, fault):
    if fault == "order":
        state["prompt_learner.token_suffix"] = state["prompt_learner.token_suffix"].flip(0)
    elif fault == "thirteen":
        state["prompt_learner.ctx"] = state["prompt_learner.ctx"][:13]
    elif fault == "width":
        state["prompt_learner.ctx"] = state["prompt_learner.ctx"][..., :8]
    elif fault == "none":
        del state["prompt_learner.ctx"]
    elif fault == "extra":
        state["classifier"] = torch.zeros(1)
    elif fault == "nan":
        state["prompt_learner.ctx"][0, 0, 0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("order", "learned for other prompts, or on another CLIP: its token_suffix differs"),
        ("thirteen", "context for 13 prompts; expected 14"),
        ("width", r"context of shape \(14, 16, 8\); expected \(14, 16, 32\)"),
        ("none", "context of shape none"),
        ("extra", "a tensor 'classifier' that is not expected"),
        ("nan", r"NaN or infinite numbers in prompt_learner\.ctx"),
    ],
)
def test_layout_is_read_strictly(fault, message, base, tmp_path):
    prompts = tuning("qualiclip+", base).prompts
    save_prompts(prompts, tmp_path / "good.pth")
    state = torch.load(tmp_path / "good.pth", weights_only=True)["params"]
    torch.save({"params": change(state, fault)}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=message):
        make("qualiclip+", tmp_path / "bad.pth", base)


def test_files_that_are_no_prompts(base, tmp_path, clip):
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(WeightsError, match="cannot be read as learned prompts"):
        make("qualiclip+", tmp_path / "noise.pth", base)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        make("qualiclip+", tmp_path / "list.pth", base)
    tower = {name: t.clone() for name, t in clip.state_dict().items() if name.startswith(("visual.", "logit"))}
    save_prompts(tuning("qualiclip+", base).prompts, tmp_path / "good.pth")
    torch.save(tower, tmp_path / "half.pt")
    with pytest.raises(WeightsError, match=r"half\.pt has no text tower, which qualiclip\+ needs"):
        make("qualiclip+", tmp_path / "good.pth", tmp_path / "half.pt")
