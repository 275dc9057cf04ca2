"""`iqguide models`: the quality models, their licences, and whether their weights are on this machine."""

from __future__ import annotations

import argparse
import json

from ..models import MODELS, is_cached
from .console import OK


def run_models(options: argparse.Namespace) -> int:
    """Print what there is: weights here or not, licence, paper."""
    rows = []
    for spec in MODELS.values():
        here = "bundled" if spec.bundled else "cached"
        if not is_cached(spec):
            here = "missing" if spec.bundled else "not downloaded" if spec.trained else "not trained"
        row = {"name": spec.name, "weights": here, "megabytes": spec.megabytes}
        row |= {"native_size": spec.native_size, "least_size": spec.least_size}
        rows.append({**row, "licence": spec.licence, "paper": spec.paper, "summary": spec.summary})
    if options.json:
        print(json.dumps(rows, indent=1))
        return OK
    for row in rows:
        size = f"{row['megabytes']} MB" if row["megabytes"] else ""
        limit = f"{row['native_size']} px" if row["native_size"] else "any size"
        limit = f"{row['least_size']}-{limit}" if row["least_size"] else limit
        print(f"{row['name']:<20} {row['weights']:<15} {size:<8} {limit:<11} {row['licence']}")
        print(f"{'':<20} {row['summary']}" + (f"; {row['paper']}" if row["paper"] else ""))
    return OK
