"""Score every picture below a folder and print them best first.

python recipes/score_folder.py photos/
"""

import argparse
import sys
from pathlib import Path

import torch

import iqguide
from iqguide.pictures.listing import list_pictures
from iqguide.rewards import working_size


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny", choices=iqguide.list_models())
    parser.add_argument("--size", type=int, help="resize the short side to this many pixels first")
    args = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, listing = iqguide.create_model(args.model, device=device), list_pictures([args.folder])
    print(*listing.remarks(), sep="\n", file=sys.stderr)
    scores: dict[Path, float] = {}
    for path in listing.files:
        try:
            scores[path] = model(iqguide.load_images(path, size=args.size or working_size(model)).to(device)).item()
        except ValueError as error:
            print(error, file=sys.stderr)
    for path in sorted(scores, key=scores.get, reverse=True):
        print(f"{scores[path]:.3f}  {path}")


if __name__ == "__main__":
    main()
