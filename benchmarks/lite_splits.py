"""`lite` and the `tiny` it teaches, trained anew for ten splits and with whole kinds of degradations left out.

    python benchmarks/lite_splits.py --data DIR --caches CACHES --out runs/splits --splits 0 1 2 3 4 5 6 7 8 9
    python benchmarks/lite_splits.py --data DIR --caches CACHES --out runs/without --without enlargement autoencoder

Every run is shorter than that of the weights that come with the package. OUT/figures.json has, of each run, SRCC over
the held-out part of both sets and the share of steps that fall, by kind and by group, on held-out photographs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from iqguide import create_model
from iqguide.errors import atomic_write
from iqguide.training import teach, train_lite
from iqguide.training.calibrate_pictures import falling, falling_live, measure
from iqguide.training.kinds import all_kinds
from iqguide.training.ladder_cache import LadderCache, read_cache
from iqguide.training.ladder_draws import NOT_LIVE
from iqguide.training.pictures import Pictures, read_pictures

Figures = dict[str, float | dict[str, float]]


def figures(model: nn.Module, pictures: Pictures, caches: list[LadderCache], bf16: bool) -> Figures:
    """What OUT/figures.json says of one model."""
    kinds = [kind for kind in all_kinds() if kind.name not in NOT_LIVE]
    live = falling_live(model, pictures, kinds, bf16)
    held_out = {name for name, kept in zip(pictures.names, pictures.kept, strict=True) if not kept}
    cached: dict[str, list[float]] = {}
    for cache in caches:
        part = cache.part(np.array([source in held_out for source in cache.sources]))
        for group, share in (falling(model, part, bf16) if part.kinds else {}).items():
            cached.setdefault(group, []).append(share)
    groups: dict[str, list[float]] = {}
    for kind in kinds:
        groups.setdefault(kind.group, []).append(live[kind.name])
    return {
        **measure(model, pictures, bf16), "live kinds": live,
        "live groups": {name: float(np.mean(shares)) for name, shares in groups.items()},
        "cached groups": {name: float(np.mean(shares)) for name, shares in cached.items()},
    }  # fmt: skip


def run(
    args: argparse.Namespace, name: str, extra: list[str], pictures: Pictures, caches: list[LadderCache]
) -> Figures:
    """Train both models as one line of the sweep asks, and measure them."""
    began, out = time.monotonic(), args.out / name
    common = ["--data", str(args.data), "--out", str(out), "--caches", *map(str, args.caches), *extra]
    common += ["--bf16"] if args.bf16 else []
    clock = [["--seconds", str(share * args.seconds)] if args.seconds else [] for share in (0.6, 0.4)]
    lite = train_lite.parse([*common, *clock[0], *args.lite_flags.split()])
    train_lite.train(lite, pictures)
    tiny = teach.parse([*common, *clock[1], "--teacher", str(out / "lite.safetensors"), *args.tiny_flags.split()])
    teach.teach(tiny, pictures)
    device = pictures.images[0].device
    record = {}
    for model in ("lite", "tiny"):
        made = create_model(model, weights=out / f"{model}.safetensors", device=device)
        record[model] = figures(made.to(memory_format=torch.channels_last), pictures, caches, args.bf16)
    return {**record, "seconds": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--caches", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, nargs="*", default=[])
    parser.add_argument("--without", nargs="*", default=[], help="groups, each left out in a run of its own")
    parser.add_argument("--seconds", type=float, default=0, help="of each run, measuring not counted; 0: go by steps")
    parser.add_argument("--lite-flags", default="--steps 600", help="of training.train_lite (%(default)s)")
    parser.add_argument("--tiny-flags", default="--steps 1000", help="of training.teach (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    whole = read_pictures(args.data, 0, args.device)
    caches = [read_cache(path) for path in args.caches]
    jobs = [(f"without-{group}", 0, ["--without", group]) for group in args.without]
    jobs += [(f"split-{number}", number, ["--split", str(number)]) for number in args.splits]
    path = args.out / "figures.json"
    records = json.loads(path.read_text()) if path.is_file() else {}
    for name, split, extra in jobs:
        if name not in records:
            records[name] = run(args, name, extra, whole.split(split), caches)
            atomic_write(path, f"{json.dumps(records, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
