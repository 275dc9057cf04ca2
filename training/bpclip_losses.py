"""What every training of a BPCLIP learns from: ladders, what the adjectives should say of them, people's scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.bpclip import BPCLIP
from ..models.raw_scale import raw_units
from . import dimensions, objectives

SEVERITY_WEIGHT = 0.1
OVERALL_WEIGHT = 0.5
"""Of how well the last dimension, "overall", agrees with people."""


def pair_values(model: BPCLIP, vectors: Tensor) -> Tensor:
    """Half the difference of both cosines of each pair, mean over the levels: vectors (N, levels, E) -> (N, P)."""
    cosines = model.cosines(vectors).mean(1)
    return (cosines[:, 0::2] - cosines[:, 1::2]) / 2


def readings(model: BPCLIP, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N,) in the units of `raw_units`, which are those of `tiny`, and pairs (N, P) of the levels' vectors."""
    return raw_units(100 * model.judge(vectors)), pair_values(model, vectors)


def of_ladders(
    read: tuple[Tensor, Tensor], severities: Tensor, wanted: Tensor, average: Tensor, slope: float
) -> dict[str, Tensor]:
    """Order and severity of the levels of each ladder, and what the adjectives say of them.

    Args:
        read: scores (A R,) and pairs (A R, P) of A ladders with R levels, as from `readings`.
        severities: (A, R), the first of each row 0: the clean picture.
        wanted: (A, R, P) of `dimensions.wanted`.
        average: of `dimensions.averages`.
        slope: margin of the ranking per unit of severity.
    """
    scores, pairs = read[0].view(severities.shape), read[1].view(wanted.shape)
    return {
        "ranking": objectives.ladder_ranking(scores, severities, slope),
        "severity": SEVERITY_WEIGHT * F.smooth_l1_loss(scores, -severities),
        "meaning": dimensions.meaning(pairs, wanted, average),
    }


def of_scored(read: tuple[Tensor, Tensor], labels: Tensor, average: Tensor, values: bool) -> Tensor:
    """Agreement with people.

    Args:
        read: scores (N,) and pairs (N, P), as from `readings`.
        labels: (N,) in raw units.
        average: of `dimensions.averages`.
        values: whether the values count besides the order; not for a data set whose scale is another one.
    """
    scores, pairs = read
    overall = (pairs @ average)[:, -1]
    loss = 2 * objectives.correlation(scores, labels) + OVERALL_WEIGHT * objectives.correlation(overall, labels)
    return loss + F.smooth_l1_loss(scores, labels) if values else loss


def total(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of losses of the same name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).sum() for name in names}
