"""The recipes, run as a user would, at miniature size: what one writes is what the next reads."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from made_photographs import texture, training_folder
from PIL import Image
from tiny_pipelines import prompted_pipeline, tiny_pipeline, tiny_tae
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from iqguide import create_model, load_images
from iqguide.training.data import clean_photographs, scored_photographs, split

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
SCRIPTS = (
    *("score_folder", "score_dataset", "best_of_n", "guided_sdxl", "guided_flux", "attribute_guidance"),
    "multi_gpu_sweep",
)
SHEETS = "distortion_ladders"
STEPS = ("corpus", "losses", "autoencoder", "generator", "redrawn", "decoder", "denoised", "bundle")
A_STEP = "0.001"  # minutes: a step or two


@pytest.fixture(scope="module")
def recipe():
    """Import a recipe by its name; like a script it finds those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in (RECIPES, RECIPES / "demo_generator"):
            patch.syspath_prepend(folder)
        yield __import__
        for name in (*SCRIPTS, *STEPS, SHEETS):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("data"), clean=4, scored=10, side=270)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def corpus(recipe, folder, runs):
    recipe("corpus").main(["--data", str(folder), "--out", str(runs / "corpus.npz"), "--patches", "4"])
    return runs / "corpus.npz"


@pytest.fixture(scope="module")
def teacher_file(squeezenet, runs):
    torch.save(squeezenet[2], runs / "squeezenet.pt")
    return runs / "squeezenet.pt"


@pytest.fixture(scope="module")
def autoencoder(recipe, corpus, teacher_file, runs):
    shared = ["--corpus", str(corpus), "--teacher", str(teacher_file), "--minutes", A_STEP, "--batch", "2"]
    recipe("autoencoder").main([*shared, "--out", str(runs / "vae")])
    return runs / "vae"


@pytest.fixture(scope="module")
def generator(recipe, corpus, autoencoder, runs):
    arguments = ["--corpus", str(corpus), "--vae", str(autoencoder), "--out", str(runs / "demo"), "--batch", "2"]
    recipe("generator").main([*arguments, "--minutes", A_STEP])
    return runs / "demo"


def test_corpus_is_of_mixed_quality_and_its_words_fit(recipe, corpus):
    module, content = recipe("corpus"), np.load(corpus)
    # four clean photographs and the three scored above 55: 58, 62 and 66
    assert content["images"].shape == (4 * (4 + 3), 3, 128, 128)
    assert content["images"].dtype == np.uint8
    assert content["kinds"].shape == (28,)
    assert set(content["kinds"]) <= set(range(len(module.KINDS)))
    assert 0.2 < (content["kinds"] == 0).mean() < 0.8
    clean = content["kinds"] == 0  # words are about the clean picture: here it can be seen
    seen = module.attributes(torch.from_numpy(content["images"][clean]).float() / 255)
    np.testing.assert_allclose(seen.numpy(), content["attributes"][clean], atol=0.02)


def test_attributes_say_what_the_words_say(recipe):
    module = recipe("corpus")
    grey = torch.full((1, 3, 32, 32), 0.4)
    warm, stripes = grey.clone(), grey.clone()
    warm[:, 0], warm[:, 2] = 0.7, 0.1
    stripes[..., ::2] = 0.6
    base = module.attributes(grey)[0]
    assert len(base) == len(module.WORDS)
    bright, colourful, busy, warmth = range(4)
    assert module.attributes(grey + 0.3)[0, bright] == pytest.approx(base[bright] + 0.3)
    assert module.attributes(warm)[0, colourful] > base[colourful] + 0.1
    assert module.attributes(warm)[0, warmth] == pytest.approx(0.6)
    assert module.attributes(stripes)[0, busy] > base[busy] + 1


def test_degradations_of_the_corpus(recipe):
    module = recipe("corpus")
    images = torch.rand(40, 3, 32, 32)
    degraded, kind = module.degrade(images, torch.Generator().manual_seed(0))
    changed = (degraded != images).flatten(1).any(1)
    assert torch.equal(changed, kind > 0)
    assert set(kind.tolist()) == set(range(len(module.KINDS)))


def test_kinds_of_the_corpus_have_their_shares(recipe, monkeypatch):
    module = recipe("corpus")
    unchanged = [(lambda images, *_: images, low, high) for _, low, high in module.DEGRADATIONS]
    monkeypatch.setattr(module, "DEGRADATIONS", unchanged)
    kind = module.degrade(torch.zeros(4000, 3, 1, 1), torch.Generator().manual_seed(0))[1]
    found = torch.bincount(kind, minlength=len(module.KINDS)) / len(kind)
    torch.testing.assert_close(found, torch.tensor(module.SHARES), rtol=0, atol=0.03)
    assert sum(module.SHARES) == pytest.approx(1)


def test_autoencoder_is_one_of_diffusers(autoencoder):
    vae = AutoencoderTiny.from_pretrained(autoencoder)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encoder(images * 2 - 1)
        assert latents.shape == (1, 16, 8, 8)
        assert vae.decoder(latents).shape == images.shape


@pytest.mark.parametrize("share", ["0", "1"])
def test_a_sharper_decoder_for_the_same_latents(share, recipe, corpus, autoencoder, generator, teacher_file, runs):
    redrawn = runs / "redrawn.pt"
    pipeline = generator / "pipeline"
    recipe("redrawn").main(
        ["--corpus", str(corpus), "--pipeline", str(pipeline), "--out", str(redrawn), "--pictures", "4"]
    )
    arguments = ["--corpus", str(corpus), "--vae", str(autoencoder), "--teacher", str(teacher_file)]
    arguments += ["--redrawn", str(redrawn), "--redrawn-share", share, "--minutes", A_STEP, "--batch", "2"]
    recipe("decoder").main([*arguments, "--out", str(runs / "sharp")])
    before, after = (AutoencoderTiny.from_pretrained(path) for path in (autoencoder, runs / "sharp"))
    for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    decoders = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in decoders)


def test_redrawing_keeps_the_scene(recipe):
    pipe = StableDiffusionPipeline.from_pretrained(ROOT / "models/assets/demo")
    images = torch.linspace(0, 1, 128).expand(2, 3, 128, 128)
    latents = recipe("redrawn").redraw(pipe, images, 21, torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoded = pipe.vae.encode(images * 2 - 1).latents
    alike = torch.nn.functional.cosine_similarity(latents.flatten(1), encoded.flatten(1))
    assert (alike > 0.9).all()
    assert not torch.equal(latents, encoded)


def test_energy_and_teacher_see_blur_where_the_pixels_hardly_change(recipe, teacher_file):
    module = recipe("losses")
    images = 0.5 + 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(images, 0.5)
    half = 0.5 + (images - 0.5) / 2
    assert module.log_energy_loss(images, images) == 0
    # every band has half of its RMS; a constant keeps the logarithm finite
    assert module.log_energy_loss(half, images).item() == pytest.approx(3 * np.log(2), rel=0.05)
    teacher = module.Squeezenet(teacher_file)
    assert module.perceptual_loss(teacher, images, images) == 0
    assert module.perceptual_loss(teacher, flat, images) > 0.05
    decoded = half.clone().requires_grad_()
    module.perceptual_loss(teacher, decoded, images).backward()
    assert decoded.grad.abs().sum() > 0


def test_half_of_the_latents_gives_half_of_the_picture(recipe, monkeypatch):
    module = recipe("autoencoder")
    vae, images = module.build(), torch.rand(2, 3, 64, 64)
    for share, side in ((0.0, 64), (1.0, 32)):
        monkeypatch.setattr(module, "HALVED", share)
        latents, decoded, wanted = module.reconstruct(vae, images)
        assert latents.shape == (2, 16, 8, 8)
        assert decoded.shape == wanted.shape == (2, 3, side, side)
    torch.testing.assert_close(wanted, torch.nn.functional.avg_pool2d(images, 2))


def test_latents_get_noise_of_a_strength_of_their_own(recipe):
    module = recipe("autoencoder")
    spread = module.with_noise(torch.zeros(400, 16, 8, 8)).flatten(1).std(1)
    assert spread.max() < module.LATENT_NOISE * 1.1
    assert spread.mean().item() == pytest.approx(module.LATENT_NOISE / 2, rel=0.15)
    assert spread.min() < module.LATENT_NOISE / 20


def test_training_goes_on_from_what_there_is(recipe, corpus, autoencoder, generator, teacher_file, runs):
    shared = ["--corpus", str(corpus), "--minutes", "1e-9", "--batch", "2"]
    recipe("autoencoder").main(
        [*shared, "--teacher", str(teacher_file), "--init", str(autoencoder), "--out", str(runs / "same")]
    )
    before, after = (AutoencoderTiny.from_pretrained(path).state_dict() for path in (autoencoder, runs / "same"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipeline = StableDiffusionPipeline.from_pretrained(generator / "pipeline")
    state = recipe("generator").start(pipeline.tokenizer, 1e-3, "cpu", generator / "pipeline")
    for part, network in (("unet", pipeline.unet), ("text", pipeline.text_encoder)):
        for name, value in network.state_dict().items():
            assert torch.equal(state.model[part].state_dict()[name], value)


def test_saved_config_files_are_tidy(generator):
    for path in (generator / "pipeline").rglob("config.json"):
        config = json.loads(path.read_text())
        assert "_name_or_path" not in config
        assert ("block_out_channels" in config) == (path.parent.name == "unet")


def test_generator_is_a_pipeline_that_follows_prompts(recipe, generator, caplog):
    pipe = StableDiffusionPipeline.from_pretrained(generator / "pipeline")
    assert not [record for record in caplog.records if "block_out_channels" in record.getMessage()]
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    dark, bright = (
        pipe(word, generator=torch.Generator().manual_seed(0), **call).images for word in ("dark", "bright, warm")
    )
    assert dark.shape == (1, 3, 128, 128)
    assert dark.isfinite().all()
    assert not torch.equal(dark, bright)
    words = sum(recipe("corpus").WORDS, ())
    for word in words:  # every word is one token
        assert len(pipe.tokenizer(word).input_ids) == 3


def test_prompts_name_the_outer_thirds(recipe, runs):
    module = recipe("generator")
    attributes = torch.tensor([[0.0, 9.0, 5.0, 5.0], [5.0] * 4, [9.0, 0.0, 5.0, 5.0]])
    attributes[:, 2:] += torch.tensor([[0.0], [1.0], [0.0]])  # the middle row is the highest of these
    fitting = module.fitting_words(attributes)
    assert fitting[:, :2].tolist() == [[1, 2], [0, 0], [2, 1]]
    words = module.Words(attributes, module.build_tokenizer(runs / "thirds"), "cpu")
    words.fitting = torch.tensor([[1, 2, 0, 0]])
    tokens = words.tokens(torch.zeros(400, dtype=torch.long))
    lines = words.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    lines = [line.replace(" ,", ",").strip() for line in lines]
    assert set(lines) == {"", "dark", "colourful", "dark, colourful", "colourful, dark"}
    said = np.mean(["dark" in line for line in lines])
    assert said == pytest.approx(0.8 * 0.85, abs=4 * np.sqrt(0.68 * 0.32 / 400))


def test_generator_resumes(recipe, corpus, autoencoder, generator):
    before = torch.load(generator / "checkpoint.pt", weights_only=True)
    arguments = ["--corpus", str(corpus), "--vae", str(autoencoder), "--out", str(generator), "--batch", "2"]
    state = recipe("generator").start(recipe("generator").build_tokenizer(generator / "words"), 1e-3, "cpu")
    recipe("generator").resume(state, generator / "checkpoint.pt")
    assert (state.step, state.share) == (before["step"], before["share"])
    for key, value in state.model.state_dict().items():
        assert torch.equal(value, before["model"][key])
    recipe("generator").main([*arguments, "--minutes", A_STEP, "--resume"])  # its time is over: it only saves
    assert torch.load(generator / "checkpoint.pt", weights_only=True)["step"] == before["step"]


@pytest.mark.parametrize("source", ["--corpus", "--data"])
def test_denoised_predictions_are_pairs(recipe, corpus, folder, generator, runs, source):
    out = runs / "denoised.pt"
    given = [source, str(corpus if source == "--corpus" else folder)]
    recipe("denoised").main([*given, "--pipeline", str(generator / "pipeline"), "--out", str(out), "--pairs", "3"])
    cache = torch.load(out, weights_only=True)
    assert cache["clean"].shape == cache["degraded"].shape == (3, 3, 128, 128)
    assert cache["clean"].dtype == torch.uint8
    assert ((cache["severity"] >= 1) & (cache["severity"] <= 3)).all()
    assert ((cache["noise_level"] >= 0.01) & (cache["noise_level"] <= 0.81)).all()
    assert not torch.equal(cache["clean"], cache["degraded"])


def test_denoised_predictions_are_made_of_no_held_out_photograph(recipe, tmp_path, monkeypatch):
    folder = training_folder(tmp_path, clean=6, scored=18, side=140)  # scores up to 98
    module, seen = recipe("denoised"), set()
    crop = module.crop

    def noted(photograph, *arguments):
        seen.add(photograph)
        return crop(photograph, *arguments)

    monkeypatch.setattr(module, "crop", noted)
    assert module.training_patches(folder, 21).shape == (21, 3, 128, 128)
    clean, scored = (split(photographs(folder)) for photographs in (clean_photographs, scored_photographs))
    assert seen == {*clean[0], *(photograph for photograph in scored[0] if photograph.mos > 55)}
    assert seen.isdisjoint(clean[1] + scored[1])


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_perfect_denoiser_gives_back_what_went_in(recipe, generator, kind):
    """With an exact prediction of any kind, what is decoded is the autoencoder's own reconstruction."""
    pipe = StableDiffusionPipeline.from_pretrained(generator / "pipeline")
    images, timesteps = torch.rand(2, 3, 64, 64), torch.tensor([200, 700])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = pipe.vae.encoder(images * 2 - 1).float()
        expected = ((pipe.vae.decoder(latents) + 1) / 2).float().clamp(0, 1)
    noise = torch.randn_like(latents)
    alphas = pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    output = {"v_prediction": velocity, "epsilon": noise, "sample": latents}[kind]
    pipe.scheduler.register_to_config(prediction_type=kind)

    class Perfect(torch.nn.Module):
        def forward(self, noisy, timesteps, context):
            return type("Output", (), {"sample": output})

    pipe.unet = Perfect()
    found = recipe("denoised").predict(pipe, images, timesteps, noise)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # bfloat16


def test_bundle_is_half_the_size_and_still_a_pipeline(recipe, generator, autoencoder, runs):
    recipe("bundle").main(
        ["--pipeline", str(generator / "pipeline"), "--vae", str(autoencoder), "--out", str(runs / "bundle")]
    )
    sizes = [
        (path / "unet/diffusion_pytorch_model.safetensors").stat().st_size
        for path in (runs / "bundle", generator / "pipeline")
    ]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.01)
    assert sizes[0] < 20e6  # what a bundled file may have
    assert "/" not in (runs / "bundle/vae/config.json").read_text()  # no path of this machine
    pipe = StableDiffusionPipeline.from_pretrained(runs / "bundle")
    assert pipe.unet.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    assert pipe("dark", num_inference_steps=1).images[0].size == (128, 128)


def test_a_bundle_between_two_generators(recipe, generator, runs):
    other = StableDiffusionPipeline.from_pretrained(generator / "pipeline")
    with torch.no_grad():
        for network in (other.unet, other.text_encoder):
            for parameter in network.parameters():
                parameter.add_(1)
    other.save_pretrained(runs / "other")
    options = [
        "--pipeline",
        runs / "other",
        "--before",
        generator / "pipeline",
        "--way",
        0.25,
        "--out",
        runs / "between",
    ]
    recipe("bundle").main([str(option) for option in options])
    first, found = (
        StableDiffusionPipeline.from_pretrained(path) for path in (generator / "pipeline", runs / "between")
    )
    for name in ("unet", "text_encoder"):
        before, between = (getattr(pipe, name).float().state_dict() for pipe in (first, found))
        for key, value in before.items():
            torch.testing.assert_close(between[key], value + 0.25, atol=2e-3, rtol=2e-3)  # half precision


# --- short ones ---


def test_score_folder_prints_best_first(tmp_path, recipe, capsys):
    (tmp_path / "deeper").mkdir()
    texture(np.random.default_rng(0), 64).save(tmp_path / "a.png")
    texture(np.random.default_rng(1), 48).save(tmp_path / "deeper" / "b.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_text("no picture either")
    recipe("score_folder").main([str(tmp_path)])
    printed = capsys.readouterr()
    rows = [re.fullmatch(r"(\d\.\d{3})  (.*)", line).groups() for line in printed.out.splitlines()]
    assert {path for _, path in rows} == {str(tmp_path / "a.png"), str(tmp_path / "deeper" / "b.jpg")}
    assert float(rows[0][0]) >= float(rows[1][0])
    assert "broken.jpg" in printed.err


def test_best_of_n_keeps_the_best(tmp_path, recipe, generator, capsys):
    pipeline, out = str(generator / "pipeline"), tmp_path / "best.png"
    recipe("best_of_n").main(["dark", "--pipeline", pipeline, "-n", "3", "--steps", "1", "--out", str(out)])
    rows = re.findall(r"^seed (\d): (-?\d\.\d{3})$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(seed for seed, _ in rows) == ["0", "1", "2"]
    scores = [float(score) for _, score in rows]
    assert scores == sorted(scores, reverse=True)
    with Image.open(out) as best:
        assert best.size == (128, 128)


@pytest.fixture(scope="module")
def tiny_sdxl(recipe, runs):
    """The folder of a Stable Diffusion XL of a few thousand parameters that takes prompts."""
    tokenizer = recipe("generator").build_tokenizer(runs / "sdxl-words")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=8, pad_token_id=tokenizer.pad_token_id, **special,
    )  # fmt: skip
    encoders = {name: CLIPTextModelWithProjection(config) for name in ("text_encoder", "text_encoder_2")}
    parts = tiny_pipeline("stable-diffusion-xl")[0].components
    parts |= encoders | {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(runs / "sdxl")
    return runs / "sdxl"


def test_guided_sdxl_shows_both(tmp_path, recipe, tiny_sdxl):
    out = tmp_path / "guided.png"
    main = recipe("guided_sdxl").main
    shared = ["bright", "--pipeline", str(tiny_sdxl), "--steps", "4", "--out", str(out)]
    main([*shared, "--scale", "0.5"])
    both = np.array(Image.open(out))
    assert both.shape == (32, 64, 3)
    assert (both[:, :32] != both[:, 32:]).any()
    main([*shared, "--scale", "0"])
    both = np.array(Image.open(out))
    assert (both[:, :32] == both[:, 32:]).all()


@pytest.fixture(scope="module")
def tiny_sd(runs):
    """The folder of a Stable Diffusion of a few thousand parameters that takes prompts."""
    (runs / "words").mkdir()
    prompted_pipeline(runs / "words").save_pretrained(runs / "sd")
    return runs / "sd"


def test_best_of_n_with_halving(tmp_path, recipe, tiny_sd, capsys):
    arguments = ["dark", "--pipeline", str(tiny_sd), "-n", "4", "--steps", "4", "--out", str(tmp_path / "best.png")]
    recipe("best_of_n").main([*arguments, "--halving"])
    assert len(re.findall(r"^seed", capsys.readouterr().out, re.MULTILINE)) == 1
    assert (tmp_path / "best.png").is_file()


def test_guided_flux_shows_both(tmp_path, recipe, tiny_sd):
    pipe, taken = tiny_pipeline("flux")[0], StableDiffusionPipeline.from_pretrained(tiny_sd)
    words = {"tokenizer": taken.tokenizer, "tokenizer_2": taken.tokenizer, "text_encoder": taken.text_encoder}
    text = T5EncoderModel(T5Config(vocab_size=60, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    FluxPipeline(**pipe.components | words | {"text_encoder_2": text}).save_pretrained(tmp_path / "flux")
    tiny_tae(16).save_pretrained(tmp_path / "tae")
    arguments = ["bright", "--pipeline", str(tmp_path / "flux"), "--tiny-decoder", str(tmp_path / "tae")]
    recipe("guided_flux").main(
        [*arguments, "--size", "32", "--steps", "4", "--scale", "0.5", "--out", str(tmp_path / "f.png")]
    )
    both = np.array(Image.open(tmp_path / "f.png"))
    assert both.shape == (32, 64, 3)
    assert (both[:, :32] != both[:, 32:]).any()


def test_attribute_guidance_follows_the_sign(tmp_path, recipe, tiny_sd):
    pictures = []
    for weight in ("1", "-1", "0.000001"):
        arguments = ["dark", "--pipeline", str(tiny_sd), "--weights", "random", "--steps", "4", "--scale", "1"]
        arguments += ["--pair", "Sharp photo.", "Blurry photo.", weight, "--out", str(tmp_path / "a.png")]
        recipe("attribute_guidance").main(arguments)
        pictures.append(np.array(Image.open(tmp_path / "a.png")))
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] == pictures[2]).all()  # one pair alone: only its sign counts


def test_multi_gpu_sweep_draws_what_is_missing(tmp_path, recipe, tiny_sd, capsys):
    (tmp_path / "prompts.txt").write_text("dark\n \nbright\n\n")  # lines without words are no prompts
    arguments = [str(tmp_path / "prompts.txt"), "--pipeline", str(tiny_sd), "-n", "2", "--steps", "3"]
    for made in (["00000.png", "00002.png"], ["00002.png"]):
        recipe("multi_gpu_sweep").main([*arguments, "--out", str(tmp_path / "new" / "sweep")])
        assert re.findall(r"0000\d\.png", capsys.readouterr().out) == made
        assert len(list((tmp_path / "new" / "sweep").iterdir())) == 2
        (tmp_path / "new" / "sweep" / "00002.png").unlink()


def test_score_dataset_writes_a_table(tmp_path, recipe, caplog):
    texture(np.random.default_rng(0), 64).save(tmp_path / "a.png")
    texture(np.random.default_rng(1), 48).save(tmp_path / "c.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    recipe("score_dataset").main([str(tmp_path), str(tmp_path / "scores.csv")])
    head, *rows = (line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines())
    assert head == ["path", "score"]
    assert [path for path, _ in rows] == [str(tmp_path / "a.png"), str(tmp_path / "c.jpg")]
    with torch.no_grad():
        expected = create_model("tiny")(load_images(tmp_path / "c.jpg", size=128)).item()
    assert float(rows[1][1]) == pytest.approx(expected, abs=1e-5)
    assert "b.jpg" in caplog.text


@pytest.mark.parametrize("broken", [0, 1])
def test_score_dataset_leaves_a_table_alone_and_writes_none_without_pictures(tmp_path, recipe, capsys, broken):
    (tmp_path / "photos").mkdir()
    for number in range(broken):
        (tmp_path / "photos" / f"{number}.jpg").write_text("no picture")
    (tmp_path / "scores.csv").write_text("what there was")
    for table, said in (("scores.csv", "scores.csv exists already"), ("new.csv", "photos holds no picture that can")):
        with pytest.raises(SystemExit):
            recipe("score_dataset").main([str(tmp_path / "photos"), str(tmp_path / table)])
        assert said in capsys.readouterr().err
    assert (tmp_path / "scores.csv").read_text() == "what there was"
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_recipes_are_short(script):
    assert len((RECIPES / f"{script}.py").read_text("utf-8").splitlines()) <= 40


def test_sheets_of_ladders(recipe, tmp_path):
    texture(np.random.default_rng(0), 80).save(tmp_path / "photo.png")
    recipe(SHEETS).main([str(tmp_path / "photo.png"), "--out", str(tmp_path / "sheets"), "--side", "64"])
    sheets = {path.stem: path for path in (tmp_path / "sheets").iterdir()}
    assert sheets.keys() == {path.stem for path in (ROOT / "docs" / "images" / "distortions").iterdir()}
    with Image.open(sheets["noise"]) as noise:  # four kinds, each clean and at five levels
        assert noise.width == 6 * 64 + 5 * 4
        noisy = [np.asarray(noise.crop((68 * column, 16, 68 * column + 64, 80)), dtype=float) for column in range(6)]
    assert (np.diff([((picture - noisy[0]) ** 2).mean() for picture in noisy]) > 0).all()


# --- what the documentation says ---

PAGES = ("docs/training.md", "recipes/README.md")


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(script or module, its arguments) of the commands in a page's code blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:3] == ["accelerate", "launch", "-m"]:
            found.append((words[3], words[4:]))
        elif words[:1] == ["python"]:
            found.append((words[1], words[2:]))
        elif words[:2] == ["accelerate", "launch"]:
            found.append((words[2], words[3:]))
        else:
            assert words[:1] in ([], ["iqguide"]), line
    assert found
    return found


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_exist_with_their_flags(page, recipe, capsys):
    for name, arguments in commands(page):
        if name.endswith(".py"):
            assert (ROOT / name).is_file()
            main = recipe(Path(name).stem).main
        else:
            main = importlib.import_module(name).main
        with pytest.raises(SystemExit):
            main(["--help"])
        known = set(re.findall(r"--?[a-z][a-z0-9-]*", capsys.readouterr().out))
        assert [word for word in arguments if word.startswith("-") and word not in known] == [], name


def test_documented_training_has_its_inputs_before_it_needs_them():
    made = ["DATA", "squeezenet.pt"]
    inputs = {"--caches", "--data", "--teacher", "--corpus", "--vae", "--redrawn", "--init", "--pipeline", "--denoised"}
    denoised = False
    for name, arguments in commands("docs/training.md"):
        if "MINE" in arguments:  # the part on one's own pictures starts from what is bundled
            break
        settings: dict[str, list[str]] = {}
        for word in arguments:
            if word.startswith("--"):
                settings[word] = []
            else:
                settings[list(settings)[-1]].append(word)
        for flag in inputs & settings.keys():
            for value in settings[flag]:
                assert any(value == path or value.startswith(f"{path}/") for path in made), (name, flag, value)
        made += settings["--out"]
        denoised |= "--denoised" in settings
    assert "models/assets/demo" in made
    assert denoised  # the stage that the bundled quality model comes from
