"""Best of N inside the real ComfyUI: a candidate that is left and entered again ends where KSampler ends."""

import gc

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.filterwarnings("ignore")]
QUICK = ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde_gpu", "lcm", "uni_pc"]
QUICK += ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "ddim", "dpm_adaptive", "sa_solver"]
SHARES = (0.4, 0.7)


@pytest.fixture(scope="module")
def tiny():
    import tiny_comfy

    return tiny_comfy


@pytest.fixture(scope="module")
def search(tiny):
    from iqguide.search import comfy_best_of_n as comfy_search

    return comfy_search


@pytest.fixture(scope="module")
def kinds(tiny):
    return {kind: (make(), channels, tiny.taesd_vae(channels)) for kind, (make, channels) in tiny.KINDS.items()}


def sampling_of(
    search, tiny, model, channels, *, sampler="euler", steps=6, denoise=1.0, latent=None, scheduler="karras"
):
    latent = {"samples": torch.zeros(1, channels, 4, 4)} if latent is None else latent
    prompts = tiny.conditioning(seed=1), tiny.conditioning(seed=2)
    return search.Sampling(model, *prompts, latent, steps, 2.0, sampler, scheduler, denoise)


def by_mean(latents):
    return latents.flatten(1).mean(1)


def run(search, *args, **kwargs):
    with torch.inference_mode():
        return search.best_of_n(*args, **kwargs)


def alone(tiny, sampling, seed):
    """What KSampler makes of a seed."""
    import nodes

    with torch.inference_mode():
        settings = (sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler)
        prompts = (sampling.positive, sampling.negative, sampling.latent)
        return nodes.common_ksampler(sampling.model, seed, *settings, *prompts, denoise=sampling.denoise)[0]["samples"]


def check(search, tiny, sampling, batch_size, tolerance):
    found = run(search, sampling, range(3, 6), by_mean, shares=SHARES, batch_size=batch_size)
    assert [each.share for each in found.dropped] == list(SHARES)
    assert sorted([*found.seeds, *(each.seed for each in found.dropped)]) == [3, 4, 5]
    for seed, latent in zip(found.seeds, found.latents, strict=True):
        expected = alone(tiny, sampling, seed)[0]
        error = (latent - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, (sampling.sampler, seed, error)


@pytest.mark.parametrize("sampler", QUICK)
def test_winners_are_what_ksampler_makes_of_their_seeds(sampler, search, tiny, kinds):
    sampling = sampling_of(search, tiny, *kinds["v"][:2], sampler=sampler)
    check(search, tiny, sampling, 1, 0.0)
    check(search, tiny, sampling, 2, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_every_sampler_of_the_checkout(kind, search, tiny, kinds):
    import comfy.samplers

    for sampler in comfy.samplers.SAMPLER_NAMES:
        sampling = sampling_of(search, tiny, *kinds[kind][:2], sampler=sampler)
        check(search, tiny, sampling, 1, 0.0)
        check(search, tiny, sampling, 2, 1e-3)


def rows_evaluated(model, monkeypatch):
    """Every row that goes through the diffusion network; with CFG two an evaluation."""
    rows = []
    forward = model.model.apply_model
    monkeypatch.setattr(model.model, "apply_model", lambda x, *a, **k: (rows.append(len(x)), forward(x, *a, **k))[1])
    return rows


@pytest.mark.parametrize(("sampler", "evaluations"), [("dpmpp_2m", 10), ("euler_ancestral", 10)])
def test_nothing_is_evaluated_twice(sampler, evaluations, search, tiny, kinds, monkeypatch):
    model, channels, _ = kinds["v"]
    rows = rows_evaluated(model, monkeypatch)
    sampling = sampling_of(search, tiny, model, channels, sampler=sampler, steps=evaluations)
    run(search, sampling, range(8), by_mean, shares=(0.4, 0.7), batch_size=3)
    assert sum(rows) == 2 * (8 * 4 + 4 * 3 + 2 * 3)
    assert max(rows) == 2 * 3


def test_the_better_half_goes_on_and_no_fewer_than_are_kept(search, tiny, kinds):
    sampling = sampling_of(search, tiny, *kinds["v"][:2])
    looked = []

    def by_seed(latents):
        looked.append(len(latents))
        return -torch.arange(float(len(latents)))

    found = run(search, sampling, [5, 9, 7, 1, 3], by_seed, keep=2, shares=(0.3, 0.6, 0.9))
    assert looked == [5, 3]
    assert found.seeds == [5, 9]
    assert [(each.seed, each.share, each.score) for each in found.dropped] == [(1, 0.3, -3), (3, 0.3, -4), (7, 0.6, -2)]
    assert search.survivors(9, 1, 3) == [9, 5, 3, 2]
    assert run(search, sampling, [5, 9], by_seed, shares=()).dropped == []


@pytest.mark.parametrize(("steps", "sampler"), [(1, "euler"), (2, "euler"), (2, "dpmpp_sde"), (3, "heun")])
def test_shares_that_fall_on_one_step_drop_there(steps, sampler, search, tiny, kinds, monkeypatch):
    model, channels, _ = kinds["v"]
    sampling = sampling_of(search, tiny, model, channels, steps=steps, sampler=sampler)
    expected = alone(tiny, sampling, 5)
    rows = rows_evaluated(model, monkeypatch)
    found = run(search, sampling, [5, 9, 7, 1], lambda z: -torch.arange(float(len(z))), shares=(0.3, 0.4), batch_size=1)
    assert found.seeds == [5]
    assert [(each.seed, each.share) for each in found.dropped] == [(7, 0.3), (1, 0.3), (9, 0.4)]
    assert torch.equal(found.latents, expected)
    of_all = sum(rows)
    rows.clear()
    alone(tiny, sampling, 5)
    assert of_all <= 4 * sum(rows)


def test_what_is_looked_at_is_the_prediction_of_the_clean_latent(search, tiny, kinds):
    """At the last step the prediction is what Euler ends with."""
    sampling = sampling_of(search, tiny, *kinds["v"][:2], steps=5)
    looked = []
    found = run(search, sampling, [0, 1], lambda z: (looked.append(z), by_mean(z))[1], shares=(0.95,), keep=1)
    lane = found.seeds[0]
    torch.testing.assert_close(looked[0][lane], alone(tiny, sampling, lane)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim"])
def test_pictures_and_masks(sampler, search, tiny, kinds):
    model, channels, _ = kinds["v"]
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    latent = {"samples": torch.randn(1, channels, 4, 4), "noise_mask": mask}
    sampling = sampling_of(search, tiny, model, channels, sampler=sampler, latent=latent, denoise=0.6)
    check(search, tiny, sampling, 3, 1e-4)
    found = run(search, sampling, [0, 1], by_mean)
    outside = latent["samples"][..., 2:, :].expand_as(found.latents[..., 2:, :])
    torch.testing.assert_close(found.latents[..., 2:, :], outside, rtol=1e-3, atol=1e-3)


def grey(images):
    return -20 * (images - 0.5).square().mean((1, 2, 3))


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_cfg_pp"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_guidance_goes_on_where_it_was(sampler, batch_size, search, tiny, kinds):
    from iqguide.guidance import RewardGuidance
    from iqguide.guidance.comfy import patch as comfy

    model, channels, vae = kinds["v"]
    with torch.inference_mode():
        guidance = RewardGuidance(grey, scale=0.3, chunk=3, every=2)
        patched = comfy.patch_model(model, guidance, vae=vae, percent=(0.0, 0.95))
    sampling = sampling_of(search, tiny, patched, channels, sampler=sampler)
    check(search, tiny, sampling, batch_size, 0.0 if batch_size == 1 else 1e-4)
    run(search, sampling, range(4), by_mean, keep=2, shares=(0.5,))
    (patch,) = comfy.patches_of(patched)
    log = patch.log
    alone(tiny, sampling, 0)
    assert [entry.index for entry in log] == [entry.index for entry in patch.log]
    assert [entry.noise_level for entry in log] == [entry.noise_level for entry in patch.log]
    assert {len(entry.drift) for entry in log if entry.drift} == {2}
    plain = alone(tiny, sampling_of(search, tiny, model, channels, sampler=sampler), 0)
    assert not torch.allclose(alone(tiny, sampling, 0), plain, atol=1e-3)


def test_guidance_of_a_leg_that_ends_early_is_not_called_idle(search, tiny, kinds, caplog):
    from iqguide.guidance import RewardGuidance
    from iqguide.guidance.comfy import patch as comfy

    model, channels, vae = kinds["v"]
    with torch.inference_mode():
        patched = comfy.patch_model(model, RewardGuidance(grey, scale=0.3), vae=vae, percent=(0.5, 0.95))
    run(search, sampling_of(search, tiny, patched, channels), range(2), by_mean, shares=(0.2,))
    assert "changed nothing" not in caplog.text


def test_progress_and_interrupt(search, tiny, kinds, monkeypatch):
    import comfy.model_management as mm
    import comfy.utils

    model, channels, _ = kinds["v"]
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda now, total, *a, **k: seen.append((now, total)))
    sampling = sampling_of(search, tiny, model, channels, steps=10)
    run(search, sampling, range(4), by_mean, shares=(0.4,), batch_size=1)
    assert {total for _, total in seen} == {4 * 3 + 2 * 7}  # the step at which they are left is reported later
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    assert seen[-1][0] == 4 * 3 + 2 * 7

    def interrupts(latents):
        mm.interrupt_current_processing(True)
        return by_mean(latents)

    with pytest.raises(mm.InterruptProcessingException):
        run(search, sampling, range(4), interrupts, shares=(0.4,))
    assert run(search, sampling, range(2), by_mean).latents.isfinite().all()


def test_chunks_fit_into_memory(search, tiny, kinds, monkeypatch):
    import comfy.model_management as mm
    import comfy.sampler_helpers
    from comfy.model_patcher import ModelPatcher

    model, channels, _ = kinds["v"]
    sampling = sampling_of(search, tiny, model, channels)
    latent = sampling.latent["samples"]
    assert search.fitting(sampling, latent, 5) == 5
    conds = {"positive": comfy.sampler_helpers.convert_cond(sampling.positive)}
    one, _ = comfy.sampler_helpers.estimate_memory(model, latent.shape, conds)
    gone = mm.LoadedModel(ModelPatcher(torch.nn.Linear(1, 1), *[torch.device("cpu")] * 2))  # it holds its model weakly
    gc.collect()
    assert gone.model is None
    monkeypatch.setattr(mm, "current_loaded_models", [gone])
    for room, expected in ((2.5, 2), (0.1, 1)):
        free = model.model_size() + mm.extra_reserved_memory() + room * one
        monkeypatch.setattr(mm, "get_free_memory", lambda device=None, free=free: free)
        assert search.fitting(sampling, latent, 5) == expected


def test_what_cannot_be_searched_is_refused(search, tiny, kinds):
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, channels, _ = kinds["v"]
    with pytest.raises(ValueError, match="got 2 latents; expected one"):
        run(
            search,
            sampling_of(search, tiny, model, channels, latent={"samples": torch.zeros(2, 4, 4, 4)}),
            [0],
            by_mean,
        )
    cached = EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]
    with pytest.raises(ValueError, match="keeps a cache from step to step"):
        run(search, sampling_of(search, tiny, cached, channels), [0, 1], by_mean, shares=(0.5,))
    assert len(run(search, sampling_of(search, tiny, cached, channels), [0, 1], by_mean).seeds) == 2
