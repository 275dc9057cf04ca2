"""Score a whole data set into a table, at the model's working size; broken files are left out and named.

python recipes/score_dataset.py photos/ scores.csv
"""

import argparse
import csv
import logging
from pathlib import Path

import iqguide
from iqguide.pictures.listing import list_pictures
from iqguide.rewards import working_size
from iqguide.spreadsheets import safe_row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("table", type=Path, help="a new file")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    if args.table.exists():
        parser.error(f"{args.table} exists already; choose another name.")
    model, listing = iqguide.create_model("tiny", device=args.device), list_pictures([args.folder])
    logging.warning("\n".join(listing.remarks()))
    rows = [("path", "score")]
    for path in listing.files:
        try:
            rows.append((path, model(iqguide.load_images(path, size=working_size(model)).to(args.device)).item()))
        except ValueError as error:
            logging.warning(error)
    if len(rows) == 1:
        parser.error(f"{args.folder} holds no picture that can be read; expected a folder of pictures.")
    with args.table.open("x", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(map(safe_row, rows))


if __name__ == "__main__":
    main()
