"""A small network that tells degradations and their strength apart; minus the strength it expects is its judgement.

    python benchmarks/degradation_judge.py --data DIR             # train, save, report on held-out photographs
    python benchmarks/degradation_judge.py --data DIR --report    # only report

It learns from clean photographs and benchmarks/degradations.py alone: no human score, no teacher, no ranking. It shares
neither code nor objective with the package's rewards, so a gain that it confirms was not bought from them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from degradations import NAMES, degrade
from photographs import SIZE, crops, split, to_tensor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights" / "degradation_judge.safetensors"
REPORT = HERE / "results" / "degradation_judge.json"
CLEAN_SHARE = 0.2


def _convolution(a: int, b: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class Network(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> logits of the kind (N, K), and the strength if it were that kind (N, K)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),  # half the resolution at once, with every pixel kept: noise and blocks live there
            _convolution(24, width, 1),
            _convolution(width, 2 * width, 2),
            _convolution(2 * width, 2 * width, 1),
            _convolution(2 * width, 4 * width, 2),
            _convolution(4 * width, 4 * width, 1),
        )
        self.head = nn.Sequential(nn.Linear(8 * width, 128), nn.ReLU(), nn.Linear(128, 2 * len(NAMES)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2] * 2 - 1
        detail = images - F.avg_pool2d(F.pad(images, [1] * 4, mode="replicate"), 3, 1)
        features = self.body(torch.cat([images, 4 * detail], 1)).float()
        variance, mean = torch.var_mean(features, (2, 3))
        logits, strengths = self.head(torch.cat([mean, (variance + 1e-3).log()], 1)).chunk(2, 1)
        return logits, torch.sigmoid(strengths)


def expected_strength(logits: Tensor, strengths: Tensor) -> Tensor:
    """(N,) in [0, 1]: the sum over kinds of probability times strength; clean has none."""
    return (logits.softmax(1)[:, 1:] * strengths[:, 1:]).sum(1)


class DegradationJudge:
    """Judge: images (N, 3, H, W) in [0, 1] -> (N,) float32, minus the expected strength of degradation (0 = none)."""

    name = "degradations"

    def __init__(self, weights: dict[str, Tensor] | None = None) -> None:
        self.network = Network().eval()
        self.network.load_state_dict(load_file(WEIGHTS) if weights is None else weights)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return -expected_strength(*self.network(images))


class CleanLogOdds(DegradationJudge):
    """The same network's log-odds of "clean" against every degradation, images (N, 3, H, W) in [0, 1] -> (N,) float32.

    Unlike the expected strength it does not saturate on pictures that it holds for nearly clean.
    """

    name = "log-odds of clean"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        logits, _ = self.network(images)
        return logits[:, 0] - logits[:, 1:].logsumexp(1)


class Examples:
    """Endless degraded crops: images (N, 3, side, side), kinds (N,), strengths (N,)."""

    def __init__(self, paths: list[Path], per_photo: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clean = []
        for path in tqdm(paths, desc="crops", leave=False):
            self.clean += [np.asarray(c) for c in crops(path, per_photo * 3 // 4, self.rng)]
            self.clean += [np.asarray(c) for c in crops(path, per_photo - per_photo * 3 // 4, self.rng, scales=False)]

    def batch(self, size: int, side: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
        rng, images, kinds, strengths = self.rng, [], [], []
        for _ in range(size):
            image = np.rot90(self.clean[rng.integers(len(self.clean))], rng.integers(4))
            kind = 0 if rng.random() < CLEAN_SHARE else int(rng.integers(1, len(NAMES)))
            strength = rng.random() if kind else 0.0
            y, x = rng.integers(0, SIZE - side + 1, 2)
            images.append(degrade(image, NAMES[kind], strength, rng)[y : y + side, x : x + side])
            kinds.append(kind)
            strengths.append(strength)
        return to_tensor(images), torch.tensor(kinds), torch.tensor(strengths, dtype=torch.float32)


def loss_of(network: Network, images: Tensor, kinds: Tensor, strengths: Tensor) -> Tensor:
    logits, predicted = network(images)
    own = predicted.gather(1, kinds[:, None])[:, 0]
    regression = (own - strengths).abs()[kinds > 0].mean() + (
        expected_strength(logits, predicted) - strengths
    ).abs().mean()
    return F.cross_entropy(logits, kinds) + 2 * regression


def train(
    paths: list[Path], minutes: float, checkpoint: Path, batch: int = 64, side: int = 96, save_every: float = 60
) -> Network:
    """Train for so many minutes of processor time; an interrupted run goes on from its checkpoint."""
    torch.manual_seed(0)
    network = Network().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    spent = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        spent = state["seconds"]
    examples = Examples(paths, 16, seed=int(spent))
    budget, last, saved, running = minutes * 60, time.process_time(), time.time(), 0.0
    progress = tqdm(total=100, desc="training", unit="%")
    while spent < budget:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, spent / 10 + 0.1) * max(0.01, (1 + math.cos(math.pi * spent / budget)) / 2)
        images, kinds, strengths = examples.batch(batch, side)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(network, images.to(memory_format=torch.channels_last), kinds, strengths)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        running = 0.98 * running + 0.02 * loss.item() if running else loss.item()
        now = time.process_time()
        spent, last = spent + now - last, now
        progress.update(min(100, int(100 * spent / budget)) - progress.n)
        progress.set_postfix(loss=f"{running:.3f}")
        if time.time() - saved > save_every:
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "seconds": spent}
            torch.save(state, checkpoint)
            saved = time.time()
    checkpoint.unlink(missing_ok=True)
    return network.eval()


@torch.no_grad()
def evaluate(judge: DegradationJudge, paths: list[Path], count: int = 1200) -> dict[str, object]:
    """Accuracy of the kind, error of the strength, and how often a clean crop is put above its degraded twin."""
    examples = Examples(paths, 8, seed=1)
    rng, rows = np.random.default_rng(2), []
    for n in tqdm(range(count), desc="held-out", leave=False):
        clean = examples.clean[n % len(examples.clean)]
        kind, strength = 1 + n % (len(NAMES) - 1), rng.random()
        logits, strengths = judge.network(to_tensor([clean, degrade(clean, NAMES[kind], strength, rng)]))
        expected = expected_strength(logits, strengths)
        rows.append([kind, strength, logits[1].argmax(), expected[1], expected[0], logits[0].argmax()])
    kind, strength, guess, expected, clean, clean_guess = torch.tensor(rows).T
    visible = strength > 0.25
    return {
        "crops": count,
        "kind_accuracy": float((kind == guess)[visible].float().mean()),
        "clean_recall": float((clean_guess == 0).float().mean()),
        "strength_error": float((strength - expected).abs().mean()),
        "clean_above_degraded": {
            name: float((clean < expected)[visible & (kind == k)].float().mean()) for k, name in enumerate(NAMES) if k
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pristine/")
    parser.add_argument("--minutes", type=float, default=11, help="of processor time")
    parser.add_argument("--checkpoint", type=Path, default=Path("degradation_judge.pt"))
    parser.add_argument("--report", action="store_true", help="do not train")
    args = parser.parse_args()
    fit, held_out = split(args.data)
    if not args.report:
        network = train(fit, args.minutes, args.checkpoint)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, WEIGHTS)
    report = evaluate(DegradationJudge(), held_out)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
