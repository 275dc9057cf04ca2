"""Attributes as rewards, and full-reference rewards where a pipeline starts from a picture; real models, small."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from test_bpclip import SMALL, SMALL_FR
from test_clipiqa import PAIRS
from test_clipiqa import SMALL as SMALL_CLIP
from tiny_pipelines import tiny_pipeline

from iqguide import Attributes, FullReference, RewardGuidance, WeightedSum, create_model
from iqguide.guidance.diffusers import guided
from iqguide.rewards import Resize, device_of


def clip():
    return create_model("clipiqa", weights="random", config=SMALL_CLIP, pairs=PAIRS)


def bpclip():
    return create_model("bpclip", weights="random", config=SMALL)


def test_attributes_of_clip_are_weighted_logits():
    model, images = clip(), torch.rand(3, 3, 64, 64)
    logits = model.logits(images)
    good, bright, sharp = logits.unbind(1)
    reward = Attributes(model, {"Good photo.": 1.0, "Bright photo. / Dark photo.": -0.5, "Blurry photo.": 0.5})
    torch.testing.assert_close(reward(images), (good - 0.5 * bright - 0.5 * sharp) / 2)
    assert device_of(reward) == torch.device("cpu")
    both = WeightedSum((reward, 1.0), (model, 0.5))
    torch.testing.assert_close(both.margin(images), reward(images) + 0.5 * model.margin(images))


def test_a_word_of_two_pairs_names_neither():
    pairs = (("Sharp photo.", "Blurry photo."), ("Sharp photo.", "Noisy photo."))
    model, images = create_model("clipiqa", weights="random", config=SMALL_CLIP, pairs=pairs), torch.rand(2, 3, 64, 64)
    with pytest.raises(ValueError, match="for names among"):
        Attributes(model, {"Sharp photo.": 1.0})
    reward = Attributes(model, {"Sharp photo. / Noisy photo.": 1.0})
    torch.testing.assert_close(reward(images), model.logits(images)[:, 1])


def test_attributes_of_bpclip_are_what_it_describes():
    model, image = bpclip(), torch.rand(1, 3, 64, 64)
    said = model.describe(image).parts
    dimensions = list(said["dimensions"])
    reward = Attributes(model, {dimensions[0]: 1.0, dimensions[1]: -3.0})
    expected = (said["dimensions"][dimensions[0]] - 3 * said["dimensions"][dimensions[1]]) / 4
    assert reward(image).item() == pytest.approx(expected, abs=1e-6)
    _, positive, negative = model.config.pairs[4]
    half = (said["adjectives"][positive] - said["adjectives"][negative]) / 2
    assert Attributes(model, {positive: 1.0})(image).item() == pytest.approx(half, abs=1e-6)
    assert Attributes(model, {negative: 2.0})(image).item() == pytest.approx(-half, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (bpclip, {"sharpish": 1.0}, "for names among"),
        (bpclip, {}, "at least one that is not 0"),
        (clip, {"Good photo.": 0.0}, "at least one that is not 0"),
        (clip, {"Good photo.": float("inf")}, "expected finite numbers"),
        (clip, {"Good photo.": float("nan")}, "expected finite numbers"),
        (lambda: create_model("tiny", weights="random"), {"sharp": 1.0}, "has no attributes"),
        (lambda: create_model("bpclip-fr", weights="random", config=SMALL_FR), {"sharp": 1.0}, "without a reference"),
    ],
)
def test_attributes_that_are_not_there(model, weights, message):
    with pytest.raises(ValueError, match=message):
        Attributes(model(), weights)


def value_of(pipe, inputs, reward, guidance=None):
    generator = torch.Generator().manual_seed(0)
    if guidance is None:
        images = pipe(**inputs, generator=generator, output_type="pt").images
    else:
        with guided(pipe, guidance):
            images = pipe(**inputs, generator=generator, output_type="pt").images
    with torch.no_grad():
        return reward(images).item()


def test_guidance_by_attributes_goes_both_ways_and_stops_at_the_target():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    inputs["num_inference_steps"] = 8
    more, less = (Attributes(clip(), {"Sharp photo.": sign}) for sign in (1.0, -1.0))
    strong = {"scale": 1.0, "noise": 0.0, "every": 1, "max_drift": None}
    plain = value_of(pipe, inputs, more)
    up = value_of(pipe, inputs, more, RewardGuidance(more, **strong))
    down = value_of(pipe, inputs, more, RewardGuidance(less, **strong))
    assert down < plain < up
    near = RewardGuidance(more, target=plain + 0.3 * (up - plain), target_width=0.3 * (up - plain), **strong)
    assert plain < value_of(pipe, inputs, more, near) < plain + 0.8 * (up - plain)


@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
def test_full_reference_guidance_stays_nearer_to_the_source(kind):
    parts = tiny_pipeline("stable-diffusion")[0].components
    inputs = tiny_pipeline("stable-diffusion")[1] | {"num_inference_steps": 10, "strength": 0.9}
    source = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), size=(32, 32), mode="bilinear")
    inputs["image"] = source
    if kind == "img2img":
        pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        inputs = {name: x for name, x in inputs.items() if name not in ("height", "width")}
    else:
        pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
        inputs["mask_image"] = torch.ones(1, 1, 32, 32).tril()
    pipe.set_progress_bar_config(disable=True)
    reward = FullReference(create_model("bpclip-fr", weights="random", config=SMALL_FR, seed=0), source)
    guidance = RewardGuidance(reward, scale=1.0, noise=0.0, every=1, max_drift=None)
    assert value_of(pipe, inputs, reward.margin, guidance) > value_of(pipe, inputs, reward.margin)


def test_an_enlarged_picture_is_compared_at_the_size_of_its_source():
    source = torch.rand(1, 3, 32, 32)
    reward = Resize(FullReference(create_model("bpclip-fr", weights="random", config=SMALL_FR, seed=5), source), 32)
    large = torch.nn.functional.interpolate(source, scale_factor=4, mode="nearest")
    other = torch.rand(1, 3, 128, 128)
    same, different = reward.margin(torch.cat([large, other])).tolist()
    assert same >= different
    assert same == pytest.approx(FullReference(reward.reward.model, source).margin(source).item(), abs=0.05)


def test_adjectives_that_mean_nothing_are_named(caplog):
    Attributes(create_model("bpclip", weights="random", config=SMALL), {"sharpness": 1.0})
    assert "random directions" in caplog.text
    caplog.clear()
    Attributes(create_model("bpclip-mini"), {"sharpness": 1.0})
    Attributes(create_model("clipiqa", weights="random"), {"Good photo.": 1.0})
    assert not caplog.text
