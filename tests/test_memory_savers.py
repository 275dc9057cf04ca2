"""Guidance beside what saves memory or time in diffusers: the guided picture is the one of an ordinary pipeline."""

import pytest
import torch
from test_families import brightness
from tiny_pipelines import SIZE, tiny_pipeline

from iqguide import RewardGuidance
from iqguide.guidance.diffusers import guided
from iqguide.guidance.diffusers.decoders import find_decoder

CPU = torch.device("cpu")


def draw(pipe, inputs, scale=0.5, gradient="denoised", **changes):
    with guided(pipe, RewardGuidance(brightness, scale=scale, every=1, gradient=gradient)) as run:
        images = pipe(**inputs | changes, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert scale == 0 or run.runs[-1].fired
    return images


def ordinary(name="stable-diffusion-3"):
    """A pipeline, a call's arguments, and its guided picture; steering has moved it."""
    pipe, inputs = tiny_pipeline(name)
    picture = draw(pipe, inputs)
    assert (picture - draw(pipe, inputs, scale=0)).abs().max() > 0.01
    return *tiny_pipeline(name), picture


def test_model_offload():
    pipe, inputs, expected = ordinary()
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(draw(pipe, inputs), expected)
    assert hasattr(pipe.transformer, "_hf_hook")
    assert hasattr(pipe.vae, "_hf_hook")


def test_group_offload():
    pipe, inputs, expected = ordinary()
    if not hasattr(pipe, "enable_group_offload"):
        pytest.skip("this diffusers offloads no groups of a whole pipeline")
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    assert torch.equal(draw(pipe, inputs), expected)
    assert torch.equal(draw(pipe, inputs), expected)  # the hooks are still in order


def test_sliced_autoencoder():
    pipe, inputs, _ = ordinary()
    inputs = {name: value.repeat(2, 1, 1)[:2] if name.endswith("prompt_embeds") and value.ndim == 3 else value
              for name, value in inputs.items()}  # fmt: skip
    inputs |= {name: value.repeat(2, 1) for name, value in inputs.items() if "pooled" in name}
    expected = draw(pipe, inputs)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(draw(pipe, inputs), expected, rtol=0, atol=1e-5)
    assert pipe.vae.use_slicing


def test_tiled_autoencoder():
    pipe, inputs, _ = ordinary()
    pipe.vae.enable_tiling()
    size = {"height": 2 * SIZE, "width": 2 * SIZE}
    images = draw(pipe, inputs, **size)
    assert brightness(images) > brightness(draw(pipe, inputs, scale=0, **size))
    latents = torch.randn(1, 16, SIZE, SIZE, requires_grad=True)  # more than a tile
    tiled = find_decoder(pipe)(latents)
    z = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    torch.testing.assert_close(tiled, (pipe.vae.decode(z).sample / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(tiled.mean(), latents)
    assert (gradient.abs().amax(1) > 0).all()
    assert pipe.vae.use_tiling


def test_compiled_denoiser_and_autoencoder():
    pipe, inputs, expected = ordinary()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.vae = torch.compile(pipe.vae, backend="eager")
    torch.testing.assert_close(draw(pipe, inputs), expected, rtol=0, atol=1e-5)
    assert hasattr(pipe.transformer, "_orig_mod")


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
def test_denoiser_whose_weights_are_stored_small(storage):
    pipe, inputs = tiny_pipeline("stable-diffusion-3")
    pipe.transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    assert storage in {parameter.dtype for parameter in pipe.transformer.parameters()}
    assert brightness(draw(pipe, inputs)) > brightness(draw(pipe, inputs, scale=0))
    assert storage in {parameter.dtype for parameter in pipe.transformer.parameters()}


def weights_in_torchao(model):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def all_in_torchao(model):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def weights_in_quanto(model):
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


@pytest.mark.parametrize(
    ("package", "quantise"),
    [("torchao", weights_in_torchao), ("torchao", all_in_torchao), ("optimum.quanto", weights_in_quanto)],
    ids=["torchao weights", "torchao weights and activations", "quanto weights"],
)
@pytest.mark.filterwarnings("ignore")  # those of the packages
def test_quantised_denoiser(package, quantise):
    pytest.importorskip(package)
    pipe, inputs, expected = ordinary()
    quantise(pipe.transformer)
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert type(weight).__module__.startswith(package)
    picture = draw(pipe, inputs)
    assert brightness(picture) > brightness(draw(pipe, inputs, scale=0))
    assert 0 < (picture - expected).abs().mean() < 0.02  # near the one of the pipeline at full precision
    if quantise is all_in_torchao:
        with pytest.raises(ValueError, match="with quantised activations"):
            draw(pipe, inputs, gradient="full")
    else:
        assert brightness(draw(pipe, inputs, gradient="full")) > brightness(draw(pipe, inputs, scale=0))
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight is weight
