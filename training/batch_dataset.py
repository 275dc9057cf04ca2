"""What a run of fine-tuning draws its batches from, and the batches: number n is the same whenever it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import WeightsError
from ..images import MIN_SIDE
from ..models.weights import read_weights
from . import batches, calibrate
from .batches import Crops, ScoredCrops
from .config import FinetuneConfig
from .data import Photograph, clean_photographs, read_with_reference, scored_parts, split

Draws = tuple[np.random.Generator, torch.Generator]
CENTRE, LADDER, SCORED, TWINS, PAIR, PREDICTION = range(6)  # kinds of draws, which must not repeat each other


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on; None where no objective asks for it."""

    crops: Crops | None
    """Clean crops, to be degraded."""
    scored: ScoredCrops | None
    """Human-scored crops."""
    denoised: dict[str, Tensor] | None
    """`degraded` and `clean` predictions (N, 3, s, s) uint8 and the `severity` (N,) of the degradation."""
    validation: list[Photograph]
    """Scored pictures that choose the best checkpoint."""


def gather(config: FinetuneConfig) -> TrainingData:
    """Read, check and cut everything before the first step; deterministic for a seed.

    Raises:
        FileNotFoundError: the data folder lacks pictures or scores.
        ValueError: as `checked_parts` and `read_predictions`.
        WeightsError: the file of the teacher or of the denoised predictions cannot be used.
    """
    rng = np.random.default_rng(config.seed)
    denoised = read_predictions(config.denoised, config.crop) if config.denoised else None
    clean, scored, validation = checked_parts(config)
    crops = Crops(clean, config.crop + 16, config.cut, rng) if _degrades(config) else None
    scored_crops = batches.scored_crops(scored, config.teacher, config.scored_crop, rng) if _uses_mos(config) else None
    return TrainingData(crops, scored_crops, denoised, validation)


def read_predictions(path: Path, side: int | None = None) -> dict[str, Tensor]:
    """A cache of denoised predictions: `clean` and `degraded` (N, 3, s, s) uint8, `severity` (N,).

    Args:
        path: the file.
        side: what s has to be, in px; None for anything.

    Raises:
        ValueError: s is another.
        WeightsError: the file is missing, damaged, or holds something else.
    """
    found = read_weights(path)[0]
    got = found["clean"].shape[-1] if "clean" in found else side
    if side is not None and got != side:
        raise ValueError(f"the pictures in {path} are {got} px; expected {side}: use --crop {got}.")
    shapes = [tuple(found[name].shape) if name in found else None for name in ("clean", "degraded", "severity")]
    if None in shapes or shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[2] != shapes[0][:1]:
        raise WeightsError(
            f"{path} has clean, degraded and severity of the shapes {', '.join(map(str, shapes))}; expected two of "
            "(N, 3, s, s) and one of (N,), as recipes/demo_generator/denoised.py writes them."
        )
    return found


def checked_parts(config: FinetuneConfig) -> tuple[list[Photograph], list[Photograph], list[Photograph]]:
    """The clean photographs and the scored pictures to learn from, and those that choose the best checkpoint.

    Held-out pictures, which `calibrate` and `measure` read after the last step, are opened here, so that none of them
    can end a run without its result.

    Raises:
        FileNotFoundError: the data folder lacks pictures or scores.
        ValueError: a table of scores or a picture is damaged, a picture is too small, references are missing, or there
            are too few pictures to hold some out.
    """
    clean: list[Photograph] = []
    scored: list[Photograph] = []
    validation: list[Photograph] = []
    if _uses_mos(config) or config.validation or calibrate.uses_scores(config):
        scored, validation, held_out = scored_parts(
            config.data, config.dataset, config.root, config.validation, config.full_reference
        )
        if _uses_mos(config) or config.model == "tiny":  # whose score is fitted to them
            _require(scored, 2, "scored pictures are left to learn from")
        _require(held_out, 2, "scored pictures are held out")
        for photograph in tqdm([*scored, *validation, *held_out], desc="scored pictures"):
            _require_readable(photograph)
    if _degrades(config) or calibrate.uses_clean(config):
        clean, aside = split(clean_photographs(config.data, config.clean))
        if calibrate.uses_clean(config):
            _require(aside, 2, "clean photographs are held out")
    return clean, scored, validation


def _require(photographs: list[Photograph], count: int, what: str) -> None:
    if len(photographs) < count:
        raise ValueError(f"{len(photographs)} {what}; expected {count} or more: give ten or more different pictures.")


def _require_readable(photograph: Photograph) -> None:
    size = read_with_reference(photograph)[0].size
    if min(size) < MIN_SIDE:
        raise ValueError(
            f"{photograph.path} is {size[0]}x{size[1]} px; expected {MIN_SIDE} or more on the short side: leave it out."
        )


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
        config, found = self.config, {}
        if config.ranking_weight or config.severity_weight:
            found |= self._collect(LADDER, config.ladders, number, self._ladder)
        if _uses_mos(config):
            found |= self._collect(SCORED, config.scored, number, self._scored)
        if config.prompt_weight:
            found |= self._collect(TWINS, config.ladders, number, self._twins)
        if config.predicts:
            found |= self._collect(PREDICTION, 2 * config.aligned, number, self._prediction)
        if config.aligns:
            found |= self._collect(PAIR, config.aligned, number, self._pair)
        return found

    def _collect(
        self, kind: int, count: int, number: int, make: Callable[[Draws], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        first = self.process * count
        rows = [make(draws(self.config, kind, number, first + place)) for place in range(count)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _ladder(self, drawn: Draws) -> dict[str, Tensor]:
        config = self.config
        images, originals, severities = batches.ladders(
            self.training_data.crops, 1, config.ladder_levels, config.crop, *drawn
        )
        return {"ladders": images, "originals": originals, "severities": severities}

    def _scored(self, drawn: Draws) -> dict[str, Tensor]:
        images, labels, references = self.training_data.scored.batch(1, drawn[0])
        found = {"scored": images, "labels": labels}
        return found if references is None else found | {"references": references}

    def _twins(self, drawn: Draws) -> dict[str, Tensor]:
        crops, config = self.training_data.crops, self.config
        published = config.twins == "published"
        twins, order = batches.twin_ladders(crops, config.crop, config.levels, *drawn, published=published)
        return {"twins": twins[None], "order": order[None]}

    def _prediction(self, drawn: Draws) -> dict[str, Tensor]:
        cache = self.training_data.denoised
        pick = slice(row := int(drawn[0].integers(len(cache["severity"]))), row + 1)
        return {
            "worse": cache["degraded"][pick].float() / 255,
            "better": cache["clean"][pick].float() / 255,
            "cost": cache["severity"][pick],
        }

    def _pair(self, drawn: Draws) -> dict[str, Tensor]:
        if self.training_data.denoised is not None and drawn[0].random() < 0.5:
            one = self._prediction(drawn)
            degraded, clean, severity = one["worse"], one["better"], one["cost"]
        else:
            degraded, clean, severity = batches.pairs(self.training_data.crops, 1, self.config.crop, *drawn)
        step = torch.rand(1, generator=drawn[1]) * self.config.attack_step
        return {"degraded": degraded, "clean": clean, "severity": severity, "step": step}


def _uses_mos(config: FinetuneConfig) -> bool:
    return bool(config.mos_weight or config.squared_weight)


def _degrades(config: FinetuneConfig) -> bool:
    return bool(config.ranking_weight or config.severity_weight or config.prompt_weight or config.aligns)


def numbers(config: FinetuneConfig, step: int) -> Iterator[int]:
    """Numbers of the batches from a step on."""
    yield from range(step * config.accumulate, config.steps * config.accumulate)
