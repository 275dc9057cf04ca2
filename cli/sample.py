"""`iqguide sample` and `iqguide demo`: generate with a diffusers pipeline, guided, best of N or both."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from .. import __version__
from ..errors import atomic_write, make_folder, one_line
from ..guidance import RewardGuidance
from ..images import save_image, to_pil
from ..models import MODELS, create_model
from ..models.weights import ASSETS, is_offline
from ..rerank import Ranking, rank
from ..rewards import Reward
from ..search.best_of_n import best_of_n
from ..search.candidates import guided_calls
from ..search.halving import HALVING
from ..training.evaluate import distributed_device
from .arguments import SEEDS
from .console import OK, progress, say
from .score import best_device
from .sweep import finished, gathered, share_of, verdict

DEMO = ASSETS / "demo"
DEMO_CALL = {"num_inference_steps": 25, "guidance_scale": 3.0}  # what the bundled generator is made for


@dataclass(frozen=True)
class Sample:
    """One generated picture, and what samples.json says about it."""

    image: Image.Image
    seed: int
    candidate_seed: int
    score: float
    time_s: float
    nfe: int
    judge: float | None = None
    """Score by a model that did not steer."""
    plain_score: float | None = None
    """Score of the picture that the first candidate's seed makes unguided; where there is a judge."""
    plain_judge: float | None = None
    """And what the judge says of that one."""

    def record(self) -> dict[str, Any]:
        """The entry of samples.json."""
        return {name: value for name, value in vars(self).items() if name != "image" and value is not None}


def load_reward(options: argparse.Namespace, device: torch.device) -> nn.Module:
    """The quality model to sample by; see `load_model`."""
    return load_model(options.model, options.weights, device)


def load_model(name: str, weights: str, device: torch.device) -> nn.Module:
    """A quality model for pictures that have no reference.

    Raises:
        ValueError: it needs one.
    """
    if name in MODELS and MODELS[name].full_reference:
        raise ValueError(f"{name} compares images with a reference, and samples have none; choose another.")
    return create_model(name, weights=weights, device=device)


def run_sample(options: argparse.Namespace) -> int:
    """Write DIR/SEED.png for each seed, and DIR/samples.json; with several processes each draws a part of the seeds."""
    _check_options(options)
    out = make_folder(options.out)
    own, talks = distributed_device()
    device = own or best_device(options.device)
    reward = load_reward(options, device)
    judge = load_model(options.judge, options.judge_weights, device) if options.judge else None
    pipe = load_pipeline(options.pipeline, device, options.dtype)
    call = _call(options)
    _check_call(pipe, call)
    decoder = _decoder(options.decoder, pipe)
    guidance = _guidance(reward, options.guide, decoder)
    settings = call | {"pipeline": options.pipeline, "model": options.model, "weights": options.weights}
    settings |= _recorded(guidance) | {"decoder": options.decoder, "judged_by": options.judge}
    settings |= {"judge_weights": options.judge and options.judge_weights, "dtype": options.dtype}
    halving = HALVING if options.halving is True else options.halving or ()
    settings |= {"best_of": options.best_of, "halving": list(halving) or None, "iqguide": __version__}
    done = finished(out, options.seeds, settings) if options.resume else {}
    seeds = share_of(options.seeds, 1 if options.best_of else options.batch_size)
    records = {seed: done[seed] for seed in seeds if seed in done}
    how = {"guidance": guidance, "best_of": options.best_of, "batch_size": options.batch_size, "judge": judge}
    how |= {"halving": halving, "decoder": decoder}
    with progress(len(seeds), "sample", quiet=not talks) as bar:
        bar.update(len(records))
        for sample in draw(pipe, reward, [seed for seed in seeds if seed not in done], **how, **call):
            records[sample.seed] = sample.record()
            save_image(sample.image, out / f"{sample.seed}.png", {"iqguide": json.dumps(settings | sample.record())})
            if own is None:
                _write_records(out, records, options.seeds)
            bar.update()
    everything = {record["seed"]: record for record in gathered(list(records.values()))}
    if talks:
        _write_records(out, everything, options.seeds)
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


def _write_records(out: Path, records: dict[int, dict[str, Any]], order: Sequence[int]) -> None:
    """samples.json: what is there, in the order of the seeds."""
    text = json.dumps([records[seed] for seed in order if seed in records], indent=1)
    atomic_write(out / "samples.json", text.encode())


def _conclude(options: argparse.Namespace, out: Path, records: list[dict[str, Any]]) -> None:
    if options.judge:
        result, *warning = verdict(records, options.model, options.judge)
    else:
        mean = statistics.fmean(record["score"] for record in records)
        result, warning = f"mean score {mean:.4f} by {options.model}", []
    for line in (f"{len(records)} images in {out}, {result}.", *warning):
        say(f"iqguide: {line}")


def draw(
    pipe: Any,
    reward: Reward,
    seeds: Sequence[int],
    *,
    guidance: RewardGuidance | None = None,
    best_of: int | None = None,
    batch_size: int = 1,
    halving: Sequence[float] | bool = (),
    decoder: Any = None,
    judge: Reward | None = None,
    **call: Any,
) -> Iterator[Sample]:
    """Generate one picture for each seed.

    Args:
        pipe: a diffusers pipeline.
        reward: images (N, 3, H, W) in [0, 1] -> (N,), higher is better; on the device of the pipeline.
        seeds: one for each picture; equal seeds start from equal noise, guided or not.
        guidance: None for none.
        best_of: candidates for each picture, whose seeds are seed * best_of + 0, 1, ...; None for the seed itself.
        batch_size: pictures in one call of the pipeline.
        halving: shares of the steps after which the worse half of the candidates is dropped, see `best_of_n`.
        decoder: with which halving looks at predictions, see `best_of_n`.
        judge: a second reward, which steers nothing. Where something else steers, the first candidate of each seed is
            drawn once more without it, and both score it.
        **call: what the pipeline is called with.

    Yields:
        A `Sample` for each seed, in their order; its score is that of the picture rounded to 8 bits.
    """
    if not seeds:
        return  # guidance would warn that it changed nothing
    groups = [[seed] for seed in seeds]
    if not best_of:
        groups = [list(seeds[i : i + batch_size]) for i in range(0, len(seeds), batch_size)]
    twins = judge is not None and (guidance is not None or best_of is not None)
    with guided_calls(pipe, guidance, call) as run:
        for group in groups:
            wanted = [group[0] * best_of + i for i in range(best_of)] if best_of else group
            start = time.perf_counter()
            how = {"batch_size": batch_size, "top_k": 1 if best_of else None, "halving": halving, "decoder": decoder}
            ranking = best_of_n(pipe, reward, n=len(wanted), seeds=wanted, **how, **call)
            spent = time.perf_counter() - start
            samples = _samples(ranking, reward, judge, group, spent / len(group), (ranking.nfe or 0) // len(group))
            if not twins:
                yield from samples
                continue
            with run.paused() if guidance is not None else nullcontext():
                first = wanted[:1] if best_of else wanted
                plain = best_of_n(
                    pipe, reward, n=len(first), seeds=first, batch_size=min(batch_size, len(first)), **call
                )
            for sample, twin in zip(samples, _samples(plain, reward, judge, group, 0, 0), strict=True):
                yield replace(sample, plain_score=twin.score, plain_judge=twin.judge)


def _samples(
    ranking: Ranking, reward: Reward, judge: Reward | None, seeds: list[int], time_s: float, nfe: int
) -> Iterator[Sample]:
    """The pictures of a ranking (one for each seed), scored as the 8-bit files that they become."""
    pictures = [to_pil(image) for image in ranking.images]
    scores = rank(pictures, reward, batch_size=len(pictures)).scores.tolist()
    judged = rank(pictures, judge, batch_size=len(pictures)).scores.tolist() if judge else [None] * len(pictures)
    every = zip(seeds, ranking.seeds, pictures, scores, judged, strict=True)
    for seed, candidate, picture, score, other in every:
        yield Sample(picture, seed, candidate, score, round(time_s, 4), nfe, other)


def load_pipeline(name: str, device: torch.device, dtype: str | None = None) -> Any:
    """A diffusers pipeline, quiet and on its device.

    Args:
        name: "demo" (bundled), a folder made by `save_pretrained`, or the id of a model on the Hugging Face hub.
        device: where to.
        dtype: "float32", "bfloat16" or "float16"; None for float32 on a CPU and a fast half elsewhere.

    Raises:
        ValueError: it is not there, cannot be read or cannot be downloaded.
    """
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    if name == "demo":
        from diffusers import StableDiffusionPipeline as Pipeline

        if not (DEMO / "model_index.json").is_file():
            raise ValueError(f"{DEMO}, which comes with the package, is missing; install the package again.")
    else:
        from diffusers import DiffusionPipeline as Pipeline
    place = DEMO if name == "demo" else Path(name).expanduser()
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    keyword = "dtype" if version >= (0, 42) else "torch_dtype"
    local = place.is_dir()
    try:
        with _hushed() if name == "demo" else nullcontext():  # it knows that its autoencoder is a tiny one
            pipe = Pipeline.from_pretrained(
                place if local else name,
                local_files_only=local or is_offline(),
                **{keyword: getattr(torch, dtype) if dtype else _usual_dtype(device)},
            )
    except Exception as error:  # a damaged folder makes diffusers raise almost any type
        raise ValueError(
            f"cannot load the pipeline {name!r} ({one_line(error)}); expected 'demo', a folder made by save_pretrained,"
            " or the id of a model on the Hugging Face hub that can be downloaded."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def _hushed() -> Iterator[None]:
    """While open, diffusers says nothing but errors."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_call(pipe: Any, call: dict[str, Any]) -> None:
    """Refuse an option that this pipeline does not have."""
    known = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name not in known:
            raise ValueError(f"{type(pipe).__name__} has no {name}; leave out --{name.replace('_', '-')}.")


def _usual_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


def _guidance(reward: Reward, strength: float | str | None, decoder: Any) -> RewardGuidance | None:
    if strength is None:
        return None
    return RewardGuidance(reward, scale=RewardGuidance.scale if strength == "default" else strength, decoder=decoder)


def _recorded(guidance: RewardGuidance | None) -> dict[str, Any]:
    """What a picture says of the guidance that it had: its strength, and the defaults of its day."""
    names = [field.name for field in fields(RewardGuidance) if field.name not in ("reward", "decoder", "scale")]
    settings = {f"guide_{name}": getattr(guidance, name) for name in names} if guidance else {}
    return {"guide": guidance.scale if guidance else None} | settings


def _decoder(name: str | None, pipe: Any) -> Any:
    """What --decoder names: the pipeline's own autoencoder, or an AutoencoderTiny.

    Raises:
        ValueError: it is not there, or cannot be downloaded.
    """
    if name is None or name == "vae":
        return name and pipe.vae
    from diffusers import AutoencoderTiny

    local = Path(name).expanduser().is_dir()
    try:
        tiny = AutoencoderTiny.from_pretrained(name, local_files_only=local or is_offline())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the decoder {name!r} ({one_line(error)}); expected vae, a folder, or the id of an"
            " AutoencoderTiny on the Hugging Face hub, such as madebyollin/taesdxl."
        ) from error
    return tiny.to(device=pipe.device, dtype=pipe.dtype)


def run_demo(options: argparse.Namespace) -> int:
    """Unguided, guided, best of N and both: print a table and write demo.png."""
    out = make_folder(options.out)
    device = best_device(options.device)
    reward = load_reward(options, device)
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
                results[method].append(sample)
                bar.update()
    path = out / "demo.png"
    save_image(picture_table(results), path)
    print(f"{'method':<20} {'mean score':>10} {'s / image':>10}")
    for method, samples in results.items():
        mean, seconds = (statistics.fmean(getattr(s, name) for s in samples) for name in ("score", "time_s"))
        print(f"{method:<20} {mean:>10.4f} {seconds:>10.2f}")
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
