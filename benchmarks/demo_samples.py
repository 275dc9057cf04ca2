"""What does the demo generator draw? Whether its words work, and how many of its pictures are degraded.

    python benchmarks/demo_samples.py --out runs/demo_quality             # after demo_quality.py with the same --out
    python benchmarks/demo_samples.py --out runs/demo_quality --publish   # also write the tables into the README

Looks at the unguided candidates of demo_quality.py. A word works if what it names, computed from the pictures, moves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from degradation_judge import DegradationJudge
from degradations import NAMES
from demo_pictures import Plan
from judges import load
from tables import README, table, write_between
from torch import Tensor

PAIRS = (("brightness", "dark", "bright"), ("colourfulness", "grey", "colourful"), ("busyness", "smooth", "busy"),
         ("warmth", "cool", "warm"))  # fmt: skip
DEGRADED = 0.25  # strength, of 1, from which a degradation is plain to see


def attributes(images: Tensor) -> dict[str, np.ndarray]:
    """Mean luma, mean distance of the channels from it, log mean step between neighbours, red minus blue; each (N,)."""
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    steps = luma.diff(dim=-1).abs().mean((1, 2)) + luma.diff(dim=-2).abs().mean((1, 2))
    values = {
        "brightness": luma.mean((1, 2)),
        "colourfulness": (images - luma[:, None]).abs().mean((1, 2, 3)),
        "busyness": (steps + 1e-3).log(),
        "warmth": (images[:, 0] - images[:, 2]).mean((1, 2)),
    }
    return {name: value.numpy() for name, value in values.items()}


def words_table(values: dict[str, np.ndarray], prompts: np.ndarray) -> str:
    """For each pair of words: the mean of what they name with either, and their distance.

    The distance is in standard deviations over the pictures drawn without a prompt.
    """
    rows = []
    for name, low, high in PAIRS:
        below, free, above = (values[name][prompts == word] for word in (low, "", high))
        apart = (above.mean() - below.mean()) / free.std(ddof=1)
        order = (above[:, None] > below[None]).mean()
        means = (f"{part.mean():.3f}" for part in (below, free, above))
        rows.append([name, f"{low} / {high}", *means, f"{apart:+.1f} sd", f"{order:.0%}"])
    head = ("", "words", "first word", "no word", "second word", "apart", "a pair of pictures in this order")
    return table(head, rows)


def degraded_table(images: Tensor) -> str:
    """Share of the pictures that the network of the degradation judge gives each kind, and how many are plainly so."""
    network = DegradationJudge().network
    with torch.no_grad():
        logits, strengths = (torch.cat(x) for x in zip(*(network(part) for part in images.split(32)), strict=True))
    kinds = logits.argmax(1)
    strength = strengths.gather(1, kinds[:, None])[:, 0]
    rows = []
    for index, name in enumerate(NAMES):
        chosen = kinds == index
        plain = chosen & (strength > DEGRADED) if index else torch.zeros_like(chosen)
        rows.append([name, f"{chosen.float().mean():.0%}", f"{plain.float().mean():.0%}"])
    return table(("named by the degradation judge", "share", f"strength above {DEGRADED}"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_quality"), help="as given to demo_quality.py")
    parser.add_argument("--publish", action="store_true", help="write the tables into benchmarks/README.md")
    args = parser.parse_args()
    folder = args.out / "candidates" / "unguided"
    stems = sorted(json.loads((folder / "settings.json").read_text())["seconds"])
    images, plan = load([folder / f"{stem}.png" for stem in stems]), Plan(())
    prompts = np.array([plan.prompt(int(stem.split("-")[0])) for stem in stems])
    text = "\n\n".join([f"{len(stems)} pictures.", words_table(attributes(images), prompts), degraded_table(images)])
    print(text)
    if args.publish:
        write_between(README, "demo-samples", text)


if __name__ == "__main__":
    main()
