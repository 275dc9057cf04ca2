"""How hard each sampler of ComfyUI pushes, against what the strength says: a table, printed by -s.

The model takes its input for clean, so that every push stays, and the reward has one and the same gradient everywhere.
Then what guidance has moved in the end is the sum of what each step has let through, whatever noise a sampler adds.
"""

import math
import sys

import pytest

from iqguide.guidance import RewardGuidance

pytestmark = [pytest.mark.comfy, pytest.mark.filterwarnings("ignore")]
STEPS = (10, 20, 30)
NOMINAL = math.log(1.5 / (0.05 / 0.95))  # log of sigma / alpha at both ends of the default window, 0.6 to 0.05


@pytest.fixture(scope="module")
def tiny():
    import tiny_comfy

    return tiny_comfy


def push_of(sampler, steps, model, tiny, scale=0.01):
    """Root mean square of what guidance moves, in parts of what its strength stands for."""
    from iqguide.guidance.comfy import patch as comfy

    clean = model.clone()
    clean.set_model_unet_function_wrapper(lambda apply, given: given["input"])
    guidance = RewardGuidance(
        lambda images: images.mean((1, 2, 3)),
        scale=scale,
        decoder=lambda latents: latents[:, :3],
        **{"every": 1, "ema": 0, "noise": 0, "max_drift": None},
    )
    guided = comfy.patch_model(clean, guidance)
    settings = {"sampler": sampler, "steps": steps, "scheduler": "karras", "cfg": 1.0}
    moved = tiny.sample(guided, 4, **settings) - tiny.sample(clean, 4, **settings)
    moved = model.get_model_object("latent_format").process_in(moved)
    return (moved.square().mean().sqrt() / (scale * NOMINAL)).item()


def test_first_order_samplers_push_as_hard_as_the_strength_says(tiny):
    model = tiny.unet_model()
    for steps in STEPS:
        assert push_of("euler", steps, model, tiny) == pytest.approx(1, rel=0.02)


@pytest.mark.slow
def test_how_hard_every_sampler_pushes(tiny):
    import comfy.samplers

    model = tiny.unet_model()
    pushes = {name: [push_of(name, steps, model, tiny) for steps in STEPS] for name in comfy.samplers.SAMPLER_NAMES}
    rows = sorted(pushes.items(), key=lambda item: item[1][-1])
    table = ["", f"| sampler | {' | '.join(f'{steps} steps' for steps in STEPS)} |", "|---|---|---|---|"]
    table += [f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |" for name, values in rows]
    sys.stdout.write("\n".join(table) + "\n")
    assert all(math.isfinite(value) and value > 0.35 for values in pushes.values() for value in values)
    assert [name for name, values in pushes.items() if values[-1] > 2.5] == ["lcm"]
