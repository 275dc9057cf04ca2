"""`iqguide sample`: generate with a diffusers pipeline, guided, best of N or both, on one device or several."""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import atomic_write, claimed, make_folder
from ..guidance import RewardGuidance
from ..images import save_image
from ..rewards import Reward
from ..search.halving import HALVING
from ..training.evaluate import distributed_device
from .arguments import SEEDS
from .console import OK, progress, say
from .draw import Sample, draw, load_model, load_reward
from .pipelines import DEMO_CALL, check_call, load_decoder, load_pipeline
from .score import best_device
from .sweep import gathered, kept, share_of, verdict


def run_sample(options: argparse.Namespace) -> int:
    """Write DIR/SEED.png for each seed, and DIR/samples.json; with several processes each draws a part of the seeds."""
    _check_options(options)
    out = make_folder(options.out)
    own_device, is_main = distributed_device()
    with claimed(out) if is_main else nullcontext():
        return _sample_into(out, options, own_device, is_main)


def _sample_into(out: Path, options: argparse.Namespace, own_device: torch.device | None, is_main: bool) -> int:
    device = own_device or best_device(options.device)
    reward = load_reward(options, device)
    judge = load_model(options.judge, options.judge_weights, device) if options.judge else None
    pipe = load_pipeline(options.pipeline, device, options.dtype)
    call = _call(options)
    check_call(pipe, call)
    decoder = load_decoder(options.decoder, pipe)
    guidance = _guidance(reward, options.guide, decoder)
    settings = call | {"pipeline": options.pipeline, "model": options.model, "weights": options.weights}
    settings |= _recorded(guidance) | {"decoder": options.decoder, "judged_by": options.judge}
    settings |= {"judge_weights": options.judge and options.judge_weights, "dtype": options.dtype}
    halving = HALVING if options.halving is True else options.halving or ()
    settings |= {"best_of": options.best_of, "halving": list(halving) or None, "iqguide": __version__}
    earlier = kept(out, options.seeds, settings, options.overwrite)
    done = {seed: earlier[seed] for seed in options.seeds if seed in earlier and options.resume}
    seeds = share_of(options.seeds, 1 if options.best_of else options.batch_size)
    records = {seed: done[seed] for seed in seeds if seed in done}
    how = {"guidance": guidance, "best_of": options.best_of, "batch_size": options.batch_size, "judge": judge}
    how |= {"halving": halving, "decoder": decoder}
    with progress(len(seeds), "sample", quiet=not is_main) as bar:
        bar.update(len(records))
        for sample in draw(pipe, reward, [seed for seed in seeds if seed not in done], **how, **call):
            records[sample.seed] = sample.record()
            if isinstance(sample, Sample):
                said = json.dumps(settings | sample.record())
                save_image(sample.image, out / f"{sample.seed}.png", {"iqguide": said})
            else:
                say(f"iqguide: seed {sample.seed} gives no picture: {sample.failure}")
            if own_device is None:
                _write_records(out, earlier | records)
            bar.update()
    everything = {record["seed"]: record for record in gathered(list(records.values()))}
    if is_main:
        _write_records(out, earlier | everything)
        _conclude(options, out, list(everything.values()))
    return OK


def _check_options(options: argparse.Namespace) -> None:
    if options.halving and not options.best_of:
        raise ValueError("got --halving without --best-of; expected both: it drops candidates of --best-of N.")
    if options.decoder and not options.halving and options.guide is None:
        raise ValueError("got --decoder, which only --guide and --halving look through; leave it out.")
    if max(options.seeds) * (options.best_of or 1) + (options.best_of or 1) > SEEDS:
        raise ValueError(
            f"got --seeds up to {max(options.seeds)} and --best-of {options.best_of}, whose candidates' seeds would be"
            " above 2^63; expected smaller seeds."
        )
    if options.judge == options.model:
        raise ValueError(f"--judge is {options.judge}, the model that steers; expected another one.")


def _call(options: argparse.Namespace) -> dict[str, Any]:
    """What the pipeline is called with."""
    call = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "width": options.size and options.size[0],
        "height": options.size and options.size[1],
    }
    call = {name: value for name, value in call.items() if value is not None}
    return DEMO_CALL | call if options.pipeline == "demo" else call


def _write_records(out: Path, records: dict[int, dict[str, Any]]) -> None:
    """samples.json: what the folder holds, in the order of the seeds."""
    text = json.dumps([records[seed] for seed in sorted(records)], indent=1)
    atomic_write(out / "samples.json", text.encode())


def _conclude(options: argparse.Namespace, out: Path, records: list[dict[str, Any]]) -> None:
    made = [record for record in records if "failure" not in record]
    if not made:
        raise ValueError(f"none of {len(records)} seeds gives a picture; {out / 'samples.json'} says why.")
    if options.judge:
        result, *warning = verdict(made, options.model, options.judge)
    else:
        mean = statistics.fmean(record["score"] for record in made)
        result, warning = f"mean score {mean:.4f} by {options.model}", []
    for line in (f"{len(made)} images in {out}, {result}.", *warning):
        say(f"iqguide: {line}")
    if len(made) < len(records):
        say(f"iqguide: {len(records) - len(made)} of {len(records)} seeds give no picture; samples.json says why.")


def _guidance(reward: Reward, strength: float | str | None, decoder: Any) -> RewardGuidance | None:
    if strength is None:
        return None
    return RewardGuidance(reward, scale=RewardGuidance.scale if strength == "default" else strength, decoder=decoder)


def _recorded(guidance: RewardGuidance | None) -> dict[str, Any]:
    """What a picture says of the guidance that it had: its strength, and the defaults of its day."""
    names = [field.name for field in fields(RewardGuidance) if field.name not in ("reward", "decoder", "scale")]
    settings = {f"guide_{name}": getattr(guidance, name) for name in names} if guidance else {}
    return {"guide": guidance.scale if guidance else None} | settings
