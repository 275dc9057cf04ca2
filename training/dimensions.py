"""What BPCLIP's adjectives mean: the degradations along which each of its six dimensions falls.

A dimension of models/adjectives.csv is the mean over its pairs of half the difference between the cosines with the
positive and the negative adjective. Training brings it to `BEST` on a clean photograph and lets it fall by `FALL` along
a whole ladder of its own degradations. Of the dimension's pairs only those fall that have a word for the degradation:
an oversaturated picture is no longer natural, but it is not dull. Other dimensions stay where they are, except
"overall", which falls a little with everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import batches

WEIGHT = 10.0
"""Of all this next to the ranking of the scores."""
BEST = 0.08
FALL = 0.16
OVERALL = "overall"
OVERALL_SHARE = 0.3
"""Of `FALL`, how much "overall" falls with the degradations of other dimensions."""

WORDS: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {
    "sharpness": {
        ("clear", "sharp", "crisp", "detailed"): (
            *("gaussian_blur", "lens_blur", "motion_blur", "latent_softened"),
            *("pixelate", "enlarge", "enlarge_nearest", "enlarge_bilinear", "enlarge_bicubic", "enlarge_lanczos"),
        ),
        ("crisp", "detailed"): ("median", "bilateral", "non_local_means", "kuwahara"),
    },
    "noise": {
        ("clean", "smooth", "pure"): ("white_noise", "grain", "multiplicative_noise", "impulse_noise"),
        ("clean", "pure"): ("blotches",),
    },
    "brightness": {
        ("bright", "luminous"): ("darken",),
        ("well-exposed",): ("brighten",),
    },
    "colour": {
        ("colorful", "vivid"): ("desaturate",),
        ("natural",): ("oversaturate", "color_shift", "burn"),
    },
    "contrast": {
        ("contrasty", "rich"): ("flatten_contrast",),
        ("balanced",): ("harsh_contrast",),
    },
    OVERALL: {
        ("good", "excellent", "pristine", "stable"): (
            *("jpeg", "jpeg2000", "quantize", "sharpen", "gain_pattern", "ringing", "melt", "seams", "watermark"),
            *("latent_quantised", "latent_noise", "latent_sharpened", "latent_clipped", "round_trips"),
        ),
    },
}
"""Dimension -> positive adjectives that stop fitting -> degradations that do it."""

DIMENSION_OF = {kind: dimension for dimension, rows in WORDS.items() for kinds in rows.values() for kind in kinds}
"""Degradation -> the dimension that is about it."""


def fall_of_pairs(kind: str, pairs: Sequence[tuple[str, str, str]]) -> Tensor:
    """How far each pair falls along a whole ladder of one kind, (P,); its dimension falls by `FALL` in the mean."""
    own = DIMENSION_OF[kind]
    falling = next(words for words, kinds in WORDS[own].items() if kind in kinds)
    falls = torch.zeros(len(pairs))
    for place, (dimension, positive, _) in enumerate(pairs):
        if dimension == own and positive in falling:
            falls[place] = FALL * sum(pair[0] == own for pair in pairs) / len(falling)
        elif dimension == OVERALL != own:
            falls[place] = FALL * OVERALL_SHARE
    return falls


def wanted(kind: str, level: Tensor, pairs: Sequence[tuple[str, str, str]]) -> Tensor:
    """What the pairs should say of levels of one ladder.

    Args:
        kind: of the degradation.
        level: (L,) in [0, 4], below 0 for the clean picture.
        pairs: of the model's config.

    Returns:
        (L, P), half the difference of the cosines.
    """
    share = torch.where(level < 0, 0.0, (batches.severity(kind, level) / batches.severity(kind, torch.tensor(4.0))))
    return BEST - share[:, None] * fall_of_pairs(kind, pairs)


def averages(pairs: Sequence[tuple[str, str, str]]) -> Tensor:
    """The matrix (P, D) that takes pairs to the means of their dimensions, in the order in which these come."""
    names = list(dict.fromkeys(dimension for dimension, _, _ in pairs))
    member = torch.tensor([[float(pair[0] == name) for name in names] for pair in pairs])
    return member / member.sum(0)


def meaning(values: Tensor, target: Tensor, average: Tensor) -> Tensor:
    """How far pairs are from what they should say of ladders, in units of a whole ladder.

    Dimensions count as they are and, more, by how they change from the clean picture; single pairs count a little.

    Args:
        values: (..., L, P) halves of the differences of cosines; the first of L is the clean picture.
        target: of the same shape.
        average: (P, D) of `averages`.
    """
    error = (values - target) / FALL
    dimensions = error @ average
    changes = dimensions - dimensions[..., :1, :]

    def cost(x: Tensor) -> Tensor:
        return F.smooth_l1_loss(x, torch.zeros_like(x), beta=0.1)

    return WEIGHT * (cost(changes) + 0.5 * cost(dimensions) + 0.25 * cost(error))
