"""What a run of fine-tuning draws its batches from, and the batches: number n is the same whenever it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import WeightsError
from ..models.weights import read_tensors
from . import batches
from .batches import Crops, LabelledCrops, ScoredPictures
from .config import FinetuneConfig
from .parts import Parts, checked_parts, initial_seen

Draws = tuple[np.random.Generator, torch.Generator]
CENTRE, LADDER, SCORED, TWINS, PAIR, PREDICTION = range(6)  # kinds of draws, which must not repeat each other


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on; None where no objective asks for it."""

    crops: Crops | None
    """Clean crops, to be degraded."""
    scored: ScoredPictures | LabelledCrops | None
    """Human-scored pictures, of which crops are drawn."""
    denoised: dict[str, Tensor] | None
    """`degraded` and `clean` predictions (N, 3, s, s) uint8 and the `severity` (N,) of the degradation."""
    parts: Parts
    """All pictures, split."""
    seen: set[str] | None
    """Digests of the pictures that the initial weights have learnt from; None if nobody knows."""


def gather(config: FinetuneConfig) -> TrainingData:
    """Read, check and cut everything before the first step; deterministic for a seed.

    Raises:
        FileNotFoundError: the data folder lacks pictures or scores.
        ValueError: as `checked_parts` and `read_predictions`.
        WeightsError: the file of the teacher or of the denoised predictions cannot be used.
    """
    rng = np.random.default_rng(config.seed)
    denoised = read_predictions(config.denoised, config.crop) if config.denoised else None
    parts = checked_parts(config)
    crops = Crops(parts.clean, config.crop + 16, config.cut, rng) if config.degrades else None
    scored = None
    if config.uses_mos and config.teacher:
        scored = LabelledCrops(parts.learnt, config.teacher, config.scored_crop, rng, config.working_side)
    elif config.uses_mos:
        scored = ScoredPictures(parts.learnt, config.scored_crop, config.working_side, config.vertical)
    return TrainingData(crops, scored, denoised, parts, initial_seen(config))


def read_predictions(path: Path, side: int | None = None) -> dict[str, Tensor]:
    """A cache of denoised predictions: `clean` and `degraded` (N, 3, s, s) uint8, `severity` (N,).

    Args:
        path: the file.
        side: what s has to be, in px; None for anything.

    Raises:
        ValueError: s is another.
        WeightsError: the file is missing, damaged, or holds something else.
    """
    cache = read_tensors(path)[0]
    got = cache["clean"].shape[-1] if "clean" in cache else side
    if side is not None and got != side:
        raise ValueError(f"the pictures in {path} are {got} px; expected {side}: use --crop {got}.")
    shapes = [tuple(cache[name].shape) if name in cache else None for name in ("clean", "degraded", "severity")]
    if None in shapes or shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[2] != shapes[0][:1]:
        raise WeightsError(
            f"{path} has clean, degraded and severity of the shapes {', '.join(map(str, shapes))}; expected two of "
            "(N, 3, s, s) and one of (N,), as recipes/demo_generator/denoised.py writes them."
        )
    return cache


def draws(config: FinetuneConfig, *place: int) -> Draws:
    """The random generators of one place of a run, such as (kind, batch, number in it)."""
    rng = np.random.default_rng([config.seed, *place])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


class BatchDataset(Dataset):
    """The batches of one process, by number: what a sample draws depends on the seed and its place in the whole run.

    So a run can be resumed anywhere, worker processes can make the batches, and several processes with b samples each
    see what one process with all of them would see.
    """

    def __init__(
        self, training_data: TrainingData, config: FinetuneConfig, process: int = 0, processes: int = 1
    ) -> None:
        self.training_data, self.config = training_data, config
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return self.config.steps * self.config.accumulate

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Batch number `number`; which entries there are follows from the weights in the config.

        Returns:
            ladders and originals (P R, 3, s, s), severities (P, R); scored (N, 3, o, o), labels (N,) in raw units and,
            for a full-reference model, references (N, 3, o, o); twins (P, 2, L, 3, s, s) and the order (P, L) of their
            levels; better, worse (M, 3, s, s) and cost (M,) of denoised predictions; degraded, clean (A, 3, s, s),
            severity (A,) and the step (A,) of the attack; about half of the last are denoised predictions too.
        """
        config, batch = self.config, {}
        if config.ranking_weight or config.severity_weight:
            batch |= self._collect(LADDER, config.ladders, number, self._ladder)
        if config.uses_mos:
            batch |= self._collect(SCORED, config.scored, number, self._scored)
        if config.prompt_weight:
            batch |= self._collect(TWINS, config.ladders, number, self._twins)
        if config.predicts:
            batch |= self._collect(PREDICTION, 2 * config.aligned, number, self._prediction)
        if config.aligns:
            batch |= self._collect(PAIR, config.aligned, number, self._pair)
        return batch

    def _collect(
        self, kind: int, count: int, number: int, make: Callable[[Draws, int], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Samples of one kind; `make` gets the draws of a place in the batch and the place in the whole run."""
        first, whole = self.process * count, self.processes * count
        rows = [
            make(draws(self.config, kind, number, first + place), number * whole + first + place)
            for place in range(count)
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _ladder(self, drawn: Draws, place: int) -> dict[str, Tensor]:
        config = self.config
        images, originals, severities = batches.ladders(
            self.training_data.crops, 1, config.ladder_levels, config.crop, *drawn
        )
        return {"ladders": images, "originals": originals, "severities": severities}

    def _scored(self, drawn: Draws, place: int) -> dict[str, Tensor]:
        scored = self.training_data.scored
        index = batches.visit(self.config.seed, SCORED, place, len(scored))
        image, label, reference = scored.draw(index, drawn[0])
        return {"scored": image, "labels": label} | ({} if reference is None else {"references": reference})

    def _twins(self, drawn: Draws, place: int) -> dict[str, Tensor]:
        crops, config = self.training_data.crops, self.config
        published = config.twins == "published"
        twins, order = batches.twin_ladders(crops, config.crop, config.levels, *drawn, published=published)
        return {"twins": twins[None], "order": order[None]}

    def _prediction(self, drawn: Draws, place: int) -> dict[str, Tensor]:
        cache = self.training_data.denoised
        pick = slice(row := int(drawn[0].integers(len(cache["severity"]))), row + 1)
        return {
            "worse": cache["degraded"][pick].float() / 255,
            "better": cache["clean"][pick].float() / 255,
            "cost": cache["severity"][pick],
        }

    def _pair(self, drawn: Draws, place: int) -> dict[str, Tensor]:
        if self.training_data.denoised is not None and drawn[0].random() < 0.5:
            one = self._prediction(drawn, place)
            degraded, clean, severity = one["worse"], one["better"], one["cost"]
        else:
            degraded, clean, severity = batches.pairs(self.training_data.crops, 1, self.config.crop, *drawn)
        step = torch.rand(1, generator=drawn[1]) * self.config.attack_step
        return {"degraded": degraded, "clean": clean, "severity": severity, "step": step}
