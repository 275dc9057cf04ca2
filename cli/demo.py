"""`iqguide demo`: the bundled generator unguided, guided, best of N and both; a table and one picture."""

from __future__ import annotations

import argparse
import statistics

from PIL import Image, ImageDraw, ImageFont

from ..errors import make_folder
from ..guidance import RewardGuidance
from ..images import save_image
from .console import OK, progress
from .draw import NoSample, Sample, draw, load_model, load_reward, scores_of
from .options import JUDGE
from .pipelines import DEMO_CALL, load_pipeline
from .score import best_device


def run_demo(options: argparse.Namespace) -> int:
    """Unguided, guided, best of N and both: print mean scores of the model and of a judge, and write demo.png."""
    out = make_folder(options.out)
    device = best_device(options.device)
    reward, judge = load_reward(options, device), load_model(JUDGE, "default", device)
    pipe = load_pipeline("demo", device)
    seeds = list(range(options.seeds))
    call = DEMO_CALL | {"prompt": options.prompt}
    if options.steps:
        call["num_inference_steps"] = options.steps
    guidance, best_of = {"guidance": RewardGuidance(reward)}, {"best_of": options.best_of}
    best = f"best of {options.best_of}"
    methods = {"unguided": {}, "guided": guidance, best: best_of, f"guided, {best}": guidance | best_of}
    for how in ({}, guidance):  # the first call of anything is slow and would spoil the times
        list(draw(pipe, reward, [0], **how, **call))
    results: dict[str, list[Sample]] = {}
    with progress(len(seeds) * len(methods), "demo") as bar:
        for method, how in methods.items():
            results[method] = []
            for sample in draw(pipe, reward, seeds, **how, **call):
                if isinstance(sample, NoSample):
                    raise ValueError(f"seed {sample.seed} gives no picture: {sample.failure}")
                results[method].append(sample)
                bar.update()
    path = out / "demo.png"
    save_image(picture_table(results), path)
    print(f"{'method':<20} {options.model:>10} {f'{JUDGE} judges':>12} {'s / image':>10}")
    for method, samples in results.items():
        mean, seconds = (statistics.fmean(getattr(s, name) for s in samples) for name in ("score", "time_s"))
        judged = statistics.fmean(scores_of([sample.image for sample in samples], judge))
        print(f"{method:<20} {mean:>10.4f} {judged:>12.4f} {seconds:>10.2f}")
    print(path)
    return OK


def picture_table(results: dict[str, list[Sample]], side: int = 256) -> Image.Image:
    """Pictures side by side: a row for each method, a column for each seed, the score under each picture.

    Args:
        results: for each method the samples of the same seeds.
        side: of a picture in the table, pixels.
    """
    font, small = (ImageFont.load_default(size) for size in (22, 16))
    margin, top, gap, line = 210, 40, 8, 24
    columns = next(iter(results.values()))
    width, height = margin + len(columns) * (side + gap), top + len(results) * (side + line + gap)
    table = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(table)
    for column, sample in enumerate(columns):
        x = margin + column * (side + gap)
        pen.text((x + side / 2, top / 2), f"seed {sample.seed}", "black", font, anchor="mm")
    for row, (method, samples) in enumerate(results.items()):
        y = top + row * (side + line + gap)
        pen.text((gap, y + side / 2 - 14), method, "black", font, anchor="lm")
        mean = statistics.fmean(sample.score for sample in samples)
        pen.text((gap, y + side / 2 + 14), f"mean score {mean:.3f}", "dimgrey", small, anchor="lm")
        for column, sample in enumerate(samples):
            x = margin + column * (side + gap)
            table.paste(sample.image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
            pen.text((x + side / 2, y + side + line / 2), f"{sample.score:.3f}", "dimgrey", small, anchor="mm")
    return table
