"""What the quality models are trained to do. Plain functions of scores and images, all differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def ladder_ranking(scores: Tensor, severity: Tensor, slope: float = 0.5) -> Tensor:
    """Less degraded crops of one photograph score higher, by a margin in proportion to the difference.

    Mean over all pairs i, j of one row with severity_i < severity_j of
    softplus(slope * (severity_j - severity_i) - (score_i - score_j)).

    Args:
        scores: (P, L), a row per photograph.
        severity: (P, L), how degraded each crop is; equal severities are not compared.
        slope: margin per unit of severity.

    Source:
        Agnolucci et al. (2024), "Quality-aware Image-Text Alignment for Opinion-Unaware Image Quality Assessment",
        https://arxiv.org/abs/2403.11176: ranking of increasingly degraded crops, there on similarities to prompts and
        with a fixed margin.
    """
    worse = severity[:, None, :] - severity[:, :, None]
    ahead = scores[:, :, None] - scores[:, None, :]
    chosen = worse > 1e-6
    return F.softplus(slope * worse[chosen] - ahead[chosen]).mean()


def consistency(scores: Tensor, twins: Tensor, margin: float = 0.2) -> Tensor:
    """Overlapping crops of one picture at one level score alike, up to a margin: mean of relu(|difference| - margin).

    Args:
        scores: (N,).
        twins: (N,), scores of the other crops.
        margin: difference that costs nothing.
    """
    return F.relu((scores - twins).abs() - margin).mean()


def correlation(scores: Tensor, opinions: Tensor) -> Tensor:
    """(1 - Pearson correlation) / 2 of scores (N,) with opinions (N,): 0 for perfect agreement, 1 for the opposite."""
    a, b = scores - scores.mean(), opinions - opinions.mean()
    return (1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)) / 2


def restoration(raw: Callable[[Tensor], Tensor], degraded: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far the score's gradient at a degraded picture is from pointing back to the clean one.

    A score that only sorts pictures has gradients that people cannot see the point of (adversarial directions); one
    whose gradient points along clean - degraded makes pictures better when it is climbed.

    Args:
        raw: differentiable score (N, 3, H, W) -> (N,).
        degraded: (N, 3, H, W) in [0, 1].
        clean: the same pictures before they were degraded.

    Returns:
        misalignment: (N,), 1 - cosine of gradient and clean - degraded.
        slope: (N,), the gradient's component along clean - degraded times its length: the linear forecast of the gain.
        energy: (N,), mean square of the gradient (the input-gradient penalty).

        All three are differentiable in the parameters of `raw`.
    """
    degraded = degraded.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(raw(degraded).sum(), degraded, create_graph=True)
    g, d = gradient.flatten(1), (clean - degraded.detach()).flatten(1)
    slope = (g * d).sum(1)
    cosine = slope / (g.norm(dim=1) * d.norm(dim=1) + 1e-8)
    return 1 - cosine, slope, g.square().mean(1)
