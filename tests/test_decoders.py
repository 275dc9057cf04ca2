"""Decoders: equal to the pipelines' own decoding, differentiable, found in the documented order, no side effects."""

import inspect
import logging

import accelerate
import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMPipeline, StableDiffusionPipeline
from packaging.version import Version
from tiny_pipelines import FAMILIES, tiny_kl, tiny_pipeline, tiny_tae

from iqguide.guidance.diffusers import decoders
from iqguide.guidance.diffusers import latents as families
from iqguide.guidance.diffusers.decoders import VaeDecoder, find_decoder, local_tiny
from iqguide.guidance.gradient import clamp_towards_range

FLUX = "flux"


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are faster without threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def last_latents(pipe, inputs, **changes):
    """The latents after the last step, and the picture that the pipeline makes of them."""
    seen = []

    def look(_pipe, _index, _timestep, tensors):
        seen.append(tensors["latents"])
        return tensors

    inputs = inputs | changes | {"generator": torch.Generator().manual_seed(0)}
    images = pipe(**inputs, output_type="pt", callback_on_step_end=look).images
    return seen[-1], images


def state_of(pipe):
    """Everything about the autoencoder that could be changed by mistake."""
    return {
        "flags": [p.requires_grad for p in pipe.vae.parameters()],
        "modes": [m.training for m in pipe.vae.modules()],
        "checkpointing": [getattr(m, "gradient_checkpointing", None) for m in pipe.vae.modules()],
        "attributes": [sorted(vars(m)) for m in pipe.vae.modules()],
        "tensors": [(id(p), p.data_ptr(), p.dtype) for p in pipe.vae.parameters()],
        "pipe": {name: id(value) for name, value in vars(pipe).items()},
    }


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_as_the_pipeline_does(family, size):
    pipe, inputs = tiny_pipeline(family)
    decoder = find_decoder(pipe)
    with decoder.watch(pipe):
        latents, images = last_latents(pipe, inputs, height=size[0], width=size[1])
    decoded = decoder(latents)
    assert decoded.dtype == torch.float32
    assert images.shape == (1, 3, *size)
    assert images.std() > 0.05  # a picture, not a constant
    torch.testing.assert_close(decoded, images, rtol=0, atol=2e-6)  # 16 times 2**-23, the rounding of pixels at 1


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_that_of_the_plain_decoding(family):
    """Written out again from each pipeline's last lines, for pixels inside [0, 1]."""
    pipe, inputs = tiny_pipeline(family)
    latents, _ = last_latents(pipe, inputs)
    plain = latents.clone().requires_grad_()
    z = pipe._unpack_latents(plain, 32, 32, pipe.vae_scale_factor) if family == FLUX else plain
    z = z / pipe.vae.config.scaling_factor
    if family == "stable-diffusion-xl":
        mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
        z = z * std + mean
    if family in (FLUX, "stable-diffusion-3"):
        z = z + pipe.vae.config.shift_factor
    pixels = pipe.vae.decode(z).sample / 2 + 0.5
    weights = torch.randn_like(pixels) * ((pixels > 0) & (pixels < 1))
    (expected,) = torch.autograd.grad((pixels * weights).sum(), plain)

    ours = latents.clone().requires_grad_()
    images = find_decoder(pipe, height=32, width=32)(ours)
    (gradient,) = torch.autograd.grad((images * weights).sum(), ours)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_clamp_lets_values_come_back_but_not_go_further():
    values = torch.tensor([-0.5, -0.5, 0.0, 0.3, 0.3, 1.0, 1.5, 1.5], requires_grad=True)
    push = torch.tensor([-1.0, 2.0, -1.0, -1.0, 2.0, 2.0, -1.0, 2.0])
    clamped = clamp_towards_range(values)
    assert clamped.tolist() == values.clamp(0, 1).tolist()
    clamped.backward(push)
    assert values.grad.tolist() == [0, 2, -1, -1, 2, 2, -1, 0]


def test_finding_and_using_a_decoder_changes_nothing():
    for family in FAMILIES:
        pipe, inputs = tiny_pipeline(family)
        pipe.vae.train()
        latents, _ = last_latents(pipe, inputs)
        before = state_of(pipe)
        decoder = find_decoder(pipe)
        with decoder.watch(pipe):
            latents, _ = last_latents(pipe, inputs)
        latents = latents.requires_grad_()
        decoder(latents).mean().backward()
        assert latents.grad.abs().sum() > 0
        assert all(p.grad is None for p in pipe.vae.parameters())
        assert state_of(pipe) == before


def test_weights_are_shared_not_copied():
    pipe, _ = tiny_pipeline("stable-diffusion")
    decoder = find_decoder(pipe)
    before = decoder(torch.ones(1, 4, 8, 8))
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.add_(0.2)
    after = decoder(torch.ones(1, 4, 8, 8))
    inside = (before > 0.01) & (before < 0.85)
    torch.testing.assert_close((after - before)[inside], torch.full_like(before, 0.1)[inside])


def test_own_autoencoder_keeps_few_activations():
    """Gradient checkpointing: fewer bytes are saved for the backward pass than without."""
    pipe, _ = tiny_pipeline("stable-diffusion")

    def saved_bytes(decoder):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            decoder(torch.zeros(1, 4, 16, 16, requires_grad=True))
        return sum(sizes)

    plain = VaeDecoder(pipe.vae, families.STABLE_DIFFUSION)
    assert saved_bytes(find_decoder(pipe)) < 0.5 * saved_bytes(plain)


def test_packed_latents_need_a_size():
    pipe, inputs = tiny_pipeline(FLUX)
    latents, images = last_latents(pipe, inputs, height=32, width=128)  # 8 x 32 patches, as many as 16 x 16
    with pytest.raises(ValueError, match=r"height= and width="):
        find_decoder(pipe)(latents)
    with pytest.raises(ValueError, match="hold 256 patches; expected 8 x 8"):
        find_decoder(pipe, height=32, width=32)(latents)
    with pytest.raises(ValueError, match="both or neither"):
        find_decoder(pipe, height=32)
    torch.testing.assert_close(find_decoder(pipe, height=32, width=128)(latents), images, rtol=0, atol=1e-6)
    assert find_decoder(pipe, height=64, width=64)(latents).shape == (1, 3, 64, 64)  # it is told, it does not guess


def test_watching_follows_every_call_and_leaves_no_trace():
    pipe, inputs = tiny_pipeline(FLUX)
    decoder = find_decoder(pipe)
    with decoder.watch(pipe):
        for height, width in ((32, 64), (64, 32)):
            latents, _ = last_latents(pipe, inputs, height=height, width=width)
            assert decoder(latents).shape == (1, 3, height, width)
    assert "prepare_latents" not in vars(pipe)
    with pytest.raises(RuntimeError, match="stop"), decoder.watch(pipe):
        raise RuntimeError("stop")
    assert "prepare_latents" not in vars(pipe)


def test_nested_watchers_restore_in_order():
    pipe, inputs = tiny_pipeline(FLUX)
    outer, inner = find_decoder(pipe), find_decoder(pipe)
    with outer.watch(pipe):
        with inner.watch(pipe):
            pass
        latents, _ = last_latents(pipe, inputs, height=32, width=64)
        assert outer(latents).shape == (1, 3, 32, 64)
        with pytest.raises(ValueError, match="do not tell"):
            inner(latents)
    assert "prepare_latents" not in vars(pipe)


def test_a_function_is_used_as_it_is():
    pipe, _ = tiny_pipeline(FLUX)

    def decode(latents):
        return latents

    assert find_decoder(pipe, decode) is decode
    assert find_decoder(object(), decode) is decode
    made = find_decoder(pipe, tiny_tae(16))
    assert find_decoder(pipe, made) is made


def test_given_autoencoder_uses_its_own_scaling():
    """An AutoencoderTiny takes latents in the diffusion model's units, whatever the pipeline's autoencoder does."""
    pipe, inputs = tiny_pipeline(FLUX)
    tae = tiny_tae(16)
    latents, _ = last_latents(pipe, inputs)
    images = find_decoder(pipe, tae, height=32, width=32)(latents)
    expected = tae.decode(pipe._unpack_latents(latents, 32, 32, 2)).sample / 2 + 0.5
    torch.testing.assert_close(images, expected.clamp(0, 1))


def test_own_autoencoder_tiny_is_preferred_and_scaled_as_the_pipeline_does():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    pipe.vae = tiny_tae()
    pipe.vae.register_to_config(scaling_factor=0.5)
    latents, images = last_latents(pipe, inputs)
    decoder = find_decoder(pipe, load_tiny=lambda name: pytest.fail("looked for another decoder"))
    torch.testing.assert_close(decoder(latents), images, rtol=0, atol=1e-6)


def test_found_autoencoder_tiny_comes_before_the_own_vae(caplog):
    pipe, _ = tiny_pipeline("stable-diffusion-3")
    tae, asked = tiny_tae(16), []
    with caplog.at_level(logging.INFO, logger=decoders.__name__):
        found = find_decoder(pipe, load_tiny=lambda name: asked.append(name) or tae)
    assert asked == ["madebyollin/taesd3"]
    assert "AutoencoderTiny" in caplog.text
    latents = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(found(latents), (tae.decode(latents).sample / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("other", [tiny_tae(8), AutoencoderTiny(latent_channels=16)], ids=["channels", "factor"])
def test_found_autoencoder_of_other_latents_is_left(other):
    pipe, _ = tiny_pipeline("stable-diffusion-3")
    assert find_decoder(pipe, load_tiny=lambda name: other).name == "AutoencoderKL"
    assert find_decoder(pipe, load_tiny=lambda name: None).name == "AutoencoderKL"


def test_local_tiny_reads_the_cache_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_tiny("madebyollin/taesd") is None
    repository = tmp_path / "models--madebyollin--taesd"
    saved, commit = tiny_tae(), "0123456789" * 4
    saved.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = local_tiny("madebyollin/taesd")
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(found.decode(latents).sample, saved.decode(latents).sample)


def test_unknown_pipeline_names_the_two_functions():
    pipe = DDPMPipeline(unet=None, scheduler=None)
    with pytest.raises(ValueError, match=r"DDPMPipeline.*decoder=.*unpack="):
        find_decoder(pipe)
    pipe, inputs = tiny_pipeline("stable-diffusion")
    latents, images = last_latents(pipe, inputs)

    class Other:
        vae = pipe.vae
        vae_scale_factor = 2

    decoder = find_decoder(Other(), unpack=lambda z: z / pipe.vae.config.scaling_factor)
    torch.testing.assert_close(decoder(latents), images, rtol=0, atol=1e-6)


def test_subclasses_of_a_pipeline_are_known():
    class Mine(StableDiffusionPipeline):
        pass

    assert families.family_of(Mine.__new__(Mine)) is families.STABLE_DIFFUSION


def is_there(name):
    try:
        return hasattr(diffusers, name)
    except RuntimeError:  # it needs newer transformers
        return False


def test_every_pipeline_of_the_table_exists():
    """In the version of diffusers for which the table was written; an older one lacks the newest pipelines."""
    missing = [name for name in families.FAMILIES if not is_there(name)]
    assert missing == [] or Version(diffusers.__version__) < Version("0.42")
    for name, family in families.FAMILIES.items():
        if family.needs_grid and "Modular" not in name and name not in missing:
            arguments = inspect.signature(getattr(diffusers, name).prepare_latents).parameters
            assert {"height", "width"} <= arguments.keys(), name


def test_float16_that_asks_for_it_is_read_as_float32():
    pipe, _ = tiny_pipeline("stable-diffusion-xl")
    rounded = tiny_kl(scaling_factor=0.5)
    rounded.load_state_dict({name: value.half().float() for name, value in pipe.vae.state_dict().items()})
    pipe.vae.half()
    assert pipe.vae.config.force_upcast
    latents = torch.randn(1, 4, 8, 8)
    mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    expected = rounded.decode(latents * std / 0.5 + mean).sample / 2 + 0.5
    torch.testing.assert_close(find_decoder(pipe)(latents), expected.clamp(0, 1))
    assert pipe.vae.dtype == torch.float16


def test_weights_made_in_inference_mode_can_guide():
    pipe, _ = tiny_pipeline("stable-diffusion")
    with torch.inference_mode():
        for module in pipe.vae.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
        decoder = find_decoder(pipe)
        with torch.inference_mode(False), torch.enable_grad():
            latents = torch.ones(1, 4, 8, 8, requires_grad=True)
            decoder(latents).mean().backward()
    assert latents.grad.abs().sum() > 0


def test_offloaded_models_are_left_where_they_are():
    pipe, inputs = tiny_pipeline("stable-diffusion")
    latents, images = last_latents(pipe, inputs)
    accelerate.cpu_offload_with_hook(pipe.vae, "cpu")
    loads = []
    pipe.vae._hf_hook.pre_forward = lambda module, *args, **kwargs: loads.append(module) or (args, kwargs)
    pipe.vae._hf_hook.holder = pipe  # a hook can reach other models, which must not be copied
    pipe.unet.__deepcopy__ = lambda memo: pytest.fail("copied the denoiser")
    torch.testing.assert_close(find_decoder(pipe)(latents), images, rtol=0, atol=1e-6)
    assert loads == []
    pipe.vae.decode(latents)
    assert loads == [pipe.vae]  # the pipeline's own autoencoder still has its hook


def test_layerwise_offloading_is_refused():
    pipe, _ = tiny_pipeline("stable-diffusion")
    accelerate.cpu_offload(pipe.vae, "cpu")
    with pytest.raises(ValueError, match="offloaded layer by layer"):
        find_decoder(pipe)


def test_decoder_follows_the_latents(device):
    pipe, _ = tiny_pipeline("stable-diffusion")
    images = find_decoder(pipe)(torch.zeros(1, 4, 8, 8, device=device))
    assert images.device.type == device.type
    assert pipe.vae.device.type == "cpu"
