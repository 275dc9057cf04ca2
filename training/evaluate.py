"""Scoring a data set, on one process or on several under accelerate, and summing up how well the scores agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import nn
from tqdm import tqdm

from ..images import WorkingSize, load_images
from ..pictures.opening import check_headers
from .correlation import correlations, intervals
from .sample import Sample
from .splits import named_split, official_split, seeded_splits


def distributed_device() -> tuple[torch.device | None, bool]:
    """The device of this process where accelerate runs several, else None; and whether this is the main process.

    The first to ask accelerate, which is told as by its own `Accelerator` whether the processes run on CPUs.

    Raises:
        ValueError: torchrun has started several, and accelerate finds no accelerators for them.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if launched > state.num_processes:  # each would do all of the work
        raise ValueError(
            f"this is one of {launched} processes, and there is no accelerator for them; set ACCELERATE_USE_CPU=true to"
            " run them on the CPU, or start one process."
        )
    return (state.device if state.num_processes > 1 else None), state.is_main_process


@torch.no_grad()
def score_samples(
    model: nn.Module, samples: Sequence[Sample], size: WorkingSize, device: torch.device, full_reference: bool
) -> np.ndarray:
    """The model's score of each sample, in order; every process gets all of them.

    Args:
        model: images, and references where it takes them -> (N,); on the device.
        samples: what to score.
        size: between which short sides pictures are scored.
        device: of the model.
        full_reference: whether the model compares with the samples' references.

    Returns:
        (N,) float64.

    Raises:
        ValueError: a sample lacks the reference, a file cannot be read, or the model says NaN.
    """
    bare = [sample.image.name for sample in samples if sample.reference is None]
    if full_reference and bare:
        raise ValueError(f"{bare[0]} has no reference, which this model needs; choose another data set or model.")
    check_headers(path for s in samples for path in ((s.image, s.reference) if full_reference else (s.image,)))
    state = PartialState()
    mine = range(state.process_index, len(samples), state.num_processes)
    scores = []
    for index in tqdm(mine, desc="scoring", unit="image", disable=not state.is_main_process, delay=1):
        sample = samples[index]
        pictures = [load_images(sample.image, size=size).to(device)]
        if full_reference:
            pictures.append(load_images(sample.reference, size=size).to(device))
        score = model(*pictures).item()
        if score != score:
            raise ValueError(f"{sample.image} has the score NaN; look at the weights of the model.")
        scores.append((index, score))
    everything = gather_object(scores)
    return np.array([score for _, score in sorted(everything)])


def chosen(samples: Sequence[Sample], protocol: str, dataset: str = "csv") -> list[int]:
    """Indices of the samples that a protocol looks at.

    Args:
        samples: the whole data set.
        protocol: "all" and "ten" for all of them, "test" for the official test part; what else `named_split` takes for
            the test part of that split.
        dataset: its name.

    Raises:
        ValueError, FileNotFoundError: there is no such part; see `named_split`.
    """
    if protocol in ("all", "ten"):
        return list(range(len(samples)))
    if protocol == "test":
        return official_split(samples)[1].tolist()
    return named_split(list(samples), protocol, dataset)[1].tolist()


def summarise(
    samples: Sequence[Sample], scores: np.ndarray, protocol: str, draws: int = 1000, parameters: int = 4
) -> dict[str, Any]:
    """How well scores agree with people.

    Args:
        samples: what was scored.
        scores: (N,).
        protocol: "all" or "test": correlations over the samples given, with bootstrap intervals; "ten": mean over the
            test parts of ten seeded splits by group (a fifth of the groups each), with their standard deviation.
        draws: of the bootstrap; 0 for no intervals.
        parameters: of the logistic before PLCC, 4 or 5.

    Returns:
        `srcc`, `plcc` (scores as they are), `plcc_fitted` (after the logistic, fitted to the same pictures),
        `krcc`, `pairwise`, `n`; and `intervals` by name, or `std` by name and `splits`.

    Raises:
        ValueError: too few pictures, or scores that do not vary.
    """
    mos = np.array([sample.normalised_mos for sample in samples])
    if protocol != "ten":
        figures: dict[str, Any] = correlations(scores, mos, parameters)
        if draws:
            groups = [sample.group or str(sample.image) for sample in samples]
            figures["intervals"] = intervals(scores, mos, groups, draws, parameters=parameters)
        return figures
    splits = [correlations(scores[test], mos[test], parameters) for _, test in seeded_splits(samples)]
    names = ("srcc", "plcc", "plcc_fitted", "krcc", "pairwise")
    figures = {name: float(np.mean([split[name] for split in splits])) for name in names}
    figures["n"] = len(samples)
    figures["std"] = {name: float(np.std([split[name] for split in splits], ddof=1)) for name in names}
    return figures | {"splits": splits}
