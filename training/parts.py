"""The pictures of a run, split once: what is learnt from, what chooses the best checkpoint, what is held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tqdm import tqdm

from ..images import MIN_SIDE
from .config import FinetuneConfig
from .data import Photograph, clean_photographs, read_with_reference, scored_photographs, split
from .datasets import load_dataset
from .seen import read_seen, short_digest
from .splits import named_split, seeded_splits

logger = logging.getLogger(__name__)
FEWEST = 5
"""Pictures to choose a checkpoint by."""


@dataclass(frozen=True)
class Parts:
    """Clean photographs and human-scored pictures; empty where a run has no use for them."""

    clean: list[Photograph]
    """To be degraded."""
    clean_held_out: list[Photograph]
    """For the scale of the margin and the ladders of the closing measurement."""
    learnt: list[Photograph]
    """Scored pictures to learn from."""
    validation: list[Photograph]
    """Scored pictures that choose the best checkpoint; none of which the initial weights have seen."""
    held_out: list[Photograph]
    """Scored pictures for the closing measurement."""

    def fingerprint(self) -> str:
        """A digest of names, sizes and scores of all pictures: another list of pictures has another one."""
        digest = hashlib.sha256()
        for part in vars(self).values():
            for picture in part:
                line = f"{picture.path.name}\t{picture.path.stat().st_size}\t{picture.mos!r}\t{picture.reference}\n"
                digest.update(line.encode())
            digest.update(b"\n")
        return digest.hexdigest()


def uses_clean(config: FinetuneConfig) -> bool:
    """Whether a run ends on clean photographs, which give the margin its scale."""
    return config.fits_score or config.clean is not None or (config.data / "pristine").is_dir()


def uses_scores(config: FinetuneConfig) -> bool:
    """Whether a run ends on scored pictures, which give the score of `tiny` its scale and are measured on."""
    own = not config.full_reference and (config.data / "live-challenge").is_dir()  # which has no references
    return config.fits_score or bool(config.dataset) or own


def scored_parts(config: FinetuneConfig) -> tuple[list[Photograph], list[Photograph], list[Photograph]]:
    """Human-scored photographs to learn from, to choose the best checkpoint by, and held out.

    A data folder's own are split as in `split`. Held out of a data set is its official test part, else that of the
    first seeded split, or what `config.split` says. A share of the groups that are not held out chooses the best
    checkpoint; a data set's official validation part goes before it.

    Raises:
        FileNotFoundError: as `load_dataset`.
        ValueError: as `load_dataset` and `named_split`, a picture without the reference that is asked for, or fewer
            than five pictures to choose by.
    """
    validation = config.validation
    if not config.dataset:
        seed = int(config.split) if config.split.isdecimal() else 0
        if config.split and not config.split.isdecimal():
            raise ValueError(f"split is {config.split!r}; a data folder has seeded ones only: give a number or none.")
        kept, held_out = split(scored_photographs(config.data), seed)
        learnt, chosen_by = split(kept, 1, validation) if validation else (kept, [])
    else:
        samples = load_dataset(config.dataset, config.root, config.scale, config.lower_is_better)
        train, test = named_split(samples, config.split, config.dataset)
        aside = [n for n in train if samples[n].part == "validation"] if not config.split else []
        if validation and not aside:
            rest = [samples[n] for n in train]
            aside = train[seeded_splits(rest, 1, validation)[0][1]].tolist()
        parts = ([n for n in train if n not in set(aside)], aside if validation else [], test)
        reference = config.full_reference
        photographs = [Photograph(s.image, 100 * s.normalised_mos, s.reference if reference else None) for s in samples]
        learnt, chosen_by, held_out = ([photographs[n] for n in part] for part in parts)
    if config.full_reference:
        _require_references([*learnt, *chosen_by, *held_out])
    if validation and len(chosen_by) < FEWEST:
        raise ValueError(
            f"a validation share of {validation:g} is {len(chosen_by)} pictures; expected five or more: "
            "give more pictures, a larger share, or 0 to keep the last checkpoint."
        )
    return learnt, chosen_by, held_out


def checked_parts(config: FinetuneConfig) -> Parts:
    """All pictures of a run, read once.

    Held-out pictures, which are read after the last step, are opened here, so that none of them can end a run without
    its result. Pictures that the initial weights have learnt from do not choose the best checkpoint: they move to the
    training part, and without enough others the last checkpoint is the result, which is said.

    Raises:
        FileNotFoundError: the data folder lacks pictures or scores.
        ValueError: a table of scores or a picture is damaged, a picture is too small, references are missing, or there
            are too few pictures to hold some out.
        WeightsError: the file to start from is missing or damaged.
    """
    parts = Parts([], [], [], [], [])
    if config.uses_mos or config.validation or uses_scores(config):
        learnt, validation, held_out = scored_parts(config)
        if config.uses_mos or config.fits_score:  # whose score is fitted to them
            _require(learnt, 2, "scored pictures are left to learn from")
        _require(held_out, 2, "scored pictures are held out")
        for photograph in tqdm([*learnt, *validation, *held_out], desc="scored pictures"):
            _require_readable(photograph)
        parts = replace(parts, learnt=learnt, validation=validation, held_out=held_out)
    if config.degrades or uses_clean(config):
        clean, aside = split(clean_photographs(config.data, config.clean))
        if uses_clean(config):
            _require(aside, 2, "clean photographs are held out")
        parts = replace(parts, clean=clean, clean_held_out=aside)
    return without_seen(parts, initial_seen(config)) if config.validation else parts


def initial_seen(config: FinetuneConfig) -> set[str] | None:
    """Digests of the pictures that the weights to start from have learnt from; None if nobody knows."""
    return set() if config.init is None else read_seen(config.model, config.init)


def without_seen(parts: Parts, seen: set[str] | None) -> Parts:
    """The parts with only such pictures to choose by as the initial weights have not learnt from."""
    if seen is None:
        logger.warning(
            "The initial weights do not say which pictures they have learnt from, so a validation figure would mean "
            "nothing: the last checkpoint is the result."
        )
        return replace(parts, learnt=[*parts.learnt, *parts.validation], validation=[])
    known = [short_digest(photograph.path) in seen for photograph in parts.validation]
    fresh = [p for p, old in zip(parts.validation, known, strict=True) if not old]
    learnt = [*parts.learnt, *(p for p, old in zip(parts.validation, known, strict=True) if old)]
    if len(fresh) < FEWEST:
        logger.warning(
            "The initial weights have learnt from %d of the %d validation pictures, so their figure means nothing: the "
            "last checkpoint is the result.",
            sum(known),
            len(known),
        )
        return replace(parts, learnt=[*learnt, *fresh], validation=[])
    return replace(parts, learnt=learnt, validation=fresh)


def _require(photographs: list[Photograph], count: int, what: str) -> None:
    if len(photographs) < count:
        raise ValueError(f"{len(photographs)} {what}; expected {count} or more: give ten or more different pictures.")


def _require_readable(photograph: Photograph) -> None:
    size = read_with_reference(photograph)[0].size
    if min(size) < MIN_SIDE:
        raise ValueError(
            f"{photograph.path} is {size[0]}x{size[1]} px; expected {MIN_SIDE} or more on the short side: leave it out."
        )


def _require_references(photographs: Iterable[Photograph]) -> None:
    bare = [photograph.path for photograph in photographs if photograph.reference is None]
    if bare:
        raise ValueError(
            f"{bare[0]} has no reference, which a full-reference model needs: give dataset and root of pictures that "
            "have one, or set mos_weight, squared_weight and validation to 0 and give no dataset."
        )
