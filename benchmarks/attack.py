"""Attacks on the reward: what breaks under unconstrained ascent, and what is left of it under the guidance's defence.

    python benchmarks/attack.py --data DIR --out runs/attack             # DIR holds pristine/
    python benchmarks/attack.py --data DIR --out runs/attack --publish   # also into benchmarks/

From photographs that no judge was fitted on, and from unguided pictures of the demo generator, six ways to raise the
reward:

* pixels: steps of the same length along the gradient, nothing else;
* pixels, statistics kept: the same, with a penalty on statistics that photographs do not have (natural_range.py);
* latents: as the first, in the latents of the generator's autoencoder, which cannot draw everything;
* latents, defended: the very pushes of `RewardGuidance` (smoothed, averaged, clipped, inside the window, the trust
  region), but of a picture that stays what it is: no diffusion model answers. Stronger and stronger scales;
* latents, defended, statistics kept: the same with that penalty;
* guided sampling, from the noise of the unguided pictures: all of the defence, with the diffusion model's own
  prediction of every step as the tether. The same scales.

Every way is a path: how far the picture has moved from its start, and what reward and judges say on the way.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from artefacts import ranges
from demo_pictures import Plan, generate
from demo_statistics import compare, inside
from judges import judges, load, margin_of, measure
from natural_range import NaturalRange, fit, kept_inside
from panels import FONT, INK, Line, Panel, grid
from photographs import clean_crops, split
from PIL import Image, ImageDraw
from tables import README, machine, table, write_between
from torch import Tensor

from iqguide import RewardGuidance, create_model
from iqguide.cli.pipelines import load_pipeline
from iqguide.guidance.diffusers.decoders import find_decoder
from iqguide.guidance.direction import unit_rms
from iqguide.guidance.gradient import clamp_towards_range, reward_gradient
from iqguide.guidance.noise_level import Stage, ratio_of
from iqguide.images import save_image, to_pil

RESULTS = Path(__file__).parent / "results"
PIXEL_STEP, LATENT_STEP = 0.01, 0.05  # root mean square of one step
EVALUATIONS = 16  # of a defended climb; half of them take a gradient
TIMES = (1, 2, 4)  # the default scale
KEPT = (0, 1, 2, 4, 8, 16, 32)  # steps at which a picture is kept
KEPT_WEIGHT = 20.0  # of the penalty; at a fifth of it the pictures leave the range a little further
WAYS = (
    "pixels",
    "pixels, statistics kept",
    "latents",
    "latents, defended",
    "latents, defended, statistics kept",
    "guided sampling",
)
Paths = dict[str, list[Tensor]]  # way -> pictures (N, 3, H, W) after more and more of it; first the start


@dataclass(frozen=True)
class Space:
    """The latents of a pipeline."""

    pipe: Any
    decode: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> latents as the scheduler has them."""
        return self.pipe.vae.encode(images * 2 - 1).latents * self.pipe.vae.config.scaling_factor


# --- the ways ---


def scales() -> list[float]:
    """Of the guidance, weakest first."""
    return [RewardGuidance.scale * times for times in TIMES]


def ascend(reward: Any, decode: Callable[[Tensor], Tensor], start: Tensor, step: float, steps: int) -> list[Tensor]:
    """Pictures on the way up: `steps` steps of root mean square `step` along the gradient, from `start` on."""
    place, kept = start, []
    for number in range(steps + 1):
        if number in KEPT:
            with torch.no_grad():
                kept.append(decode(place))
        if number < steps:
            place = place + step * unit_rms(reward_gradient(reward, decode, place)[1])
    return kept


def defended(guidance: RewardGuidance, decode: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The pictures after all pushes of one guided run of `steps` evaluations, none of them answered."""
    high, low = (ratio_of(level) for level in guidance.noise_window)
    ratios = np.geomspace(high, low, steps + 1).tolist()
    run, place = guidance.start(decode), start
    for ratio, after in pairwise(ratios):
        push = run.push(place, Stage(ratio, ratio, after))
        place = place if push is None else place + push  # None: at the limit of the trust region
    with torch.no_grad():
        return decode(place)


def ways_from(images: Tensor, reward: Any, space: Space, region: NaturalRange, steps: int) -> Paths:
    """The ways that need nothing but the pictures."""
    latents = space.encode(images)
    with torch.no_grad():
        first = space.decode(latents)
    kept = kept_inside(margin_of(reward), region, KEPT_WEIGHT)

    def pushed(reward: Any) -> list[Tensor]:
        guidances = [RewardGuidance(reward, scale=scale) for scale in scales()]
        return [first, *(defended(guidance, space.decode, latents, EVALUATIONS) for guidance in guidances)]

    return {
        "pixels": ascend(reward, clamp_towards_range, images, PIXEL_STEP, steps),
        "pixels, statistics kept": ascend(kept, clamp_towards_range, images, PIXEL_STEP, steps),
        "latents": ascend(reward, space.decode, latents, LATENT_STEP, steps),
        "latents, defended": pushed(reward),
        "latents, defended, statistics kept": pushed(kept),
    }


def sampled(pipe: Any, plan: Plan, reward: Any, out: Path) -> list[Tensor]:
    """Unguided pictures, and those guided at each scale from the same seeds."""
    pictures = []
    for scale in (0.0, *scales()):
        folder = out / (f"{scale:g}" if scale else "unguided")
        generate(pipe, plan, RewardGuidance(reward, scale=scale) if scale else None, folder)
        pictures.append(load([folder / f"{seed}-0.png" for seed in plan.seeds]))
    return pictures


# --- what they say ---


def stops_of(way: str, count: int) -> list[str]:
    """Names of the pictures that a way keeps."""
    if "defended" not in way and way != "guided sampling":
        return [f"{steps} steps" for steps in KEPT[:count]]
    return ["scale 0", *(f"scale {scale:g}" for scale in scales())]


def rows_of(head: Mapping[str, str], path: Sequence[Tensor], scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each stop of a path: how far, and for each score what `compare` says against the start."""
    seen = [(images * 255).round() / 255 for images in path]
    values = [{name: value.numpy() for name, value in measure(images, dict(scores)).items()} for images in seen]
    rows = []
    for stop, images, now in zip(stops_of(head["way"], len(path)), seen, values, strict=True):
        row = {**head, "stop": stop, "moved": float((images - seen[0]).square().mean((1, 2, 3)).sqrt().mean())}
        row["inside"] = float(np.mean([inside(now[name], limits) for name, limits in ranges().items()]))
        rows.append(row | {name: compare(values[0][name], now[name]) for name in scores})
    return rows


def page(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table for each reward: where every way ends, and guided sampling at its default scale."""
    default = f"scale {RewardGuidance.scale:g}"
    ends = {(row["model"], row["start"], row["way"]): row["stop"] for row in rows}
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        lines = []
        for row in (row for row in rows if row["model"] == model):
            last = row["stop"] == ends[model, row["start"], row["way"]]
            if last or (row["way"] == "guided sampling" and row["stop"] == default):
                lines.append(line_of(row, names))
        parts.append(table((f"`{model}`", "moved", *names, "inside"), lines))
    return "\n\n".join(parts)


def line_of(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    gains = [f"{row[n]['mean']:+.1f} ({row[n]['low']:+.1f} to {row[n]['high']:+.1f})" for n in names]
    label = f"{row['start']}: {row['way']}, {row['stop']}"
    return [label, f"{row['moved']:.3f}", *gains, f"{row['inside']:.0%}"]


def plot(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """A row of panels for each reward and start, a column for each score; over how far the pictures have moved."""
    panels = []
    for model, start in dict.fromkeys((row["model"], row["start"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["start"]) == (model, start)]
        ways = [[row for row in mine if row["way"] == way] for way in WAYS]
        where = f"{model}, {start}"
        panels.append([Panel(f"{n}: {where}", [curve(w, n, i) for i, w in enumerate(ways) if w]) for n in names])
    save_image(grid(panels, WAYS), path)


def curve(rows: Sequence[Mapping[str, Any]], name: str, colour: int) -> Line:
    values = np.array([[row[name][key] for key in ("mean", "low", "high")] for row in rows])
    return Line(np.array([row["moved"] for row in rows]), values, colour)


def sheet(starts: Mapping[str, Paths], path: Path, most: int = 5, left: int = 130) -> None:
    """The first pictures of every start, below them where each way has led, and last guidance at its weakest."""
    each = min(most, *(len(ways["pixels"][0]) for ways in starts.values()))
    side = next(iter(starts.values()))["pixels"][0].shape[-1]
    stops = {"start": ("pixels", 0), **{way: (way, -1) for way in WAYS}, "at the default": (WAYS[-1], 1)}
    canvas = Image.new("RGB", (left + len(starts) * each * side, len(stops) * side), "white")
    for row, (name, (way, stop)) in enumerate(stops.items()):
        where = (6, row * side + side // 2)
        ImageDraw.Draw(canvas).multiline_text(where, name.replace(", ", ",\n"), INK, FONT, anchor="lm")
        for block, ways in enumerate(starts.values()):
            for column, image in enumerate(ways[way][stop][:each] if way in ways else ()):
                canvas.paste(to_pil(image), (left + (block * each + column) * side, row * side))
    save_image(canvas, path)


def write_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["model", "start", "way", "stop", "moved", "inside"]
        keys = ("mean", "low", "high", "wins_lower")
        writer.writerow([*head, *(f"{name} {key}" for name in names for key in keys)])
        for row in rows:
            numbers = [row["moved"], row["inside"], *(row[name][key] for name in names for key in keys)]
            writer.writerow([*(row[name] for name in head[:4]), *(f"{value:.5g}" for value in numbers)])


def attack(
    reward: Any, space: Space, region: NaturalRange, photographs: Tensor, plan: Plan, steps: int, out: Path
) -> dict[str, Paths]:
    """All paths up one reward, by where they start."""
    guided = sampled(space.pipe, plan, reward, out)
    starts = {"photographs": photographs, "samples": guided[0]}
    paths = {start: ways_from(images, reward, space, region, steps) for start, images in starts.items()}
    paths["samples"]["guided sampling"] = guided
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pristine/")
    parser.add_argument("--out", type=Path, default=Path("runs/attack"))
    parser.add_argument("--pipeline", default="demo", help="demo, or a folder made by save_pretrained")
    parser.add_argument("--models", nargs="+", default=["tiny", "bpclip-mini"], metavar="MODEL", help="to attack")
    parser.add_argument("--weights", default="default", help="of these models")
    parser.add_argument("--count", type=int, default=9, help="photographs, and samples")
    parser.add_argument("--steps", type=int, default=KEPT[-1], help="of unconstrained ascent")
    parser.add_argument("--sampling-steps", type=int, default=Plan.steps)
    parser.add_argument("--publish", action="store_true", help="write tables, CSV and pictures into benchmarks/")
    args = parser.parse_args(arguments)
    pipe = load_pipeline(args.pipeline, torch.device("cpu"))
    space = Space(pipe, find_decoder(pipe))
    plan = Plan(tuple(range(args.count)), best_of=1, batch=args.count, steps=args.sampling_steps)
    fitted, aside = split(args.data)
    photographs = clean_crops(aside[: args.count], 1, seed=7)
    region = fit(clean_crops(fitted, 4, seed=3))
    rows, pictures = [], {}
    for name in args.models:
        reward = create_model(name, weights=args.weights)
        pictures[name] = attack(reward, space, region, photographs, plan, args.steps, args.out / name)
        scores = {"reward": margin_of(reward), **judges()}
        for start, paths in pictures[name].items():
            for way, path in paths.items():
                rows += rows_of({"model": name, "start": start, "way": way}, path, scores)
    report(rows, ["reward", *judges()], pictures, args)


def report(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], pictures: Mapping[str, Any], args: argparse.Namespace
) -> None:
    """Print the tables and draw; with --publish also into benchmarks/."""
    note = f"{args.count} photographs and {args.count} samples, {args.steps} steps of ascent. {machine()}."
    text = f"{note}\n\n{page(rows, names)}"
    print(text)
    for folder in (args.out, RESULTS) if args.publish else (args.out,):
        write_csv(rows, names, folder / "attack.csv")
        plot(rows, names, folder / "attack.png")
        for name, starts in pictures.items():
            sheet(starts, folder / f"attack_{name}.png")
    if args.publish:
        drawn = [f"`{name}`:\n\n![Pictures after attacks](results/attack_{name}.png)" for name in pictures]
        write_between(README, "attack", "\n\n".join([text, "![Paths](results/attack.png)", *drawn]))


if __name__ == "__main__":
    main()
