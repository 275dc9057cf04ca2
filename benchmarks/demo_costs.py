"""What guidance costs: guided and unguided runs in turn, and where the time of a guided one goes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from demo_pictures import Plan, draw
from tables import table
from torch import Tensor
from tqdm import tqdm

from iqguide.guidance import RewardGuidance
from iqguide.guidance.diffusers.decoders import find_decoder

PARTS = ("decode", "reward", "reward, backward", "decode, backward")


class Clock:
    """Seconds by part; a part ends where the next one begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now


class TimedDecoder:
    """A decoder that also notes when the gradient passes its output and its input."""

    def __init__(self, decoder: Callable[[Tensor], Tensor], clock: Clock) -> None:
        self.decoder, self.clock = decoder, clock

    def __call__(self, latents: Tensor) -> Tensor:
        latents = latents.view_as(latents)  # a hook on the leaf itself would not see the end of the backward pass
        latents.register_hook(lambda _: self.clock.stop("decode, backward"))
        self.clock.start()
        images = self.decoder(latents)
        self.clock.stop("decode")
        images.register_hook(lambda _: self.clock.stop("reward, backward"))
        return images


class TimedReward:
    """A reward whose time is noted."""

    def __init__(self, reward: Callable[[Tensor], Tensor], clock: Clock) -> None:
        self.reward, self.clock = getattr(reward, "margin", reward), clock

    def __call__(self, images: Tensor) -> Tensor:
        self.clock.start()
        scores = self.reward(images)
        self.clock.stop("reward")
        return scores


def costs(pipe: Any, plan: Plan, guidance: RewardGuidance, batch: int, repeats: int = 5) -> dict[str, Any]:
    """Median seconds per picture, unguided and guided in turn, and the parts of a guided run."""
    candidates = [(seed, 0) for seed in range(batch)]
    off, wall, cpu = replace(guidance, scale=0), defaultdict(list), defaultdict(list)
    for n in tqdm(range(repeats + 1), desc=f"costs, batch {batch}", leave=False):
        for name, how in (("unguided", None), ("guided", guidance), ("scale 0", off)):
            before = time.process_time()
            seconds = draw(pipe, plan, how, candidates)[1]
            if n:  # the first round warms up
                wall[name].append(seconds)
                cpu[name].append(time.process_time() - before)
    clock = Clock()
    timed = replace(
        guidance,
        reward=TimedReward(guidance.reward, clock),
        decoder=TimedDecoder(guidance.decoder or find_decoder(pipe), clock),
    )
    total = draw(pipe, plan, timed, candidates)[1]
    return {
        "batch": batch,
        "seconds": {name: statistics.median(values) / batch for name, values in wall.items()},
        "wall_ratio": statistics.median(g / u for g, u in zip(wall["guided"], wall["unguided"], strict=True)),
        "cpu_ratio": statistics.median(g / u for g, u in zip(cpu["guided"], cpu["unguided"], strict=True)),
        "off_ratio": statistics.median(g / u for g, u in zip(wall["scale 0"], wall["unguided"], strict=True)),
        "parts": {part: clock.seconds[part] / total for part in PARTS},
    }


def cost_table(results: list[dict[str, Any]]) -> str:
    head = [
        "batch",
        "unguided, s / image",
        "guided, s / image",
        "wall time",
        "processor time",
        "scale 0",
        *PARTS,
        "the rest",
    ]
    rows = [
        [
            r["batch"],
            f"{r['seconds']['unguided']:.2f}",
            f"{r['seconds']['guided']:.2f}",
            f"{r['wall_ratio'] - 1:+.0%}",
            f"{r['cpu_ratio'] - 1:+.0%}",
            f"{r['off_ratio'] - 1:+.0%}",
            *(f"{share:.0%}" for share in r["parts"].values()),
            f"{1 - sum(r['parts'].values()):.0%}",
        ]
        for r in results
    ]
    return table(head, rows)
