"""The scores that the bundled models give human-scored photographs, for `iqguide.models.meaning`.

    python benchmarks/percentiles.py --data DIR --models lite tiny bpclip-mini

Writes models/assets/percentiles.json: of each model the scores at 0, 1, ..., 100 percent of the part of
live-challenge that was held out of their training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from iqguide import create_model
from iqguide.images import load_images
from iqguide.models.meaning import TABLE
from iqguide.rewards import working_size
from iqguide.training.data import Photograph, scored_photographs, split


@torch.no_grad()
def quantiles(name: str, photographs: list[Photograph]) -> list[float]:
    """Scores at each percent of the photographs, rising."""
    model = create_model(name).to(memory_format=torch.channels_last)
    size = working_size(model)
    scores = [model(load_images(photograph.path, size=size)).item() for photograph in tqdm(photographs, desc=name)]
    return [round(float(value), 5) for value in np.percentile(scores, np.arange(101))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["lite", "tiny", "bpclip-mini"])
    args = parser.parse_args()
    known = json.loads(TABLE.read_text("utf-8")) if TABLE.is_file() else {}
    known |= {name: quantiles(name, split(scored_photographs(args.data))[1]) for name in args.models}
    rows = [f" {json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(known.items())]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
