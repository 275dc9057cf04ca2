"""How well the quality models agree with people whose scores they have not been told, split by split.

    python benchmarks/quality_models.py tiny --data DIR         # some parts only, see --help
    python benchmarks/quality_models.py --data DIR --publish    # all parts, and the tables into README.md
    python benchmarks/quality_models.py tiny --data DIR --tiny-weights FILE

A run can be stopped and started again: features are kept in --out, and every fit is written down when it is done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import quality_bpclip
import quality_guidance
import quality_qualiclip
import quality_reference
import quality_tiny
from quality_protocol import Record, pictures
from tables import README, machine, table, write_between

SPLIT_PARTS = ("tiny", "bpclip-mini", "qualiclip")  # those measured split by split, in one table
PARTS = (*SPLIT_PARTS, "ablations", "guidance", "reference")
RESULTS = Path(__file__).parent / "results"
DISTORTIONS = ("Gaussian blur", "JPEG", "JPEG2000", "additive Gaussian noise", "all")


def spread(records: Sequence[Record], name: str) -> str:
    """Mean and standard deviation over records."""
    values = [record[name] for record in records]
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def shares(records: Sequence[Record]) -> list[str]:
    """How often the score falls along the series of tid2013-6ref, mean over records."""
    means = (np.mean([record["falls"][name] for record in records]) for name in DISTORTIONS)
    return [f"{mean:.1%}" if name == "all" else f"{mean:.0%}" for name, mean in zip(DISTORTIONS, means, strict=True)]


def by_variant(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each variant, in the order in which the variants come."""
    names = dict.fromkeys(record["variant"] for record in records)
    return {name: [record for record in records if record["variant"] == name] for name in names}


def split_table(results: dict[str, list[Record]]) -> str:
    """A row for each model: mean over the splits, the first split with its bootstrap interval, ladder steps."""
    head = [
        "mean ± sd over the splits",
        "splits",
        "SRCC",
        "PLCC",
        "PLCC, fitted",
        "SRCC of split 0 (95 %)",
        *DISTORTIONS,
    ]
    rows = []
    for variant, records in by_variant([record for part in results.values() for record in part]).items():
        first = records[0]
        own = "{:.3f} ({:.3f} to {:.3f})".format(first["srcc"], *first["intervals"]["srcc"])
        figures = [spread(records, name) for name in ("srcc", "plcc", "plcc_fitted")]
        rows.append([variant, len(records), *figures, own, *shares(records)])
    return table(head, rows)


def ablation_table(records: Sequence[Record]) -> str:
    """A row for each variant: mean over the seeds."""
    head = ["mean ± sd over the seeds", "parameters", "seeds", "SRCC", "PLCC", "PLCC, fitted", "tid2013-6ref steps"]
    rows = []
    for variant, own in by_variant(records).items():
        figures = [spread(own, name) for name in ("srcc", "plcc", "plcc_fitted")]
        rows.append([variant, f"{own[0]['parameters'] / 1e6:.1f} M", len(own), *figures, shares(own)[-1]])
    return table(head, rows)


def guidance_table(records: Sequence[Record]) -> str:
    """A row for each model before and after; the last columns only where pictures were made."""
    judged = list(records[0].get("transfer", {}))
    head = ["guidance-grade", "", "SRCC", "PLCC", "tid2013-6ref steps", "gradient and way back, cosine", *judged]
    rows = []
    for record in records:
        changes = (record["transfer"][name] for name in judged)
        rows.append(
            [record["model"], record["way"], f"{record['srcc']:.3f}", f"{record['plcc']:.3f}", *shares([record])[-1:]]
            + [f"{record['way_back']:.3f}"]
            + ["{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(**change) for change in changes]
        )
    return table(head, rows)


def reference_table(records: Sequence[Record]) -> str:
    """A row for each model, without and with a reference."""
    head = [
        "",
        "reference",
        "own ladders fall",
        "own order",
        "its worst kind",
        "tid2013-6ref falls",
        "tid2013-6ref order",
    ]
    names = {"psnr": ("PSNR", "yes"), "bpclip-fr": ("bpclip-fr, of the size of bpclip-mini", "yes")}
    rows = []
    for record in records:
        own = [f"{record['falls']:.1%}", f"{record['order']:.3f}", f"{record['worst']:.3f}"]
        tid = [f"{record['tid_falls']:.1%}", f"{record['tid_order']:.3f}"]
        rows.append([*names.get(record["model"], (record["model"], "no")), *own, *tid])
    return table(head, rows)


def report(results: dict[str, list[Record]]) -> str:
    """The tables of all parts that were run, and what they were run on."""
    models = {part: records for part, records in results.items() if part in SPLIT_PARTS}
    parts = [f"{machine()}."]
    if models:
        parts.append(split_table(models))
    if "ablations" in results:
        parts.append(ablation_table(results["ablations"]))
    if "guidance" in results:
        parts.append(guidance_table(results["guidance"]))
    if "reference" in results:
        parts.append(reference_table(results["reference"]))
    return "\n\n".join(parts)


def run(part: str, args: argparse.Namespace) -> list[Record]:
    known = pictures(args.data)
    if part == "tiny":
        return quality_tiny.run(args.data, args.out, known, args.tiny_weights, args.splits)
    if part == "qualiclip":
        return quality_qualiclip.run(args.data, args.out, known, args.splits)
    weights = {"tiny": args.tiny_weights, "bpclip-mini": args.mini_weights}
    if part == "reference":
        return quality_reference.run(args.data, args.out, known, weights)
    if part == "guidance":
        return quality_guidance.run(args.data, args.out, known, weights, args.denoised, args.pipeline)
    return quality_bpclip.run(part, args.data, args.out, known, args.mini_weights, args.splits)


def publish(results: dict[str, list[Record]]) -> None:
    """Write the records into results/, and the tables of all parts that are there into README.md."""
    path = RESULTS / "quality_models.json"
    every = (json.loads(path.read_text()) if path.is_file() else {}) | results
    every = {part: every[part] for part in PARTS if part in every}
    path.write_text(json.dumps(every, indent=1) + "\n")
    write_between(README, "quality-models", report(every))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (all of them)")
    parser.add_argument("--data", type=Path, required=True, help="folder of live-challenge/, pristine/, tid2013-6ref/")
    parser.add_argument("--out", type=Path, default=Path("runs/quality_models"), help="for features and fits")
    parser.add_argument("--tiny-weights", default="default", help="whose convolutions `tiny` has")
    parser.add_argument("--mini-weights", default="default", help="whose backbone `bpclip-mini` has")
    parser.add_argument("--denoised", type=Path, help="denoised predictions for `guidance`, see docs/training.md")
    parser.add_argument("--pipeline", default="demo", help="what `guidance` guides: demo, or a folder")
    parser.add_argument("--splits", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--publish", action="store_true", help="write results/quality_models.json and README.md")
    args = parser.parse_args(arguments)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; expected some of {', '.join(PARTS)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    results = {part: run(part, args) for part in args.parts or PARTS}
    print(report(results))
    if args.publish:
        publish(results)


if __name__ == "__main__":
    main()
