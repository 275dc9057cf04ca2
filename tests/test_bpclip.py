"""BPCLIP against the paper's equations, its sizes, and what a full-reference score must keep."""

import dataclasses
import importlib.util
import logging
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from iqguide import FullReference, create_model
from iqguide.models import BPCLIPConfig, WeightsError, attention, save_bpclip
from iqguide.models.adjectives import adjectives, read_pairs
from iqguide.models.attention import attend
from iqguide.models.bpclip_backbone import make_backbone
from iqguide.models.bpclip_blocks import Attention, GatedLocalPooling, Level, PositionalEncoding

SMALL = BPCLIPConfig(
    backbone="resnet18", channels=(16, 16, 24, 24), width=16, heads=2, mask_width=4, text_dim=16, positions=4
)
SMALL_FR = dataclasses.replace(SMALL, full_reference=True)


def make(**options):
    return create_model("bpclip", weights="random", **{"config": SMALL, **options})


def make_fr(**options):
    return create_model("bpclip-fr", weights="random", **{"config": SMALL_FR, **options})


def photographs(count, height=48, width=64, dtype=torch.float32):
    """Smooth pictures with structure, (N, 3, H, W)."""
    coarse = torch.rand(count, 3, 5, 6, dtype=dtype)
    return F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


# --- sizes ---


@pytest.mark.parametrize(("name", "millions", "gmacs"), [("bpclip", 44.2, 6.37), ("bpclip-fr", 42.6, 9.78)])
def test_full_size(name, millions, gmacs):
    """The figures of another build; the paper's figure 5 shows about 40 M, and 20.5 GFLOPs (2 x 9.78 and a bit)."""
    model = create_model(name, weights="random")
    count = sum(tensor.numel() for tensor in model.parameters())
    assert abs(count / (millions * 1e6) - 1) < 0.05
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        scores = model.raw(*([image] * (2 if name == "bpclip-fr" else 1)))
    assert abs(counted.get_total_flops() / 2e9 / gmacs - 1) < 0.05
    assert scores.isfinite().all()
    assert model.similarities(*([image] * (2 if name == "bpclip-fr" else 1))).shape == (1, 4, 40)


def test_mini_is_small():
    model = create_model("bpclip-mini", weights="random")
    count = sum(tensor.numel() for tensor in model.parameters())
    assert 2e6 < count < 4.5e6
    assert model.config.backbone == "efficientnet_lite0"


def test_backbone_is_timms_pyramid():
    theirs = timm.create_model("resnet50", features_only=True)
    with torch.device("meta"):
        ours = make_backbone(BPCLIPConfig())
    assert ours.feature_info.channels() == [64, 256, 512, 1024, 2048]
    assert ours.feature_info.reduction() == [2, 4, 8, 16, 32]
    shapes = {name: t.shape for name, t in theirs.state_dict().items() if "num_batches" not in name}
    assert {name: t.shape for name, t in ours.state_dict().items()} == shapes


def test_frozen_batch_norm_takes_no_part_in_training():
    for kind, frozen in (("frozen", True), ("trained", False)):
        network = make_backbone(dataclasses.replace(SMALL, batch_norm=kind)).train()
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        network(torch.rand(2, 3, 32, 32))
        same = all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
        assert same == frozen
        assert any("bn1.weight" in name for name, _ in network.named_parameters()) != frozen


def test_forty_adjectives_in_six_dimensions():
    pairs = read_pairs()
    words = adjectives(pairs)
    assert len(words) == len(set(words)) == 40
    assert len({dimension for dimension, _, _ in pairs}) == 6
    assert {"clear", "blurry", "sharp", "soft", "stable"} <= set(words)  # what the paper prints


def test_table_of_adjectives_is_checked(tmp_path):
    for text, message in (
        ("dimension,positive\nnoise,clean\n", "columns dimension,positive,negative"),
        ("dimension,positive,negative\nnoise,clean,\n", "all filled"),
        ("dimension,positive,negative\nnoise,clean,noisy\nother,pure,clean\n", "'clean' twice"),
    ):
        (tmp_path / "words.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_pairs(tmp_path / "words.csv")


# --- equations ---


def test_pooling_without_reference_is_equation_2():
    pool = GatedLocalPooling(6, 8, 4, full_reference=False)
    maps = torch.randn(2, 6, 9, 7)
    m = pool.mask
    mask = m[4](F.gelu(m[2](F.gelu(m[0](maps))))).sigmoid()
    gated = mask * torch.einsum("oi,nihw->nohw", pool.features.weight[..., 0, 0], maps)
    averaged = gated.unflatten(2, (3, 3)).mean((3, 4))[..., None]  # 9 rows -> 3, 7 columns -> 1
    torch.testing.assert_close(pool(maps, None, (3, 1)), F.gelu(pool.project(averaged)), atol=1e-6, rtol=1e-5)


def test_pooling_with_reference_is_equation_1():
    pool = GatedLocalPooling(6, 8, 4, full_reference=True)
    maps, reference = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)
    difference = (maps - reference).abs()
    m = pool.mask
    mask = m[4](F.gelu(m[2](F.gelu(m[0](difference))))).sigmoid()
    gated = torch.cat([mask * maps, mask * reference, mask * difference], 1)
    expected = F.gelu(pool.project(gated.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))))
    torch.testing.assert_close(pool(maps, reference, (2, 2)), expected, atol=1e-6, rtol=1e-5)


def test_attention_is_equation_3():
    """Against torch's own multi-head attention, with an identity as its output projection."""
    ours = Attention(16, 4)
    tokens, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    theirs, _ = F.multi_head_attention_forward(
        *(tokens.transpose(0, 1), context.transpose(0, 1), context.transpose(0, 1), 16, 4, None),
        *(torch.zeros(48), None, None, False, 0.0, torch.eye(16), None),
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=ours.query.weight,
        k_proj_weight=ours.key.weight,
        v_proj_weight=ours.value.weight,
    )
    torch.testing.assert_close(ours(tokens, context), theirs.transpose(0, 1) + tokens, atol=1e-5, rtol=1e-5)


def test_level_is_equations_4_to_7():
    level = Level(8, 2, 5, weight_branch=True)
    tokens, context = torch.randn(3, 4, 8), torch.randn(3, 6, 8)
    information = level.information(level.ask(tokens, context))
    weights = level.weights(level.ask_itself(tokens, tokens)).sigmoid()
    assert (information >= 0).all()  # its MLP ends in a ReLU
    mean = torch.stack([(i * w).sum(0) / w.sum(0) for i, w in zip(information, weights, strict=True)])
    torch.testing.assert_close(level(tokens, context), level.to_text(mean), atol=1e-6, rtol=1e-5)


def test_weights_that_all_vanish_still_average():
    torch.manual_seed(0)
    level, tokens = Level(8, 2, 5, weight_branch=True), torch.randn(2, 6, 8)
    with torch.no_grad():
        level.weights[-1].weight.zero_()
        level.weights[-1].bias.fill_(-200.0)  # whose sigmoid is 0 in float32
        expected = level.to_text(level.information(level.ask(tokens, tokens)).mean(1))
        torch.testing.assert_close(level(tokens, tokens), expected)


@pytest.mark.parametrize("direction", ["bottom-up", "top-down"])
def test_which_level_asks(direction):
    """Bottom-up: the deepest plane answers and never asks; top-down: the shallowest."""
    model = make(config=dataclasses.replace(SMALL, direction=direction))
    asked = []
    for level in model.levels:
        level.ask.register_forward_hook(lambda module, given, _: asked.append([x.flatten(1).sum(1) for x in given]))
    planes = []
    for pool in model.pools:
        pool.register_forward_hook(lambda module, given, made: planes.append(made))
    model(torch.rand(1, 3, 64, 64))
    sums = [model.positions(plane).flatten(1).sum(1) for plane in planes]
    for number, (tokens, context) in enumerate(asked):
        shallow, deep = sums[number], sums[number + 1]
        expected = (shallow, deep) if direction == "bottom-up" else (deep, shallow)
        torch.testing.assert_close((tokens, context), expected, atol=1e-4, rtol=1e-4)


def test_score_is_equations_8_and_9():
    model = make()
    images = photographs(3)
    vectors = model.vectors(model.maps(images), None)
    assert vectors.shape == (3, 4, 16)
    cosines = F.cosine_similarity(vectors[:, :, None], model.text_features, dim=-1)
    torch.testing.assert_close(model.similarities(images), cosines, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.raw(images), model.head(cosines.flatten(1))[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images), model.raw(images).clamp(0, 1))
    assert model.head[0].in_features == 160


def test_score_is_held_to_its_range_and_the_margin_is_not():
    model = make()
    images = photographs(2)
    raw = model.raw(images)
    with torch.no_grad():
        model.head[-1].bias += 3
    assert (model(images) == 1).all()
    torch.testing.assert_close(model.margin(images), raw + 3, atol=1e-5, rtol=0)


def test_positions_are_resized_and_shared():
    positions = PositionalEncoding(4, 6)
    maps = torch.randn(2, 4, 6, 6)
    assert torch.equal(positions(maps), maps + positions.grid)
    grid = positions(torch.zeros(1, 4, 3, 9))
    torch.testing.assert_close(grid, F.interpolate(positions.grid, size=(3, 9), mode="bicubic"))
    model = make()
    assert sum(isinstance(module, PositionalEncoding) for module in model.modules()) == 1


@pytest.mark.parametrize("change", [{"weight_branch": False}, {"anchors": "none"}, {"direction": "top-down"}])
def test_ablations_score(change):
    model = make(config=dataclasses.replace(SMALL, **change))
    full = make()
    images = photographs(2)
    assert model.raw(images).isfinite().all()
    assert not torch.equal(model.raw(images), full.raw(images))
    if "weight_branch" in change:
        assert not [name for name, _ in model.named_parameters() if "ask_itself" in name]


def test_bad_configs():
    for change, message in (
        ({"direction": "sideways"}, "direction is 'sideways'; expected one of bottom-up, top-down"),
        ({"heads": 3}, "width 16 is no multiple of heads 3"),
        ({"backbone": "vgg99"}, "backbone is 'vgg99'; expected one of resnet18"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **change)


# --- attention backends ---


def test_backends_agree_and_math_can_be_differentiated_twice():
    model = make(dtype=torch.float64)
    images = photographs(2, dtype=torch.float64).requires_grad_(True)
    plain = model.raw(images)
    model.set_attention("math")
    torch.testing.assert_close(model.raw(images), plain, atol=1e-10, rtol=0)
    (gradient,) = torch.autograd.grad(model.raw(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0


def test_xformers_that_cannot_run_leaves_a_notice_and_the_same_numbers(caplog):
    attention._notice.cache_clear()
    images = photographs(2)
    with caplog.at_level(logging.WARNING):
        scores = [make(attention="xformers").raw(images) for _ in range(2)]
    assert torch.equal(scores[0], make().raw(images))
    assert [record.message for record in caplog.records if "xformers" in record.message] == [
        "attention='xformers' cannot be used, it needs CUDA and the model is on cpu; torch's attention takes its place."
    ]


def test_xformers_without_a_kernel_leaves_a_notice_and_the_same_numbers(caplog, monkeypatch):
    # an xformers made for another torch can be imported, and has no kernels then; on the CPU it never has one
    attention._notice.cache_clear()
    monkeypatch.setattr(attention, "xformers_obstacle", lambda query: None)
    if importlib.util.find_spec("xformers") is None:
        stub = SimpleNamespace(memory_efficient_attention=Mock(side_effect=NotImplementedError("No operator found")))
        monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=stub))
        monkeypatch.setitem(sys.modules, "xformers.ops", stub)
    query, key, value = torch.randn(3, 2, 4, 9, 32).unbind(0)
    assert torch.equal(attend(query, key, value, "xformers"), attend(query, key, value))
    (notice,) = (record.message for record in caplog.records if "attention=" in record.message)
    assert (
        "cannot be used, it has no kernel for torch.float32 and heads of 32 here (python -m xformers.info lists"
        in notice
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_xformers_gives_the_same_numbers(dtype, caplog):
    xformers_ops = pytest.importorskip("xformers.ops", reason="xformers is not installed")
    query, key, value = torch.randn(3, 2, 8, 50, 64, device="cuda", dtype=dtype)
    try:
        xformers_ops.memory_efficient_attention(query, key, value)
    except NotImplementedError as error:
        pytest.skip(str(error).splitlines()[0])
    attention._notice.cache_clear()
    expected = attend(query, key, value, "math")
    torch.testing.assert_close(attend(query, key, value, "xformers"), expected, atol=1e-3, rtol=1e-3)
    assert not [record for record in caplog.records if "attention=" in record.message]


def test_unknown_backend():
    with pytest.raises(ValueError, match="'flash'; expected one of sdpa, xformers, math"):
        make(attention="flash")


# --- with a reference ---


def test_identical_pictures_score_highest():
    reference = photographs(1)
    others = torch.cat([reference, (reference + 0.1 * torch.randn(6, 3, 48, 64)).clamp(0, 1), photographs(3)])
    for seed in range(3):
        model = make_fr(seed=seed)
        assert model(others, reference)[0] >= model(others, reference).max() - 1e-6
        assert model.margin(others, reference)[0] >= model.margin(others, reference).max() - 1e-6
        assert model.raw(others, reference).unique().numel() == len(others)


def test_gradient_is_finite_at_zero_difference():
    model = make_fr()
    reference = photographs(2)
    images = reference.clone().requires_grad_(True)
    model.margin(images, reference).sum().backward()
    assert images.grad.isfinite().all()


def test_one_reference_for_all_or_one_for_each():
    model = make_fr()
    images, references = photographs(3), photographs(3)
    each = torch.cat([model.raw(i[None], r[None]) for i, r in zip(images, references, strict=True)])
    torch.testing.assert_close(model.raw(images, references), each, atol=1e-5, rtol=0)
    shared = torch.cat([model(i[None], references[:1]) for i in images])
    torch.testing.assert_close(model(images, references[:1]), shared, atol=1e-5, rtol=0)


def test_as_a_reward():
    model = make_fr()
    images, reference = photographs(3), photographs(1)
    reward = FullReference(model, reference)
    torch.testing.assert_close(reward(images), model(images, reference))
    torch.testing.assert_close(reward.margin(images), model.margin(images, reference))


@pytest.mark.parametrize("function", ["raw", "margin", "__call__"])
def test_gradient_with_a_reference_is_the_finite_difference(function):
    model = make_fr(dtype=torch.float64)
    call = getattr(model, function)
    images, reference = photographs(8, dtype=torch.float64), photographs(1, dtype=torch.float64)
    direction = torch.randn_like(images)
    scores = call(images.requires_grad_(True), reference)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    slopes = (gradient * direction).flatten(1).sum(1)
    with torch.no_grad():
        step = 1e-7 * direction
        differences = (call(images + step, reference) - call(images - step, reference)) / 2e-7
    assert torch.isclose(slopes, differences, rtol=1e-5, atol=1e-8).sum() >= 6, (slopes, differences)
    if function == "raw":
        assert slopes.abs().amax() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_a_reference(dtype, device):
    images, reference = photographs(2).to(device).requires_grad_(True), photographs(1).to(device)
    half = make_fr(dtype=dtype, device=device)
    scores = half(images, reference)
    assert scores.dtype == torch.float32
    exact = make_fr().similarities(images.cpu(), reference.cpu())
    assert exact.std() > 0.1
    torch.testing.assert_close(half.similarities(images, reference).cpu(), exact, atol=0.02, rtol=0)
    half.raw(images.to(dtype), reference).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 500)])
def test_any_size_with_a_reference(size):
    images = torch.rand(1, 3, *size, requires_grad=True)
    scores = make_fr().raw(images, torch.rand(1, 3, *size))
    scores.sum().backward()
    assert scores.isfinite().all()
    assert images.grad.isfinite().all()


def test_references_that_do_not_fit():
    images = photographs(3)
    with pytest.raises(ValueError, match=r"\(3, 3, 48, 64\) and the reference \(1, 3, 48, 32\)"):
        make_fr()(images, images[:1, ..., :32])
    with pytest.raises(ValueError, match=r"reference \(2, 3, 48, 64\); expected"):
        make_fr()(images, images[:2])
    with pytest.raises(ValueError, match=r"expected model\(images, reference\)"):
        make_fr()(images)
    with pytest.raises(ValueError, match="takes no reference; use 'bpclip-fr'"):
        make()(images, images)
    with pytest.raises(ValueError, match="'bpclip-fr' has a reference, others not"):
        make(config=SMALL_FR)


# --- in words ---


def test_description():
    model = make()
    image = photographs(1)
    found = model.describe(image)
    cosines = model.similarities(image)[0].mean(0)
    words = adjectives(SMALL.pairs)
    assert list(found.parts) == ["dimensions", "adjectives"]
    assert list(found.parts["adjectives"]) == list(words)
    assert found.parts["adjectives"]["blurry"] == pytest.approx(cosines[words.index("blurry")].item())
    noise = [(cosines[words.index(a)] - cosines[words.index(b)]) / 2 for d, a, b in SMALL.pairs if d == "noise"]
    assert len(noise) == 3
    assert found.parts["dimensions"]["noise"] == pytest.approx(torch.stack(noise).mean().item(), abs=1e-6)
    assert list(found.parts["dimensions"]) == ["sharpness", "noise", "brightness", "colour", "contrast", "overall"]
    assert found.score == pytest.approx(model(image).item())
    assert model.describe(image[0]) == found


def test_description_with_a_reference():
    image, reference = photographs(2)
    model = make_fr()
    assert model.describe(image, reference).score == pytest.approx(model(image[None], reference[None]).item())


def test_what_cannot_be_described():
    with pytest.raises(ValueError, match="got 2 pictures; expected one"):
        make().describe(photographs(2))
    with pytest.raises(ValueError, match="has no adjectives"):
        make(config=dataclasses.replace(SMALL, anchors="none")).describe(photographs(1))


# --- training ---


@pytest.mark.parametrize("config", [SMALL, SMALL_FR, dataclasses.replace(SMALL, batch_norm="trained")])
def test_every_parameter_learns(config):
    """A few steps on eight pictures reach every parameter and bring the scores nearer; text and frozen norms stay."""
    name = "bpclip-fr" if config.full_reference else "bpclip"
    model = create_model(name, weights="random", config=config).requires_grad_(True).train()
    images, opinions = photographs(8), torch.linspace(0.1, 0.9, 8)
    given = (images, photographs(1)) if config.full_reference else (images,)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = (model.raw(*given) - opinions).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().amax() == 0] == []
    assert min(losses) < 0.7 * losses[0]  # not the last one: at this rate a single step may jump
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert all("running" in name or "batches" in name for name in moved)
    assert bool(moved) == (config.batch_norm == "trained")


# --- files ---


def test_saved_file_brings_its_config_and_its_scores(tmp_path):
    model = make(config=dataclasses.replace(SMALL, batch_norm="trained", weight_branch=False), seed=3)
    model.calibrate_margin(photographs(6).split(3))
    save_bpclip(model, tmp_path / "own.safetensors")
    again = create_model("bpclip-mini", weights=tmp_path / "own.safetensors")  # the file says what it is
    assert again.config == model.config
    images = photographs(2)
    torch.testing.assert_close(again(images), model(images), atol=2e-3, rtol=0)
    assert torch.equal(again.margin_std, model.margin_std)
    assert load_file(tmp_path / "own.safetensors")["levels.0.ask.query.weight"].dtype == torch.float16


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "own.safetensors"
    save_bpclip(make(), path)
    with pytest.raises(WeightsError, match="a BPCLIP without a reference: use 'bpclip'"):
        create_model("bpclip-fr", weights=path)
    with pytest.raises(ValueError, match="brings its own config"):
        create_model("bpclip", weights=path, config=SMALL)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="has no config"):
        create_model("bpclip", weights=path)
    save_file({"x": torch.zeros(1)}, path, metadata={"config": '{"pairs": [], "depth": 3}'})
    with pytest.raises(WeightsError, match=r"config that this version does not know.*depth"):
        create_model("bpclip", weights=path)


def test_default_weights_are_explained():
    for name in ("bpclip", "bpclip-fr"):
        with pytest.raises(WeightsError, match=rf"no trained weights of {name}: .*docs/training\.md"):
            create_model(name)


def test_calibrated_margin_is_in_units_of_its_spread():
    model = make()
    batches = photographs(12).split(4)
    raw = torch.cat([model.raw(images) for images in batches])
    model.calibrate_margin(batches)
    margins = torch.cat([model.margin(images) for images in batches])
    torch.testing.assert_close(margins, (raw - raw.mean()) / raw.std(), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="got 1 pictures without spread"):
        model.calibrate_margin([batches[0][:1]])


def test_adjectives_are_encoded_by_a_clip(tmp_path):
    clip = open_clip.CLIP(
        24,
        {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 224},
        {"width": 128, "heads": 2, "layers": 2},
        quick_gelu=True,
    ).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = make(text=tmp_path / "clip.pt")
    words = adjectives(SMALL.pairs)
    with torch.no_grad():
        expected = clip.encode_text(open_clip.tokenize(list(words)), normalize=True)
    torch.testing.assert_close(model.text_features, expected, atol=1e-5, rtol=0)
    assert (model.config.text_dim, model.config.text_source) == (24, "clip.pt")
    assert make().config.text_source == "random"
    template = dataclasses.replace(SMALL, template="a photo of {} quality")
    with torch.no_grad():
        expected = clip.encode_text(
            open_clip.tokenize([f"a photo of {word} quality" for word in words]), normalize=True
        )
    torch.testing.assert_close(
        make(config=template, text=tmp_path / "clip.pt").text_features, expected, atol=1e-5, rtol=0
    )


def test_text_file_without_a_text_tower(tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "half.pt")
    with pytest.raises(WeightsError, match="no text tower"):
        make(text=tmp_path / "half.pt")


def test_backbone_from_a_file(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, channels=None)
    network = timm.create_model("resnet18", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "resnet18.pt")
    model = make(config=config, backbone=tmp_path / "resnet18.pt")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        pixels = (images - model.pixel_mean) / model.pixel_std
        expected = network.eval().forward_features(pixels)
        torch.testing.assert_close(model.maps(images)[-1], expected, atol=1e-4, rtol=1e-4)
    monkeypatch.setenv("IQGUIDE_OFFLINE", "1")
    with pytest.raises(WeightsError, match="downloads are off; give backbone=PATH"):
        make(config=config, backbone="imagenet")
