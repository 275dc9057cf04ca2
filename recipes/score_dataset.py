"""Score a whole data set into a table, 512 pixels high or wide; broken files are left out and named.

python recipes/score_dataset.py photos/ scores.csv
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

import iqguide
from iqguide.errors import ImageError
from iqguide.pictures.listing import list_pictures
from iqguide.rerank import equal_sized


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("table", type=Path)
    args, device = parser.parse_args(arguments), "cuda" if torch.cuda.is_available() else "cpu"
    listing = list_pictures([args.folder])
    print(*listing.remarks(), sep="\n", file=sys.stderr)
    model, read = iqguide.create_model("tiny", device=device), []

    def images():
        for path in listing.files:
            try:
                yield iqguide.load_images(path, size=512)
                read.append(path)
            except ImageError as error:
                print(error, file=sys.stderr)

    if not (scores := [model(torch.cat(batch).to(device)) for batch in equal_sized(images(), 16)]):
        parser.error(f"{args.folder} holds no picture that can be read; expected a folder of pictures.")
    with args.table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "score"), *zip(read, torch.cat(scores).tolist(), strict=True)])


if __name__ == "__main__":
    main()
