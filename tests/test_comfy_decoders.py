"""Which decoder ComfyUI guidance takes, that it draws what ComfyUI draws, and that it has a gradient."""

import pytest
import safetensors.torch
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def tiny():
    import tiny_comfy

    return tiny_comfy


@pytest.fixture(scope="module")
def decoders(tiny):
    from iqguide.guidance.comfy import decoders as comfy_decoders

    return comfy_decoders


@pytest.fixture
def vae_approx(decoders, monkeypatch, tmp_path):
    """An empty models/vae_approx."""
    import folder_paths

    extensions = folder_paths.folder_names_and_paths["vae_approx"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], extensions))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.unet_model()


def has_gradient(decoder, latents):
    from iqguide.guidance import reward_gradient

    with torch.inference_mode():
        _, gradient = reward_gradient(lambda images: images.mean((1, 2, 3)), decoder, latents)
    return gradient.isfinite().all() and gradient.abs().max() > 0


def small_vae(tiny, seed=3):
    """ComfyUI's AutoencoderKL with few channels."""
    sizes = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    sizes |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    import comfy.ldm.models.autoencoder
    import comfy.sd

    network = tiny.randomize(comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=sizes, embed_dim=4), seed)
    with torch.inference_mode():
        return comfy.sd.VAE(sd=network.state_dict(), config={"params": {"ddconfig": sizes, "embed_dim": 4}})


def wan_vae(tiny):
    """The video VAE of Wan 2.1 with few channels, found by ComfyUI's own detection."""
    import comfy.ldm.wan.vae
    import comfy.sd

    sizes = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    network = comfy.ldm.wan.vae.WanVAE(**sizes, temperal_downsample=[False, True, True], dropout=0.0)
    state = tiny.randomize(network).state_dict()
    state = {name: torch.ones_like(value) if name.endswith("gamma") else value for name, value in state.items()}
    return comfy.sd.VAE(sd=state)


@pytest.mark.parametrize("make", ["taesd_vae", "small_vae"])
def test_it_draws_what_the_vae_draws(make, tiny, decoders, model, vae_approx):
    vae = tiny.taesd_vae() if make == "taesd_vae" else small_vae(tiny)
    latents = torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        decoder = decoders.find_decoder(model, vae)
        expected = vae.decode(model.model.process_latent_out(latents)).movedim(-1, 1)
        found = decoder(latents)
    assert 0.05 < expected.std() < 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert has_gradient(decoder, latents)


def test_the_vae_keeps_its_own_weights_and_its_encoder(tiny, decoders, model, vae_approx):
    vae = small_vae(tiny)
    with torch.inference_mode():
        decoder = decoders.find_decoder(model, vae)
    assert not hasattr(decoder.network, "encoder")
    with torch.inference_mode():
        assert vae.encode(torch.rand(1, 32, 32, 3)).shape == (1, 4, 4, 4)
    ours = {parameter.data_ptr() for parameter in decoder.network.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in vae.first_stage_model.parameters())
    assert type(decoder.patcher).__name__ == "ModelPatcher"
    assert decoder.factor == 8


def test_a_vae_from_a_file_is_read_once_more(tiny, decoders, model, vae_approx, tmp_path):
    import comfy.sd

    path = tmp_path / "vae.safetensors"
    safetensors.torch.save_file(tiny.taesd().state_dict(), path)
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
        vae.patcher.cached_patcher_init = (comfy.sd.load_vae_patcher, (str(path), None, None))  # as VAELoader does
        decoder = decoders.find_decoder(model, vae)
    assert not any(parameter.is_inference() for parameter in decoder.network.parameters())
    assert has_gradient(decoder, torch.randn(1, 4, 8, 8))


def test_a_tiny_decoder_in_the_folder_comes_first(tiny, decoders, model, vae_approx):
    network = tiny.taesd()
    safetensors.torch.save_file(network.taesd_decoder.state_dict(), vae_approx / "taesd_decoder.safetensors")
    vae = small_vae(tiny)
    with torch.inference_mode():
        found = {choice: decoders.find_decoder(model, vae, choice) for choice in decoders.CHOICES}
    assert found["auto"].name == found["tiny"].name == "taesd_decoder.safetensors"
    assert found["vae"].name == "AutoencoderKL"
    latents = torch.randn(1, 4, 8, 8)  # the tiny decoder takes the model's own units
    expected = (network.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found["tiny"](latents), expected)
    assert has_gradient(found["tiny"], latents)


def test_pixels_need_no_decoder(decoders, model):
    import comfy.latent_formats

    pixels = model.clone()
    pixels.add_object_patch("latent_format", comfy.latent_formats.ChromaRadiance())
    decoder = decoders.find_decoder(pixels, None)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(decoder(images), images * 0.5 + 0.5)
    assert has_gradient(decoder, images)


def test_video_latents_are_decoded_frame_by_frame(tiny, decoders, model, vae_approx):
    import comfy.latent_formats

    video = model.clone()
    video.add_object_patch("latent_format", comfy.latent_formats.Wan21())
    vae = wan_vae(tiny)
    frames = torch.randn(2, 16, 4, 4)
    with torch.inference_mode():
        decoder = decoders.find_decoder(video, vae)
        units = video.get_model_object("latent_format").process_out(frames[:, :, None])
        expected = vae.decode(units)[:, 0].movedim(-1, 1)
    torch.testing.assert_close(decoder(frames), expected, rtol=0, atol=2e-3)
    assert has_gradient(decoder, frames)


def test_every_frame_is_pushed(tiny, decoders, model, vae_approx):
    import comfy.latent_formats

    from iqguide.guidance import RewardGuidance
    from iqguide.guidance.comfy import patch_model, patches_of
    from iqguide.guidance.prediction_only import PredictionOnlyGuidance

    video = model.clone()
    video.add_object_patch("latent_format", comfy.latent_formats.Wan21())
    guidance = RewardGuidance(lambda images: images.mean((1, 2, 3)), noise=0.0, clip=1e3, max_drift=None)
    (patch,) = patches_of(patch_model(video, guidance, vae=wan_vae(tiny)))
    patch._sampling = model.get_model_object("model_sampling")
    patch._run = PredictionOnlyGuidance(patch.guidance.start(), [2.0, 1.0, 0.0])
    denoised = torch.randn(2, 16, 3, 4, 4)
    with torch.inference_mode():
        changed = patch.guide({"denoised": denoised, "sigma": torch.full((2,), 2.0), "model_options": {}})
    sizes = (changed - denoised).square().mean((1, 3, 4)).sqrt()  # samples x frames
    assert changed.shape == denoised.shape
    torch.testing.assert_close(sizes, sizes[:1, :1].expand(2, 3), rtol=1e-2, atol=0)
    assert sizes.min() > 0.05


def test_a_whole_vae_decodes_crops_and_a_tiny_one_everything(tiny, decoders, model, vae_approx):
    from iqguide.guidance import RewardGuidance
    from iqguide.guidance.comfy import patch_model, patches_of

    crops = {}
    for name, vae in (("tiny", tiny.taesd_vae()), ("vae", small_vae(tiny))):
        for whole in (False, True):
            guidance = RewardGuidance(lambda images: images.mean((1, 2, 3)))
            (patch,) = patches_of(patch_model(model, guidance, vae=vae, whole_picture=whole))
            crops[name, whole] = patch.guidance.crop
    assert crops == {("tiny", False): None, ("tiny", True): None, ("vae", False): 64, ("vae", True): None}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("auto", "the VAE of this model at the input vae, or taesd_decoder.safetensors in models/vae_approx"),
        ("tiny", "expected taesd_decoder.safetensors in models/vae_approx"),
        ("vae", "expected the VAE of this model at the input vae"),
        ("best", "decoder is 'best'; expected one of auto, tiny, vae"),
    ],
)
def test_what_is_missing_is_said(choice, message, decoders, model, vae_approx):
    with pytest.raises(ValueError, match=message):
        decoders.find_decoder(model, None, choice)
