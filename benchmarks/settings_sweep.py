"""Where the defaults come from: scale against reward and judges, then the other settings of guidance one at a time.

    python benchmarks/settings_sweep.py --out runs/settings_sweep             # goes on where it stopped
    python benchmarks/settings_sweep.py --out runs/settings_sweep --publish   # also into benchmarks/
    python benchmarks/settings_sweep.py --only scale ema --seeds 0:9          # a part, few seeds

The same seeds of the demo generator for every setting: three pictures of each of its nine prompts by default. Pictures
are kept, and made again only if their settings have changed (not if only the code has: use another --out).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_pictures import Plan, generate
from demo_quality import seeds_of
from demo_statistics import compare
from judges import judges, load, margin_of
from panels import Line, Panel, grid
from tables import README, machine, table, write_between

from iqguide import RewardGuidance, create_model
from iqguide.cli.pipelines import load_pipeline
from iqguide.images import save_image

RESULTS = Path(__file__).parent / "results"
DEFAULTS = {f.name: f.default for f in fields(RewardGuidance) if f.name != "reward"}
VALUES: dict[str, tuple[Any, ...]] = {
    "scale": (0.0, 0.025, 0.05, 0.1, 0.2, 0.4),
    "noise_window": ((0.75, 0.05), (0.75, 0.15), (0.6, 0.02), (0.6, 0.05), (0.6, 0.15), (0.6, 0.3), (0.4, 0.05)),
    "every": (1, 2, 4),
    "samples": (1, 4),
    "crop": (8, None),
    "noise": (0.0, 0.05, 0.2),
    "ema": (0.0, 0.5, 1.5),
    "max_drift": (0.1, 0.2, 0.5, None),
}
HARD = {"max_drift": {"scale": 0.4}}
"""What else is changed in a sweep. At the default scale the pushes add up to less than the default's limit of drift, so
nothing would be seen of it."""
Scores = dict[str, np.ndarray]  # of each picture, by reward or judge; and processor "seconds"


@dataclass(frozen=True)
class Setting:
    """One row: a value of one field of `RewardGuidance`, the others as they are by default."""

    sweep: str
    value: Any
    changes: Mapping[str, Any]
    """All fields that differ from the default."""

    @property
    def label(self) -> str:
        return " to ".join(map(str, self.value)) if isinstance(self.value, tuple) else str(self.value)

    @property
    def folder(self) -> str:
        """Where its pictures are; the same for settings that are the same."""
        if self.changes.get("scale") == 0:
            return "unguided"
        return ",".join(f"{name}={value}".replace(" ", "") for name, value in sorted(self.changes.items())) or "default"


def settings_of(sweep: str) -> list[Setting]:
    """The rows of one sweep, in order."""
    settings = []
    for value in VALUES[sweep]:
        changes = {**HARD.get(sweep, {}), sweep: value}
        settings.append(Setting(sweep, value, {k: v for k, v in changes.items() if v != DEFAULTS[k]}))
    return settings


def measured(pipe: Any, plan: Plan, guidance: RewardGuidance | None, folder: Path, scores: Mapping[str, Any]) -> Scores:
    """Draw what is not there yet, and score it; scores are those of the 8-bit pictures."""
    generate(pipe, plan, guidance, folder)
    seconds = json.loads((folder / "settings.json").read_text())["processor"]
    images = load([folder / f"{seed}-0.png" for seed in plan.seeds])
    with torch.no_grad():
        scored = {name: torch.cat([score(part) for part in images.split(16)]).numpy() for name, score in scores.items()}
    return scored | {"seconds": np.array([seconds[f"{seed}-0"] for seed in plan.seeds])}


def row_of(setting: Setting, plain: Scores, own: Scores, names: Sequence[str]) -> dict[str, Any]:
    """What one setting changed: for each score what `compare` says, and its processor time in unguided pictures."""
    row = {"sweep": setting.sweep, "value": setting.label, "default": setting.value == DEFAULTS[setting.sweep]}
    row["cost"] = float(np.median(own["seconds"]) / np.median(plain["seconds"]))
    return row | {name: compare(plain[name], own[name]) for name in names}


def page(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table for each sweep; the default is in bold."""
    parts = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        lines = []
        for row in (row for row in rows if row["sweep"] == sweep):
            label = f"**{row['value']}**" if row["default"] else row["value"]
            lines.append([label, *(cell(row[name]) for name in names), f"{row['cost']:.2f}"])
        others = "".join(f", {name} {value}" for name, value in HARD.get(sweep, {}).items())
        parts.append(table((f"`{sweep}`{others}", *names, "time"), lines))
    return "\n\n".join(parts)


def cell(result: Mapping[str, float]) -> str:
    """Gain, its interval, and how much of the lower half rose."""
    return f"{result['mean']:+.2f} ({result['low']:+.2f} to {result['high']:+.2f}), {result['wins_lower']:.0%}"


def plot(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """A row of panels for each sweep, a column for each score: gain and interval over the values of the setting."""
    panels = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        mine = [row for row in rows if row["sweep"] == sweep]
        ticks = [(place, row["value"].replace(" to ", "\n")) for place, row in enumerate(mine)]
        panels.append([Panel(f"{name}, by {sweep}", [line_of(mine, name)], ticks) for name in names])
    save_image(grid(panels), path)


def line_of(rows: Sequence[Mapping[str, Any]], name: str) -> Line:
    return Line(np.arange(len(rows)), np.array([[row[name][key] for key in ("mean", "low", "high")] for row in rows]))


def write_csv(scores: Mapping[str, Scores], plan: Plan, path: Path) -> None:
    """Every picture's scores, by the folder of its setting."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["setting", "seed", "prompt", *next(iter(scores.values()))])
        for folder, values in scores.items():
            for index, seed in enumerate(plan.seeds):
                numbers = (f"{value[index]:.5g}" for value in values.values())
                writer.writerow([folder, seed, plan.prompt(seed), *numbers])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/settings_sweep"))
    parser.add_argument("--pipeline", default="demo", help="demo, or a folder made by save_pretrained")
    parser.add_argument("--model", default="tiny", help="the reward that steers")
    parser.add_argument("--weights", default="default", help="of the reward")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0:27"))
    parser.add_argument("--batch", type=int, default=9)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--only", nargs="+", choices=VALUES, default=list(VALUES), metavar="FIELD", help="these sweeps")
    parser.add_argument("--publish", action="store_true", help="write tables, plot and CSV into benchmarks/")
    args = parser.parse_args(arguments)
    if args.publish and set(args.only) != set(VALUES):
        parser.error("--publish replaces the whole table; got it with a part of the sweeps, leave --only out")
    pipe, reward = load_pipeline(args.pipeline, torch.device("cpu")), create_model(args.model, weights=args.weights)
    plan = Plan(args.seeds, best_of=1, batch=args.batch, steps=args.steps)
    scores = {"reward": margin_of(reward), **judges()}
    known = {"unguided": measured(pipe, plan, None, args.out / "unguided", scores)}
    rows = []
    for setting in (setting for sweep in args.only for setting in settings_of(sweep)):
        if setting.folder not in known:
            guidance = RewardGuidance(reward, **setting.changes)
            known[setting.folder] = measured(pipe, plan, guidance, args.out / setting.folder, scores)
        rows.append(row_of(setting, known["unguided"], known[setting.folder], list(scores)))
    report(known, rows, list(scores), plan, args)


def report(
    known: Mapping[str, Scores],
    rows: Sequence[Mapping[str, Any]],
    names: list[str],
    plan: Plan,
    args: argparse.Namespace,
) -> None:
    """Print the tables and draw the plot; with --publish also into benchmarks/."""
    note = f"{len(plan.seeds)} seeds, {plan.steps} steps, batches of {plan.batch}, reward `{args.model}`. {machine()}."
    text = f"{note}\n\n{page(rows, names)}"
    print(text)
    for folder in (args.out, RESULTS) if args.publish else (args.out,):
        write_csv(known, plan, folder / "settings_sweep.csv")
        plot(rows, names, folder / "settings_sweep.png")
    if args.publish:
        write_between(README, "settings-sweep", f"{text}\n\n![Gains by setting](results/settings_sweep.png)")


if __name__ == "__main__":
    main()
