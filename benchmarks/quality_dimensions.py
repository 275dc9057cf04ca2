"""What the words of `bpclip-mini` are worth: along each degradation, which of its six dimensions falls most?

    python benchmarks/quality_dimensions.py --data DIR             # print the table
    python benchmarks/quality_dimensions.py --data DIR --publish   # also write it into README.md

On crops of clean photographs that it never saw. training/dimensions.py says which dimension each degradation is for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from judges import load
from tables import README, machine, table, write_between
from torch import Tensor
from tqdm import tqdm

from iqguide import create_model
from iqguide.models.bpclip import BPCLIP
from iqguide.training import dimensions, distortions, generated_distortions
from iqguide.training.bpclip_losses import pair_values
from iqguide.training.data import clean_photographs, split

LADDERS = distortions.LADDERS | generated_distortions.LADDERS
Values = Callable[[Tensor], Tensor]


def dimension_values(model: BPCLIP) -> Values:
    """Images (N, 3, H, W) -> the dimensions (N, 6), as `describe` gives them."""
    average = dimensions.averages(model.config.pairs)
    return lambda images: pair_values(model, model.vectors(model.maps(images), None)) @ average


@torch.no_grad()
def falls(values: Values, paths: list[Path], kinds: list[str], side: int = 256) -> dict[str, np.ndarray]:
    """Kind -> how far each dimension falls, mean over the five levels, on each photograph: (photographs, 6)."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for number, path in enumerate(tqdm(paths, desc="dimensions", leave=False)):
        image = load([path])
        y, x = ((extent - side) // 2 // 8 * 8 for extent in image.shape[-2:])
        clean = image[..., y : y + side, x : x + side]
        before = values(clean)
        for kind in kinds:
            generator = torch.Generator().manual_seed(number)
            levels = distortions.degrade(LADDERS[kind], clean.expand(5, -1, -1, -1), torch.arange(5.0), generator)
            found[kind].append((before - values(levels)).mean(0))
    return {kind: torch.stack(each).numpy() for kind, each in found.items()}


def own_falls_most(found: dict[str, np.ndarray], names: list[str]) -> dict[str, float]:
    """Dimension -> share of photographs and of its degradations at which it falls most of all; and "all"."""
    shares: dict[str, list[bool]] = {name: [] for name in names}
    for kind, change in found.items():
        own = dimensions.DIMENSION_OF[kind]
        shares[own] += (change.argmax(1) == names.index(own)).tolist()
    every = [most for own in shares.values() for most in own]
    return {"all": float(np.mean(every))} | {name: float(np.mean(own)) for name, own in shares.items() if own}


def report(model: BPCLIP, data: Path, photographs: int) -> str:
    """A row for each degradation: its dimension, how often that falls most, and the mean falls of all six."""
    names = list(dict.fromkeys(dimension for dimension, _, _ in model.config.pairs))
    paths = [photograph.path for photograph in split(clean_photographs(data))[1]][:photographs]
    kinds = [kind for kind in LADDERS if kind in dimensions.DIMENSION_OF]
    found = falls(dimension_values(model), paths, kinds)
    rows = []
    for kind in sorted(kinds, key=lambda kind: names.index(dimensions.DIMENSION_OF[kind])):
        share = own_falls_most({kind: found[kind]}, names)["all"]
        means = [f"{mean:.3f}" for mean in found[kind].mean(0)]
        rows.append([kind.replace("_", " "), dimensions.DIMENSION_OF[kind], f"{share:.0%}", *means])
    shares = own_falls_most(found, names)
    summary = table(
        ["own dimension falls most", *shares], [["share of photographs", *(f"{x:.0%}" for x in shares.values())]]
    )
    details = table(["along", "dimension", "falls most", *names], rows)
    return f"{len(paths)} photographs. {machine()}.\n\n{summary}\n\n{details}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of pristine/")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--photographs", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--publish", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    text = report(create_model("bpclip-mini", weights=args.weights), args.data, args.photographs)
    print(text)
    if args.publish:
        write_between(README, "dimensions", text)


if __name__ == "__main__":
    main()
