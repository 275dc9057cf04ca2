"""Reward and judges against compute: guidance and every search on the demo generator, from the same seeds.

    python benchmarks/search_budget.py --out runs/search_budget                 # goes on where it stopped
    python benchmarks/search_budget.py --out runs/search_budget --publish       # also into benchmarks/
    python benchmarks/search_budget.py --out runs/search_budget --groups 0:36   # narrower intervals

A group is one prompt and sixteen seeds, of which each method takes what it needs, always from the first on. Its picture
is what the reward calls best; its compute is all that was spent to find it: rows through the denoiser (with
classifier-free guidance a step is two), and seconds of processor time, for which other programs do not count; with
OMP_NUM_THREADS=1 they are those of an idle core. Noise optimisation climbs through four steps, and the noise that it
finds is then used with all of them; its backward passes are in the seconds only.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_pictures import PROMPTS, fingerprint, pipeline_modules, plain
from judges import judges, margin_of
from panels import Line, Panel, grid
from tables import README, bootstrap, machine, table, write_between
from torch import Tensor
from tqdm import tqdm

from iqguide import RewardGuidance, best_of_n, create_model, fk_steering, optimize_noise, rank, zero_order_search
from iqguide.cli.pipelines import DEMO_CALL, load_pipeline
from iqguide.images import save_image, to_pil, to_tensor
from iqguide.rerank import Ranking

RESULTS = Path(__file__).parent / "results"
SEEDS = 16  # of a group
SIZES = (1, 2, 4, 8, 16)
ETA = 0.6  # of the particles' ancestral steps; with 1 and 25 steps the demo's pictures stay noisy
HALVED = (("best of 8, halved", "best of 8"), ("best of 16, halved", "best of 16"))  # the same candidates
PAIRS = (*HALVED, ("guided, best of 8, halved", "best of 16"))  # what is compared with what
SIDE = 400  # of a panel, in px


@dataclass(frozen=True)
class Group:
    """One prompt, its seeds, and how the pipeline is called."""

    number: int
    call: dict[str, Any]

    @property
    def seeds(self) -> range:
        return range(self.number * SEEDS, (self.number + 1) * SEEDS)


@dataclass(frozen=True)
class Found:
    """The picture that a method ends with, and what it cost."""

    image: Tensor
    nfe: int
    seconds: float


def best_of_each(pipe: Any, reward: Any, group: Group) -> dict[str, Found]:
    """Best of 1, 2, 4, 8, 16: the candidates are drawn once, and each N takes the first N of them."""
    methods, images, nfe, seconds = {}, [], 0, 0.0
    for seed in group.seeds:
        ranking, spent = timed(best_of_n, pipe, reward, n=1, seeds=[seed], **group.call)
        images.append(ranking.best)
        nfe, seconds = nfe + ranking.nfe, seconds + spent
        if len(images) in SIZES:
            best = int(rank(torch.stack(images), reward).order[0])
            methods["unguided" if len(images) == 1 else f"best of {len(images)}"] = Found(images[best], nfe, seconds)
    return methods


def timed(search: Callable[..., Ranking], *arguments: Any, **options: Any) -> tuple[Ranking, float]:
    start = time.process_time()
    ranking = search(*arguments, **options)
    return ranking, time.process_time() - start


def one(search: Callable[..., Ranking], **options: Any) -> Callable[[Any, Any, Group], Found]:
    """A method that is one search with the group's first seeds."""

    def run(pipe: Any, reward: Any, group: Group) -> Found:
        ranking, seconds = timed(search, pipe, reward, **seeding(search, group, options), **options, **group.call)
        return Found(ranking.best, ranking.nfe, seconds)

    return run


def seeding(search: Callable[..., Ranking], group: Group, options: dict[str, Any]) -> dict[str, Any]:
    if search is best_of_n:
        return {"seeds": group.seeds[: options["n"]]}
    return {"seeds": group.seeds[: options["particles"]]} if search is fk_steering else {"seed": group.seeds[0]}


def noise_optimisation(iterations: int) -> Callable[[Any, Any, Group], Found]:
    """Climb through four steps; then all steps from the noise that was found."""

    def run(pipe: Any, reward: Any, group: Group) -> Found:
        start = time.process_time()
        short = group.call | {"num_inference_steps": 4}
        climbed = optimize_noise(pipe, reward, iterations=iterations, seed=group.seeds[0], **short)
        noise = climbed.latents[int(climbed.order[0])][None]
        image = pipe(**group.call, latents=noise, output_type="pt").images[0]
        rows = 2 * group.call["num_inference_steps"]
        return Found(image.float().cpu(), climbed.nfe + rows, time.process_time() - start)

    return run


def methods(reward: Any) -> dict[str, Callable[[Any, Any, Group], Found]]:
    """Name -> method; best of N comes from `best_of_each`."""
    guidance = RewardGuidance(reward)
    return {
        "guided": one(best_of_n, n=1, guidance=guidance),
        "best of 8, halved": one(best_of_n, n=8, halving=True),
        "best of 16, halved": one(best_of_n, n=16, halving=True),
        "FK, 4 particles": one(fk_steering, particles=4, eta=ETA),
        "best of 4, ancestral": one(fk_steering, particles=4, eta=ETA, lambda_=0.0),  # the control of FK
        "zero-order, 2 x 4": one(zero_order_search, rounds=2, neighbours=4),
        "noise optimisation, 20": noise_optimisation(20),
        "guided, best of 4": one(best_of_n, n=4, guidance=guidance),
        "guided, best of 8, halved": one(best_of_n, n=8, halving=True, guidance=guidance),
    }


def draw(pipe: Any, reward: Any, group: Group, done: set[str]) -> Iterator[tuple[str, Found]]:
    """Every method that is not done, for one group."""
    if not {"unguided", *(f"best of {n}" for n in SIZES[1:])} <= done:
        yield from best_of_each(pipe, reward, group).items()
    for name, method in methods(reward).items():
        if name not in done:
            yield name, method(pipe, reward, group)


# --- raw results ---


def row_of(group: Group, method: str, outcome: Found, reward: Any, every: dict[str, Any]) -> dict[str, Any]:
    """One line of the table of raw results: scores of the picture rounded to 8 bits, and the reward unsaturated."""
    image = to_tensor(to_pil(outcome.image))
    with torch.no_grad():
        scores = {name: float(score(image)) for name, score in {"reward": margin_of(reward), **every}.items()}
    head = {"group": group.number, "prompt": group.call["prompt"], "method": method}
    return head | {"nfe": outcome.nfe, "seconds": round(outcome.seconds, 4)} | scores


def read(path: Path) -> list[dict[str, Any]]:
    """Raw results, numbers as numbers."""
    if not path.exists():
        return []
    words = ("prompt", "method")
    with path.open(newline="") as file:
        return [{k: v if k in words else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


# --- what they say ---


def changes(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Method -> nfe, seconds, and for each score the paired change against unguided; all (G,).

    Changes are in standard deviations of the unguided pictures; groups that lack a method are left out.
    """
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["method"], {})[int(row["group"])] = row
    shared = sorted(set.intersection(*(set(groups) for groups in by.values())))
    if len(shared) < 2:
        return {}
    gains = {}
    for method, groups in by.items():
        gains[method] = {key: np.array([groups[g][key] for g in shared]) for key in ("nfe", "seconds")}
        for name in names:
            before, own = (np.array([which[g][name] for g in shared]) for which in (by["unguided"], groups))
            gains[method][name] = (own - before) / before.std(ddof=1)
    return gains


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method -> mean nfe, median seconds, and of each score's change the mean and its 95 % interval over the groups."""
    gains = {}
    every = changes(rows, names)
    for method, values in every.items():
        mine = {"nfe": values["nfe"].mean(), "seconds": float(np.median(values["seconds"]))}
        gains[method] = mine | {name: (float(values[name].mean()), *bootstrap(values[name])) for name in names}
    return {"groups": len(every["unguided"]["nfe"]) if every else 0, "methods": gains}


def against(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """What a method reaches of another's gain, for what share of its compute: the pairs of `PAIRS`."""
    gains = changes(rows, names)
    lines = []
    for method, other in PAIRS:
        if method in gains and other in gains:
            mine, theirs = gains[method], gains[other]
            compute = (mine["nfe"].mean() / theirs["nfe"].mean(), np.median(mine["seconds"] / theirs["seconds"]))
            gains = (share_of_gain(mine[name], theirs[name]) for name in names)
            lines.append([f"{method}, of {other}", *(f"{value:.0%}" for value in compute), *gains])
    return table(("what is reached, of what", "rows", "s", *names), lines) if lines else ""


def share_of_gain(mine: np.ndarray, theirs: np.ndarray) -> str:
    """Both mean gains (G,), and their ratio with its interval where the other's gain is clearly above nothing."""
    text = f"{mine.mean():+.2f} of {theirs.mean():+.2f}"
    picks = np.random.default_rng(0).integers(0, len(mine), (4000, len(mine)))
    below = theirs[picks].mean(1)
    if np.percentile(below, 2.5) <= 0:
        return text
    low, high = np.percentile(mine[picks].mean(1) / below, (2.5, 97.5))
    return f"{text}: {mine.mean() / theirs.mean():.0%} ({low:.0%} to {high:.0%})"


def winners_kept(rows: Sequence[dict[str, Any]], method: str, other: str) -> str:
    """In how many groups two methods with the same seeds end with the same picture, by its reward."""
    by = {name: {row["group"]: row["reward"] for row in rows if row["method"] == name} for name in (method, other)}
    shared = sorted(set(by[method]) & set(by[other]))
    same = sum(math.isclose(by[method][g], by[other][g], rel_tol=1e-4, abs_tol=1e-4) for g in shared)
    return f"{method}: the winner of {other} in {same} of {len(shared)} groups."


def page(figures: dict[str, Any], names: Sequence[str]) -> str:
    """The table: a method a line, sorted by compute."""
    lines = []
    for method, values in sorted(figures["methods"].items(), key=lambda item: item[1]["nfe"]):
        scores = (f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in (values[name] for name in names))
        lines.append([method, f"{values['nfe']:.0f}", f"{values['seconds']:.1f}", *scores])
    return table(("", "rows through the denoiser", "s", *names), lines)


def plot(figures: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """A panel for each score: mean change and its interval, over rows through the denoiser, and below over seconds."""
    order = sorted(figures["methods"], key=lambda method: figures["methods"][method]["nfe"])
    marks = [str(index + 1) for index in range(len(order))]
    rows = []
    for key, unit in (("nfe", "rows"), ("seconds", "seconds")):
        compute = np.array([figures["methods"][method][key] for method in order])
        ticks = [(math.log(end), f"{end:.3g}") for end in (compute.min(), compute.max())]
        scores = {name: np.array([figures["methods"][method][name] for method in order]) for name in names}
        lines = {name: Line(np.log(compute), values, marks=marks) for name, values in scores.items()}
        rows.append([Panel(f"{name}, over log {unit}", [line], ticks) for name, line in lines.items()])
    values = [figures["methods"][method] for method in order]
    notes = [
        f"{mark}  {method}: {mine['nfe']:.0f} rows, {mine['seconds']:.1f} s"
        for mark, method, mine in zip(marks, order, values, strict=True)
    ]
    save_image(grid(rows, notes=notes, width=SIDE, height=SIDE), path)


def groups_of(text: str) -> range:
    """0:32 -> the groups 0 ... 31."""
    first, last = text.split(":")
    return range(int(first), int(last))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/search_budget"))
    parser.add_argument("--groups", type=groups_of, default=groups_of("0:12"), metavar="FIRST:END")
    parser.add_argument("--steps", type=int, default=DEMO_CALL["num_inference_steps"])
    parser.add_argument("--pipeline", default="demo", help="demo, or a folder made by save_pretrained")
    parser.add_argument("--model", default="tiny", help="the reward that steers and chooses")
    parser.add_argument("--publish", action="store_true", help="write table, plot and CSV into benchmarks/")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    pipe, reward, every = load_pipeline(args.pipeline, torch.device("cpu")), create_model(args.model), judges()
    settings = {"pipeline": fingerprint(*pipeline_modules(pipe)), "reward": fingerprint(reward), "steps": args.steps}
    settings |= {"eta": ETA, "prompts": list(PROMPTS)}
    settings["guidance"] = json.loads(json.dumps(plain(RewardGuidance(reward))))
    raw = args.out / "search_budget.csv"
    check_settings(args.out / "settings.json", settings)
    done = {(int(row["group"]), row["method"]) for row in read(raw)}
    names = [*methods(reward), "unguided", *(f"best of {n}" for n in SIZES[1:])]
    with tqdm(total=len(args.groups) * len(names), desc="pictures", unit="picture") as bar:
        bar.update(sum(group in args.groups for group, _ in done))
        for number in args.groups:
            call = DEMO_CALL | {"num_inference_steps": args.steps, "prompt": PROMPTS[number % len(PROMPTS)]}
            group, mine = Group(number, call), {method for other, method in done if other == number}
            for method, outcome in draw(pipe, reward, group, mine):
                if method not in mine:
                    append(raw, row_of(group, method, outcome, reward, every))
                    bar.update()
    report(raw, args, ["reward", *every])


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Results of other weights, steps or defaults must not be mixed in."""
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{path.parent} holds results of other weights, steps or defaults; choose another --out.")
    path.write_text(json.dumps(settings))


def report(raw: Path, args: argparse.Namespace, names: Sequence[str]) -> None:
    """Print the tables and draw the plot; with --publish also into benchmarks/."""
    rows = [row for row in read(raw) if row["group"] in args.groups]
    figures = summary(rows, names)
    if not figures["methods"]:
        print("Fewer than two groups are finished; there is nothing to compare yet.")
        return
    note = f"{figures['groups']} groups, {args.steps} steps, reward `{args.model}`, batch size 1. Changes against the"
    note += f" unguided picture of the same seed, in standard deviations, with paired 95 % intervals. {machine()}."
    kept = "\n".join(winners_kept(rows, *pair) for pair in HALVED if {*pair} <= set(figures["methods"]))
    text = "\n\n".join(part for part in (note, page(figures, names), against(rows, names), kept) if part)
    print(text)
    plot(figures, names, args.out / "search_budget.png")
    if args.publish:
        write_between(README, "search-budget", f"{text}\n\n![Scores against compute](results/search_budget.png)")
        published = RESULTS / "search_budget.csv"
        published.unlink(missing_ok=True)
        for row in rows:
            append(published, row)
        plot(figures, names, RESULTS / "search_budget.png")


if __name__ == "__main__":
    main()
