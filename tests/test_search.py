"""Best of N on real pipelines: reproducible candidates, clear errors, an untouched pipeline."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from tiny_pipelines import FAMILIES, tiny_pipeline
from transformers import CLIPConfig, CLIPImageProcessor

from iqguide import best_of_n
from iqguide.search.best_of_n import _batches


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(pipe, inputs, seed, **changes):
    generator = torch.Generator().manual_seed(seed)
    return pipe(**inputs, generator=generator, output_type="pt", **changes).images[0]


def counted(pipe, monkeypatch):
    """Batch sizes of the pipeline calls, by the latents that they prepare."""
    sizes, original = [], type(pipe).prepare_latents

    def prepare(self, batch_size, *args, **kwargs):
        sizes.append(batch_size)
        return original(self, batch_size, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "prepare_latents", prepare)
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_each_candidate_is_the_picture_of_its_seed(family):
    pipe, inputs = tiny_pipeline(family)
    ranking = best_of_n(pipe, brightness, n=3, seeds=[11, 5, 8], **inputs)
    pictures = torch.stack([draw(pipe, inputs, seed) for seed in (11, 5, 8)])
    assert ranking.seeds == (11, 5, 8)
    assert torch.equal(ranking.images, pictures)
    assert torch.equal(ranking.scores, brightness(pictures))
    assert torch.equal(ranking.best, pictures[brightness(pictures).argmax()])
    assert ranking.order.tolist() == brightness(pictures).argsort(descending=True).tolist()
    assert (pictures[0] - pictures[1]).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_can_be_drawn_again_alone(family):
    """Bit for bit at the same batch size; nearly so at another."""
    pipe, inputs = tiny_pipeline(family)
    ranking = best_of_n(pipe, brightness, n=4, batch_size=3, **inputs)
    for index in (1, 3):
        again = best_of_n(pipe, brightness, n=1, seeds=[ranking.seeds[index]], **ranking.settings)
        assert torch.equal(again.images[0], ranking.images[index])
        assert torch.equal(again.scores[0], ranking.scores[index])
        alone = draw(pipe, inputs, ranking.seeds[index])
        torch.testing.assert_close(alone, ranking.images[index], rtol=0, atol=1e-3)
        assert torch.equal(again.latents[0], ranking.latents[index])


def test_candidates_can_be_drawn_again_alone_with_threads():
    """With two threads a kernel may round differently at different places of a batch; so candidates have fixed ones."""
    torch.set_num_threads(2)
    pipe, inputs = tiny_pipeline("flux")
    inputs["num_inference_steps"] = 1
    ranking = best_of_n(pipe, brightness, n=2, batch_size=2, **inputs)
    again = best_of_n(pipe, brightness, n=1, seeds=[1], **ranking.settings)
    assert torch.equal(again.images[0], ranking.images[1])


@pytest.mark.parametrize("scheduler", ["ancestral", "ddim with eta"])
def test_noise_of_the_sampler_belongs_to_the_candidate(scheduler):
    pipe, inputs = tiny_pipeline("stable-diffusion")
    if scheduler == "ancestral":
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    else:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        inputs["eta"] = 1.0
    ranking = best_of_n(pipe, brightness, n=3, batch_size=3, **inputs)
    again = best_of_n(pipe, brightness, n=1, seeds=[2], **ranking.settings)
    assert torch.equal(again.images[0], ranking.images[2])
    torch.testing.assert_close(draw(pipe, inputs, 2), ranking.images[2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_start_the_pipeline_again(family):
    pipe, inputs = tiny_pipeline(family)
    ranking = best_of_n(pipe, brightness, n=2, batch_size=2, **inputs)
    for image, latents in zip(ranking.images, ranking.latents, strict=True):
        picture = pipe(**inputs, latents=latents[None], output_type="pt").images[0]
        torch.testing.assert_close(picture, image, rtol=0, atol=1e-3)


def test_image_to_image_has_no_latents_to_give_back():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    inputs = {name: value for name, value in inputs.items() if name not in ("height", "width")}
    inputs |= {"image": torch.rand(1, 3, 32, 32), "strength": 0.5}
    ranking = best_of_n(pipe, brightness, n=2, batch_size=2, **inputs)
    assert ranking.latents is None
    torch.testing.assert_close(draw(pipe, inputs, 1), ranking.images[1], rtol=0, atol=1e-3)


def test_a_prompt_is_repeated_by_the_pipeline():
    """Without embeddings the pipeline gets the prompt once, and the number of pictures."""
    calls = []

    class Pipe:
        def __call__(self, prompt, generator, num_images_per_prompt=1, output_type="pil"):
            calls.append((prompt, len(generator), num_images_per_prompt, output_type))
            images = torch.stack([torch.rand(3, 8, 8, generator=g) for g in generator])
            return type("Output", (), {"images": images})

    ranking = best_of_n(Pipe(), brightness, n=3, batch_size=2, prompt="a cat")
    assert calls == [("a cat", 2, 2, "pt")] * 2
    assert ranking.settings == {"prompt": "a cat", "batch_size": 2}
    assert torch.equal(ranking.images[2], torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2)))


def test_batches_are_full_for_seeds_that_follow_each_other(monkeypatch):
    pipe, inputs = tiny_pipeline("flux")
    sizes = counted(pipe, monkeypatch)
    best_of_n(pipe, brightness, n=6, seeds=range(7, 13), batch_size=2, **inputs)
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize(("seeds", "size"), [(range(8), 4), ([3, 9, 4, 100], 2), ([5], 3), (range(-2, 5), 3)])
def test_batches_hold_every_seed_once_in_its_place(seeds, size):
    batches = _batches(list(seeds), size)
    assert all(len(batch) == size for batch in batches)
    placed = [(seed, place) for batch in batches for place, seed in enumerate(batch) if seed is not None]
    assert sorted(placed) == sorted((seed, seed % size) for seed in seeds)


def test_top_k_keeps_the_best_in_their_order():
    pipe, inputs = tiny_pipeline("flux")
    everything = best_of_n(pipe, brightness, n=6, **inputs)
    kept = best_of_n(pipe, brightness, n=6, top_k=2, **inputs)
    best = sorted(everything.order[:2].tolist())
    assert kept.seeds == tuple(everything.seeds[i] for i in best)
    assert torch.equal(kept.images, everything.images[best])
    assert torch.equal(kept.latents, everything.latents[best])
    assert torch.equal(kept.best, everything.best)
    assert torch.equal(kept.top(2), everything.top(2))


def test_the_pipeline_is_left_as_found(capfd):
    pipe, inputs = tiny_pipeline("stable-diffusion")
    before = {name: id(value) for name, value in vars(pipe).items()}
    state = torch.get_rng_state()
    best_of_n(pipe, brightness, n=2, **inputs)
    after = {name: id(value) for name, value in vars(pipe).items() if name in before}
    assert after == before
    assert "prepare_latents" not in vars(pipe)
    assert pipe._progress_bar_config == {"disable": True}
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr().err == ""  # the pipeline's bars are off, so this one is, too


def test_scores_come_from_unrounded_pictures():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    ranking = best_of_n(pipe, brightness, n=1, **inputs)
    assert ranking.images.dtype == torch.float32
    assert (ranking.images * 255 - (ranking.images * 255).round()).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"seeds": [1, 2, 3]}, "got 3 seeds, 3 of them different, for n=2"),
        ({"seeds": [4, 4]}, "got 2 seeds, 1 of them different"),
        ({"prompt": ["a", "b"]}, "prompt is a list of 2; expected one string"),
        ({"prompt_embeds": torch.zeros(2, 5, 8)}, "prompt_embeds holds 2 prompts"),
        ({"generator": torch.Generator()}, r"got generator=; .* give seeds="),
        ({"latents": torch.zeros(1)}, "got latents="),
        ({"num_images_per_prompt": 2}, "set from batch_size"),
        ({"output_type": "pil"}, "scored and returned as float tensors"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(changes, message):
    def pipe(**_):
        pytest.fail("drew something")

    with pytest.raises(ValueError, match=message):
        best_of_n(pipe, brightness, **({"n": 2} | changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_candidates_are_left_out_and_named(value, caplog):
    pipe, inputs = tiny_pipeline("stable-diffusion")

    class Broken(type(pipe.image_processor)):
        def postprocess(self, image, output_type="pil", do_denormalize=None):
            image = super().postprocess(image, output_type, do_denormalize)
            image[1] = value
            return image

    pipe.image_processor = Broken(vae_scale_factor=2)
    found = best_of_n(pipe, brightness, n=4, seeds=[6, 7, 8, 9], batch_size=2, **inputs)
    assert "prepare_latents" not in vars(pipe)
    assert found.seeds == (6, 8)
    assert [(entry.seed, entry.share) for entry in found.failed] == [(7, 1.0), (9, 1.0)]
    assert all("NaN or infinite" in entry.failure for entry in found.dropped)
    assert "2 candidates cannot be used and are left out, seeds [7, 9]" in caplog.text
    sound = best_of_n(*pipe_and_reward(), n=4, seeds=[6, 7, 8, 9], batch_size=2, **inputs)
    assert torch.equal(found.images, sound.images[[0, 2]])
    assert torch.equal(found.latents, sound.latents[[0, 2]])
    best = best_of_n(pipe, brightness, n=4, seeds=[6, 7, 8, 9], batch_size=2, top_k=1, **inputs)
    assert torch.equal(best.best, found.best)
    with pytest.raises(ValueError, match=r"no candidate .*NaN.* \(1 of them\)"):
        best_of_n(pipe, brightness, n=1, seeds=[7], batch_size=2, **inputs)


def pipe_and_reward():
    return tiny_pipeline("stable-diffusion")[0], brightness


def test_broken_scores_are_left_out_and_named():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    calls = []

    def second_is_nan(images):
        calls.append(len(images))
        return brightness(images) * (torch.nan if len(calls) == 2 else 1)

    found = best_of_n(pipe, second_is_nan, n=3, **inputs)
    assert found.seeds == (0, 2)
    assert [(entry.seed, entry.failure) for entry in found.failed] == [(1, "the score is not a finite number")]
    with pytest.raises(ValueError, match=r"score is not a finite number \(2 of them\); check the reward"):
        best_of_n(pipe, lambda images: images.mean((1, 2, 3)) * torch.nan, n=2, **inputs)
    with pytest.raises(ValueError, match="returned shape"):
        best_of_n(pipe, lambda images: images.mean(), n=2, **inputs)


def safety_checker(pipe):
    """That of Stable Diffusion at tiny size, which blanks nothing; and a list of the embeddings that it has seen."""
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = tiny | {"image_size": 32, "patch_size": 8, "projection_dim": 8}
    pipe.safety_checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=tiny, vision_config=vision, projection_dim=8)
    )
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    checker, seen = pipe.safety_checker.eval(), []
    checker.concept_embeds.data[:] = torch.randn(8)
    checker.concept_embeds_weights.data[:] = 2.0  # above any cosine
    checker.special_care_embeds_weights.data[:] = 2.0
    checker.visual_projection.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    return checker, seen


def test_candidates_that_a_safety_checker_has_blanked_are_left_out():
    """A black picture would win by a reward of darkness."""
    pipe, inputs = tiny_pipeline("stable-diffusion")
    checker, seen = safety_checker(pipe)
    assert best_of_n(pipe, brightness, n=3, **inputs).failed == ()
    cosines = torch.stack([torch.cosine_similarity(each, checker.concept_embeds[0], dim=0) for each in seen])
    checker.concept_embeds_weights.data[:] = cosines.sort().values[1:].mean()  # the nearest is above
    found = best_of_n(pipe, lambda images: -brightness(images), n=3, **inputs)
    assert [entry.seed for entry in found.failed] == [int(cosines.argmax())]
    assert len(found) == 2
    assert (found.images.flatten(1).amax(1) > 0).all()
    checker.concept_embeds_weights.data[:] = -2.0
    with pytest.raises(ValueError, match=r"safety checker .* \(2 of them\)"):
        best_of_n(pipe, brightness, n=2, **inputs)
