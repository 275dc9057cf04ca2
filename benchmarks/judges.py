"""The judges that never steered, and everything measured on a picture in one call.

python benchmarks/judges.py [--publish]      # how far each judge can be trusted, from its own saved report
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from artefacts import MEASURES
from degradation_judge import REPORT as NETWORK_REPORT
from degradation_judge import CleanLogOdds, DegradationJudge
from degradations import KINDS
from niqe import REPORT as STATISTICS_REPORT
from niqe import NaturalStatistics
from photographs import to_tensor
from PIL import Image
from tables import README, table, write_between
from torch import Tensor
from tqdm import tqdm


def judges() -> dict[str, object]:
    """Name -> callable, images (N, 3, H, W) in [0, 1] -> (N,), higher is better."""
    return {judge.name: judge for judge in (NaturalStatistics(), DegradationJudge(), CleanLogOdds())}


def margin_of(reward: object) -> object:
    """The unsaturated twin of a reward that has one: close to its ceiling a score hides what was gained."""
    return getattr(reward, "margin", reward)


def load(paths: list[Path]) -> Tensor:
    """Pictures of one size -> (N, 3, H, W) in [0, 1]."""
    return to_tensor([Image.open(path).convert("RGB") for path in paths])


def measure(images: Tensor, callables: dict[str, object], batch: int = 32) -> dict[str, Tensor]:
    """Every callable and every artefact measure on images (N, 3, H, W); name -> (N,) float32."""
    every = {**callables, **MEASURES}
    parts = images.split(batch)
    with torch.no_grad():
        return {
            name: torch.cat([function(part).float() for part in parts])
            for name, function in tqdm(every.items(), desc="judging", leave=False)
        }


def report() -> str:
    """Table of both judges' reports on held-out crops."""
    statistics, network = json.loads(STATISTICS_REPORT.read_text()), json.loads(NETWORK_REPORT.read_text())
    rows = [
        [
            kind,
            *(f"{statistics['resampled'][f'{kind} {strength}']:.0%}" for strength in (0.3, 0.6, 0.9)),
            f"{network['clean_above_degraded'][kind]:.0%}",
        ]
        for kind in KINDS
    ]
    head = ("clean above", *(f"natural statistics, strength {s}" for s in (0.3, 0.6, 0.9)), "degradations, above 0.25")
    note = (
        f"The network names the kind of {network['kind_accuracy']:.0%} of the degraded crops (strength above 0.25) and"
        f" knows {network['clean_recall']:.0%} of the clean ones; it misses the strength by"
        f" {network['strength_error']:.2f} on average (0 is nothing, 1 severe)."
    )
    return table(head, rows) + "\n\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="write the table into benchmarks/README.md")
    text = report()
    print(text)
    if parser.parse_args().publish:
        write_between(README, "judges", text)


if __name__ == "__main__":
    main()
