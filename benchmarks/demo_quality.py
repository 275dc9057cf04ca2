"""Does guidance make better pictures? The demo generator's pictures, judged by judges that never steered.

    python benchmarks/demo_quality.py --out runs/demo_quality             # print the tables
    python benchmarks/demo_quality.py --out runs/demo_quality --publish   # also write them into benchmarks/
    python benchmarks/demo_quality.py --out runs/try --best-of 1 --no-costs --guidance '{"scale": 0.2}'   # a quick try
    python benchmarks/demo_quality.py --judge-only BEFORE AFTER           # two folders with the same file names

From the same seeds: unguided, guided at the default, best of N, and guidance with best of N. An interrupted run goes on
where it stopped; pictures are made again only if their settings have changed (not if only the guidance's code has: use
another --out). A full run makes 2 x 64 x 8 pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from artefacts import MEASURES, ranges
from demo_costs import cost_table, costs
from demo_pictures import Plan, contact_sheet, copy_choice, generate
from demo_statistics import artefact_table, compare, comparison_table
from judges import judges, load, measure
from tables import README, machine, write_between
from torch import Tensor

from iqguide import RewardGuidance, create_model, rank
from iqguide.cli.pipelines import load_pipeline

RESULTS = Path(__file__).parent / "results"
Measured = dict[str, Tensor]  # judge or measure -> (N,)


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds of a text such as 0:64 or 3,5,8."""
    if ":" in text:
        first, last = text.split(":")
        return tuple(range(int(first), int(last)))
    return tuple(int(part) for part in text.split(","))


def collect(plan: Plan, out: Path, reward: Any) -> dict[str, dict[str, Any]]:
    """Judge every candidate, choose the best of N by the reward, copy each method's pictures to out/METHOD/SEED.png.

    Returns:
        For each method the lists `seeds`, `paths`, `seconds` and the measured values by name (the reward's among them).
    """
    methods: dict[str, dict[str, Any]] = {}
    for name in ("unguided", "guided"):
        folder = out / "candidates" / name
        seconds = json.loads((folder / "settings.json").read_text())["seconds"]
        keys = [(seed, k) for seed in plan.seeds for k in range(plan.best_of)]
        images = load([folder / f"{seed}-{k}.png" for seed, k in keys])
        values = {"reward": rank(images, reward, batch_size=32).scores, **measure(images, judges())}
        shape = (len(plan.seeds), plan.best_of)
        values = {key: value.view(shape) for key, value in values.items()}
        values["seconds"] = torch.tensor([seconds[f"{seed}-{k}"] for seed, k in keys]).view(shape)
        chosen = {name: torch.zeros(shape[0], dtype=torch.long)}
        if plan.best_of > 1:
            if name == "unguided":
                chosen["another seed"] = torch.ones(shape[0], dtype=torch.long)
            best = f"best of {plan.best_of}"
            chosen[best if name == "unguided" else f"guided, {best}"] = values["reward"].argmax(1)
        for method, k in chosen.items():
            picked = {key: value.gather(1, k[:, None])[:, 0].numpy() for key, value in values.items()}
            if "best" in method:
                picked["seconds"] = values["seconds"].sum(1).numpy()
            choice = dict(zip(plan.seeds, k.tolist(), strict=True))
            paths = copy_choice(choice, folder, out / method.replace(", ", "_").replace(" ", "_"))
            methods[method] = {"paths": paths, **picked}
        methods[f"{name}, all candidates"] = {key: value.flatten().numpy() for key, value in values.items()}
    order = ("unguided", "another seed", "guided", f"best of {plan.best_of}", f"guided, best of {plan.best_of}")
    every = {name: methods[name] for name in order if name in methods}
    return every | {name: rows for name, rows in methods.items() if name.endswith("candidates")}


def write_csv(methods: dict[str, dict[str, Any]], plan: Plan, path: Path) -> None:
    names = ["reward", *judges(), *MEASURES, "seconds"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "prompt", "method", *names])
        for method, rows in methods.items():
            if method.endswith("candidates"):
                continue
            for index, seed in enumerate(plan.seeds):
                writer.writerow([seed, plan.prompt(seed), method, *(f"{rows[name][index]:.5g}" for name in names)])


def results_of(methods: dict[str, dict[str, Any]], plan: Plan) -> dict[str, dict[str, dict[str, float]]]:
    """Judge -> method -> what `compare` says; the reward itself last, for what it is worth."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for judge in (*judges(), "reward"):
        before = methods["unguided"][judge]
        results[judge] = {
            method: compare(before, rows[judge])
            for method, rows in methods.items()
            if method != "unguided" and not method.endswith("candidates")
        }
        if plan.best_of > 1:
            unguided, guided = (methods[f"{name}, all candidates"][judge] for name in ("unguided", "guided"))
            results[judge][f"guided, all {len(plan.seeds) * plan.best_of} candidates"] = compare(unguided, guided)
            if judge != "reward":
                highest = unguided.reshape(len(plan.seeds), plan.best_of).max(1)
                results[judge][f"best of {plan.best_of}, chosen by this judge"] = compare(before, highest)
    return results


def page(methods: dict[str, dict[str, Any]], results: dict[str, Any], plan: Plan, note: str) -> str:
    shown = {name: rows for name, rows in methods.items() if not name.endswith("candidates")}
    parts = [note]
    parts += [comparison_table(judge, rows) for judge, rows in results.items()]
    parts.append(artefact_table(shown, ranges()))
    return "\n\n".join(parts)


def judge_folders(before: Path, after: Path) -> str:
    """Tables for the pictures that two folders have under the same names."""
    names = sorted({p.name for p in before.iterdir()} & {p.name for p in after.iterdir()})
    names = [name for name in names if Path(name).suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}]
    if len(names) < 2:
        raise SystemExit(f"{before} and {after} share {len(names)} picture names; expected at least 2.")
    measured = []
    for folder in (before, after):
        one_by_one = [measure(load([folder / name]), judges()) for name in names]
        measured.append({key: torch.cat([values[key] for values in one_by_one]).numpy() for key in one_by_one[0]})
    methods = {"before": measured[0], "after": measured[1]}
    tables = [comparison_table(judge, {"after": compare(measured[0][judge], measured[1][judge])}) for judge in judges()]
    return "\n\n".join([f"{len(names)} pairs.", *tables, artefact_table(methods, ranges())])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_quality"))
    parser.add_argument("--pipeline", default="demo", help="demo, or a folder made by save_pretrained")
    parser.add_argument("--model", default="tiny", help="the reward that guides and chooses")
    parser.add_argument("--weights", default="default", help="of the reward")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0:64"))
    parser.add_argument(
        "--best-of", type=int, default=Plan.best_of, metavar="N", help="1 for guided and unguided alone"
    )
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--guidance-scale", type=float, default=Plan.guidance_scale, help="classifier-free guidance")
    parser.add_argument("--guidance", type=json.loads, default={}, help="fields of RewardGuidance, as JSON")
    parser.add_argument("--no-costs", action="store_true", help="do not measure the times")
    parser.add_argument("--publish", action="store_true", help="write tables, CSV and pictures into benchmarks/")
    parser.add_argument("--judge-only", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    args = parser.parse_args(arguments)
    if args.judge_only:
        print(judge_folders(*args.judge_only))
        return
    pipe = load_pipeline(args.pipeline, torch.device("cpu"))
    reward = create_model(args.model, weights=args.weights)
    if "noise_window" in args.guidance:
        args.guidance["noise_window"] = tuple(args.guidance["noise_window"])
    guidance = RewardGuidance(reward, **args.guidance)
    run(pipe, reward, guidance, args)


def run(pipe: Any, reward: Any, guidance: RewardGuidance, args: argparse.Namespace) -> None:
    """Generate, judge, print; with --publish also write."""
    plan = Plan(args.seeds, args.best_of, args.batch, args.steps, args.guidance_scale)
    for name, how in (("unguided", None), ("guided", guidance)):
        generate(pipe, plan, how, args.out / "candidates" / name)
    methods = collect(plan, args.out, reward)
    results = results_of(methods, plan)
    changed = f"; guidance: {json.dumps(args.guidance)}" if args.guidance else ""
    note = f"{len(plan.seeds)} seeds, {plan.steps} steps, classifier-free guidance {plan.guidance_scale:g}"
    note = f"{note}, reward `{args.model}`{changed}. {machine()}."
    text = page(methods, results, plan, note)
    print(text)
    sheet = {name: methods[name]["paths"] for name in ("unguided", "guided")}
    contact_sheet(sheet, args.out / "contact_sheet.png")
    write_csv(methods, plan, args.out / "demo_quality.csv")
    measured = None if args.no_costs else [costs(pipe, plan, guidance, batch) for batch in (1, 8)]
    if measured:
        print("\n" + cost_table(measured))
    summary = {"note": note, "judges": results, "costs": measured}
    (args.out / "demo_quality.json").write_text(json.dumps(summary, indent=1) + "\n")
    if args.publish:
        write_between(README, "demo-quality", text)
        write_csv(methods, plan, RESULTS / "demo_quality.csv")
        (RESULTS / "demo_quality.json").write_text(json.dumps(summary, indent=1) + "\n")
        contact_sheet({name: paths[:12] for name, paths in sheet.items()}, RESULTS / "demo_quality.png", columns=12)
        if measured:
            write_between(README, "demo-costs", f"{machine()}.\n\n{cost_table(measured)}")


if __name__ == "__main__":
    main()
