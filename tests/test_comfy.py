"""Guidance inside the real ComfyUI, on tiny models of its own classes: it works, and leaves everything else alone."""

import logging

import pytest
import torch
from torch import nn

from iqguide.guidance import RewardGuidance

pytestmark = [pytest.mark.comfy, pytest.mark.filterwarnings("ignore")]
QUICK = ["euler", "heun", "dpm_2", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "euler_cfg_pp", "lcm", "dpm_adaptive"]


@pytest.fixture(scope="module")
def tiny():
    """tests/tiny_comfy.py; importing ComfyUI takes a while."""
    import tiny_comfy

    return tiny_comfy


@pytest.fixture(scope="module")
def comfy_adapter(tiny):
    from iqguide.guidance.comfy import patch as comfy

    return comfy


@pytest.fixture(scope="module")
def kinds(tiny):
    """Of each kind of prediction: MODEL, channels of its latents, VAE."""
    return {kind: (make(), channels, tiny.taesd_vae(channels)) for kind, (make, channels) in tiny.KINDS.items()}


def grey(images):
    """Higher the nearer the picture is to middle grey: something that any random decoder can draw."""
    return -20 * (images - 0.5).square().mean((1, 2, 3))


def scores(vae, latents, reward=grey):
    with torch.inference_mode():
        return reward(vae.decode(latents).movedim(-1, 1))


def guided(comfy_adapter, model, vae, reward=grey, percent=(0.0, 0.95), scale=0.1, **settings):
    more = {key: settings.pop(key) for key in ("patchers", "decoder", "whole_picture") if key in settings}
    with torch.inference_mode():
        guidance = RewardGuidance(reward, scale=scale, **{"chunk": 6} | settings)
        return comfy_adapter.patch_model(model, guidance, vae=vae, percent=percent, **more)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_the_score_rises_and_the_original_stays(kind, tiny, comfy_adapter, kinds):
    model, channels, vae = kinds[kind]
    before = tiny.sample(model, channels, batch=6)
    patched = guided(comfy_adapter, model, vae)
    after = tiny.sample(patched, channels, batch=6)
    assert after.isfinite().all()
    assert (scores(vae, after) > scores(vae, before)).sum() >= 5
    assert torch.equal(tiny.sample(model, channels, batch=6), before)
    (patch,) = comfy_adapter.patches_of(patched)
    assert sum(entry.skipped is None for entry in patch.log) >= 4
    assert comfy_adapter.patches_of(model) == ()


@pytest.mark.parametrize("sampler", QUICK)
def test_samplers(sampler, tiny, comfy_adapter, kinds):
    check_sampler(sampler, "v", tiny, comfy_adapter, kinds)


def check_sampler(sampler, kind, tiny, comfy_adapter, kinds):
    assert better_with(sampler, kind, tiny, comfy_adapter, kinds) >= 5


def better_with(sampler, kind, tiny, comfy_adapter, kinds, **guidance):
    """Of six samples, how many have a higher score when guided."""
    model, channels, vae = kinds[kind]
    # Steps of about equal size in log sigma: dpmpp_3m_sde diverges on others, guided or not.
    settings = {"sampler": sampler, "batch": 6, "steps": 8, "scheduler": "exponential"}
    before = tiny.sample(model, channels, **settings)
    after = tiny.sample(guided(comfy_adapter, model, vae, **guidance), channels, **settings)
    assert after.isfinite().all()
    return (scores(vae, after) > scores(vae, before)).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_every_sampler_of_the_checkout(kind, tiny, comfy_adapter, kinds):
    import comfy.samplers

    samplers = comfy.samplers.SAMPLER_NAMES
    assert len(samplers) >= 40
    better = {sampler: better_with(sampler, kind, tiny, comfy_adapter, kinds) for sampler in samplers}
    assert {sampler: count for sampler, count in better.items() if count < 5} == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_every_scheduler_of_the_checkout(kind, tiny, comfy_adapter, kinds):
    import comfy.samplers

    model, channels, vae = kinds[kind]
    patched = guided(comfy_adapter, model, vae)
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        settings = {"scheduler": scheduler, "batch": 6, "steps": 12}
        before, after = (tiny.sample(each, channels, **settings) for each in (model, patched))
        assert after.isfinite().all(), scheduler
        assert (scores(vae, after) > scores(vae, before)).sum() >= 5, scheduler


def test_strength_zero_changes_no_bit_and_needs_no_decoder(tiny, comfy_adapter, kinds):
    model, channels, _ = kinds["eps"]
    patched = guided(comfy_adapter, model, None, scale=0.0)
    assert torch.equal(tiny.sample(patched, channels), tiny.sample(model, channels))
    assert patched.additional_models == {}
    assert {entry.skipped for entry in comfy_adapter.patches_of(patched)[0].log} == {"the scale is 0"}


class Network(nn.Module):
    """A reward with weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("target", torch.tensor(0.2))

    def forward(self, images):
        return -(self.conv(images) - self.target).square().mean((1, 2, 3))


def test_weights_that_were_moved_inside_inference_mode_can_guide(tiny, comfy_adapter, kinds):
    model, channels, vae = kinds["v"]
    reward = Network()
    with torch.inference_mode():
        reward.to(torch.bfloat16).to(torch.float32)
    assert reward.conv.weight.is_inference()
    patched = guided(comfy_adapter, model, vae, reward)
    tiny.sample(patched, channels)
    assert any(entry.skipped is None for entry in comfy_adapter.patches_of(patched)[0].log)


def test_all_networks_are_loaded_before_the_first_step_and_none_after(tiny, comfy_adapter, kinds, monkeypatch):
    import comfy.model_management as mm
    from comfy.model_patcher import ModelPatcher

    model, channels, vae = kinds["v"]
    patcher = ModelPatcher(Network(), mm.get_torch_device(), mm.unet_offload_device())
    patched = guided(comfy_adapter, model, vae, patcher.model, patchers=[patcher], chunk=1)
    loads, freed = [], []
    load, free = mm.load_models_gpu, mm.free_memory
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, *a, **k: (loads.append(models), load(models, *a, **k))[1])
    monkeypatch.setattr(mm, "free_memory", lambda need, *a, **k: (freed.append(need), free(need, *a, **k))[1])
    tiny.sample(patched, channels, size=16)
    (models,) = loads
    networks = [each.model for each in models]
    assert patcher.model in networks
    assert any(type(network).__name__ == "TAESD" for network in networks)
    assert vae.first_stage_model not in networks
    # One picture of 128 pixels with TAESD; a backward pass at 256 was measured at 142 MiB, 36 MiB here.
    assert 36 * 2**20 <= freed[0] <= 2 * 36 * 2**20


def test_stacked_guidances_act_and_log_apart(tiny, comfy_adapter, kinds):
    model, channels, vae = kinds["v"]
    patched = guided(comfy_adapter, guided(comfy_adapter, model, vae), vae, lambda images: images.mean((1, 2, 3)))
    patched = patched.clone()  # as the next node does
    tiny.sample(patched, channels)
    first, second = comfy_adapter.patches_of(patched)
    assert first.guidance.reward is grey
    assert [any(entry.skipped is None for entry in patch.log) for patch in (first, second)] == [True, True]


def test_the_log_is_that_of_the_latest_sampling(tiny, comfy_adapter, kinds):
    model, channels, vae = kinds["v"]
    patched = guided(comfy_adapter, model, vae)
    (patch,) = comfy_adapter.patches_of(patched)
    lengths = []
    for steps in (7, 4):
        tiny.sample(patched, channels, steps=steps)
        lengths.append(len(patch.log))
    assert lengths == [7, 4]


def test_a_run_that_was_interrupted_leaves_the_model_usable(tiny, comfy_adapter, kinds):
    import comfy.model_management as mm

    model, channels, vae = kinds["v"]
    calls = []

    def interrupts(images):
        calls.append(1)
        mm.interrupt_current_processing(len(calls) == 2)
        return grey(images)

    patched = guided(comfy_adapter, model, vae, interrupts)
    with pytest.raises(mm.InterruptProcessingException):
        tiny.sample(patched, channels)
    assert len(calls) == 2
    assert tiny.sample(patched, channels).isfinite().all()


def test_a_window_that_no_step_meets_is_said(tiny, comfy_adapter, kinds, caplog):
    model, channels, vae = kinds["v"]
    patched = guided(comfy_adapter, model, vae, percent=(0.9, 0.95))
    with caplog.at_level(logging.WARNING):
        tiny.sample(patched, channels, last_step=1)
    assert "changed nothing: outside the noise window" in caplog.text


@pytest.mark.parametrize("percent", [(0.5, 0.5), (0.9, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_a_window_must_be_one(percent, comfy_adapter, kinds):
    model, _, vae = kinds["v"]
    with pytest.raises(ValueError, match="expected 0 <= start < end <= 1"):
        guided(comfy_adapter, model, vae, percent=percent)


@pytest.mark.parametrize(("kind", "sigma", "ratio"), [("eps", 2.5, 2.5), ("v", 0.3, 0.3), ("flow", 0.25, 1 / 3)])
def test_noise_levels_are_those_of_the_prediction_type(kind, sigma, ratio, comfy_adapter, kinds):
    sampling = kinds[kind][0].get_model_object("model_sampling")
    assert comfy_adapter.ratio_at(sampling, sigma) == pytest.approx(ratio, rel=1e-6)


def test_pure_noise_has_no_ratio(comfy_adapter, kinds):
    assert comfy_adapter.ratio_at(kinds["flow"][0].get_model_object("model_sampling"), 1.0) == float("inf")


def test_percent_is_that_of_the_models_schedule(tiny, comfy_adapter, kinds):
    """What the window lets through agrees with where the core nodes would begin and end."""
    model, channels, vae = kinds["v"]
    patched = guided(comfy_adapter, model, vae, percent=(0.3, 0.7))
    tiny.sample(patched, channels, steps=30)
    sampling = model.get_model_object("model_sampling")
    high, low = (sampling.percent_to_sigma(percent) for percent in (0.3, 0.7))
    log = comfy_adapter.patches_of(patched)[0].log
    levels = [entry.noise_level / (1 - entry.noise_level) for entry in log if entry.skipped is None]
    steps = [entry.noise_level / (1 - entry.noise_level) for entry in log]
    assert min(levels) > low  # the steps that reach into the window: one may begin above it
    assert sum(level > high for level in levels) <= 1
    assert len(levels) >= sum(low < level <= high for level in steps)


def test_core_guidance_nodes_stack(tiny, comfy_adapter, kinds):
    from comfy_extras.nodes_apg import APG
    from comfy_extras.nodes_cfg import CFGZeroStar
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model, channels, vae = kinds["v"]
    stacks = {
        "PAG": lambda m: PerturbedAttentionGuidance.execute(m, 2.0).result[0],
        "APG": lambda m: APG.execute(m, 1.0, 5.0, 0.5).result[0],
        "CFGZeroStar": lambda m: CFGZeroStar.execute(m).result[0],
    }
    for name, node in stacks.items():
        for stacked in (node(model), node(guided(comfy_adapter, model, vae)), guided(comfy_adapter, node(model), vae)):
            latents = tiny.sample(stacked, channels, batch=6)
            assert latents.isfinite().all(), name
            if not comfy_adapter.patches_of(stacked):
                before = scores(vae, latents)
            else:
                assert (scores(vae, latents) > before).sum() >= 5, name


def test_a_lora_stays_in_force(tiny, comfy_adapter, kinds):
    model, channels, vae = kinds["v"]
    weight = "diffusion_model.middle_block.0.in_layers.2.weight"
    shape = model.model_state_dict()[weight].shape
    lora = model.clone()
    assert lora.add_patches({weight: (torch.randn(shape) * 0.05,)}) == [weight]
    plain, changed = tiny.sample(model, channels, batch=6), tiny.sample(lora, channels, batch=6)
    assert not torch.equal(plain, changed)
    both = tiny.sample(guided(comfy_adapter, lora, vae), channels, batch=6)
    assert (scores(vae, both) > scores(vae, changed)).sum() >= 5
    assert torch.equal(tiny.sample(model, channels, batch=6), plain)


def test_a_controlnet_stays_in_force(tiny, comfy_adapter, kinds):
    import comfy.ops
    from comfy.cldm.cldm import ControlNet as Network
    from comfy.controlnet import ControlNet

    import nodes

    model, channels, vae = kinds["v"]
    sizes = {
        name: value for name, value in tiny.UNET.items() if name not in ("out_channels", "transformer_depth_output")
    }
    network = Network(**sizes, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    control = ControlNet(tiny.randomize(network, seed=4), load_device=torch.device("cpu"))

    def sampled(each):
        with torch.inference_mode():
            hint, latent = torch.rand(1, 32, 32, 3), {"samples": torch.zeros(6, channels, 4, 4)}
            conds = tiny.conditioning(seed=1), tiny.conditioning(seed=2)
            conds = nodes.ControlNetApplyAdvanced().apply_controlnet(*conds, control, hint, 0.3, 0.0, 1.0)
            return nodes.common_ksampler(each, 0, 6, 2.0, "euler", "normal", *conds, latent)[0]["samples"]

    torch.manual_seed(0)
    controlled = sampled(model)
    torch.manual_seed(0)
    both = sampled(guided(comfy_adapter, model, vae))
    assert not torch.allclose(controlled, tiny.sample(model, channels, batch=6), atol=1e-3)
    assert (scores(vae, both) > scores(vae, controlled)).sum() >= 5


def test_custom_sampling_nodes(tiny, comfy_adapter, kinds):
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    model, channels, vae = kinds["flow"]
    patched = guided(comfy_adapter, model, vae)

    def advanced(each):
        with torch.inference_mode():
            latent = {"samples": torch.zeros(6, channels, 4, 4)}
            guider = custom.CFGGuider.execute(each, tiny.conditioning(seed=1), tiny.conditioning(seed=2), 2.0).result[0]
            sampler = custom.KSamplerSelect.execute("euler").result[0]
            sigmas = custom.BasicScheduler.execute(each, "simple", 6, 1.0).result[0]
            noise = custom.RandomNoise.execute(0).result[0]
            return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]

    assert (scores(vae, advanced(patched)) > scores(vae, advanced(model))).sum() >= 5

    def in_two_parts(each):
        with torch.inference_mode():
            latent = {"samples": torch.zeros(6, channels, 4, 4)}
            conds = tiny.conditioning(seed=1), tiny.conditioning(seed=2)
            half = ("enable", 0, 6, 2.0, "euler", "simple", *conds, latent, 0, 3, "enable")
            (latent,) = nodes.KSamplerAdvanced().sample(each, *half)
            rest = ("disable", 0, 6, 2.0, "euler", "simple", *conds, latent, 3, 10000, "disable")
            return nodes.KSamplerAdvanced().sample(each, *rest)[0]["samples"]

    assert (scores(vae, in_two_parts(patched)) > scores(vae, in_two_parts(model))).sum() >= 5


def test_sound_and_picture_in_one_latent_are_refused(tiny, comfy_adapter, kinds):
    import comfy.nested_tensor
    import comfy.samplers

    model, channels, vae = kinds["v"]
    patched = guided(comfy_adapter, model, vae)
    latent = comfy.nested_tensor.NestedTensor([torch.zeros(1, channels, 8, 8), torch.zeros(1, 8, 4)])
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(tiny.conditioning(), tiny.conditioning())
    with torch.inference_mode(), pytest.raises(ValueError, match="sound and pictures"):
        guider.sample(latent, latent, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))


def test_strength_zero_asks_nothing_of_the_latents(tiny, comfy_adapter, kinds):
    """Of sound and pictures in one, and of sound alone: the sampling goes as without the node, and is logged."""
    import comfy.nested_tensor
    import comfy.samplers

    model, channels, _ = kinds["v"]
    patched = guided(comfy_adapter, model, None, scale=0.0)
    (patch,) = comfy_adapter.patches_of(patched)

    def sampled(each, latent, step):
        guider = comfy.samplers.CFGGuider(each)
        guider.set_conds(tiny.conditioning(), tiny.conditioning())
        noise = latent if latent.is_nested else torch.ones_like(latent)
        with torch.inference_mode():
            return guider.sample(noise, latent, comfy.samplers.KSAMPLER(step), torch.tensor([1.0, 0.5, 0.0]))

    def of_sound(network, x, sigmas, callback=None, disable=None, extra_args=None):
        """Sampling without the network, which knows pictures alone; what it would have predicted is shown as ever."""
        for sigma in sigmas[:-1]:
            options = extra_args["model_options"]
            for function in options.get("sampler_post_cfg_function", []):
                x = function({"denoised": 0.5 * x, "sigma": sigma[None], "model_options": options})
        return x

    packed = comfy.nested_tensor.NestedTensor([torch.ones(1, channels, 8, 8), torch.ones(1, 8, 4)])
    for latent in (packed, torch.ones(1, 64, 100)):
        found = sampled(patched, latent, of_sound)
        parts = found.unbind() if found.is_nested else [found]
        assert all(part.isfinite().all() for part in parts)
        assert [entry.skipped for entry in patch.log] == ["the scale is 0"] * 2
    alone = torch.ones(1, 64, 100)
    assert patch.guide({"denoised": alone}) is alone  # also where no sampler node samples


def test_latents_without_pictures_are_refused(tiny, comfy_adapter, kinds):
    model, _, vae = kinds["v"]
    patched = guided(comfy_adapter, model, vae)
    (patch,) = comfy_adapter.patches_of(patched)
    patch._run = object()
    with pytest.raises(ValueError, match="those of pictures or video"):
        patch.guide({"denoised": torch.zeros(1, 64, 100)})
