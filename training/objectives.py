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


def prompt_ranking(
    positive: Tensor,
    negative: Tensor,
    consistency_margin: float,
    rank_margin: float,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three ranking losses of QualiCLIP, each summed over a photograph's crops and levels, mean over photographs.

    With s the similarity of crop k at level i (1 least degraded) to the positive or negative prompts,

        consistency = sum_i sum_s relu(|s(i, 1) - s(i, 2)| - consistency_margin)
        positive    = sum_k,k' sum_i<j relu(s+(j, k') - s+(i, k) + rank_margin)
        negative    = sum_k,k' sum_i<j relu(s-(i, k) - s-(j, k') + rank_margin)

    Args:
        positive: (P, 2, L), similarities to the positive prompts, levels from weak to severe.
        negative: (P, 2, L), to the negative ones.
        consistency_margin: difference between the crops that costs nothing.
        rank_margin: wanted lead of the less degraded level.
        order: (P, L), places of the levels in the order of strength; pairs i < j that share one are left out. None if
            all of them differ.

    Returns:
        The three losses.

    Source:
        Agnolucci et al. (2024), arXiv 2403.11176: that there are these three losses is published; the formulas follow
        from its words and figure, and whether pairs of different crops (k, k') count is not verified.
    """
    both = torch.stack([positive, negative])
    consistent = F.relu((both[:, :, 0] - both[:, :, 1]).abs() - consistency_margin).sum((0, 2))
    weak, severe = torch.triu_indices(positive.shape[2], positive.shape[2], 1, device=positive.device)

    def rise(similarities: Tensor) -> Tensor:
        """From the weaker to the more severe level, over all pairs of crops: (P, 2, 2, pairs)."""
        return similarities[:, None, :, severe] - similarities[:, :, None, weak]

    worse = 1.0 if order is None else (order[:, severe] > order[:, weak])[:, None, None].float()
    falling = (worse * F.relu(rise(positive) + rank_margin)).sum((1, 2, 3))
    rising = (worse * F.relu(rank_margin - rise(negative))).sum((1, 2, 3))
    return consistent.mean(), falling.mean(), rising.mean()


def correlation(scores: Tensor, mos: Tensor) -> Tensor:
    """(1 - Pearson correlation) / 2 of scores (N,) with mos (N,): 0 for perfect agreement, 1 for the opposite."""
    a, b = scores - scores.mean(), mos - mos.mean()
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
        energy: (N,), mean square of the gradient (the input-gradient penalty).
        gradient: (N, 3, H, W).

        All three are differentiable in the parameters of `raw`.
    """
    degraded = degraded.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(raw(degraded).sum(), degraded, create_graph=True)
    g, d = gradient.flatten(1), (clean - degraded.detach()).flatten(1)
    cosine = (g * d).sum(1) / (g.norm(dim=1) * d.norm(dim=1) + 1e-8)
    return 1 - cosine, g.square().mean(1), gradient


def climb(images: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
    """What an attacker makes of images (N, 3, H, W): one step of RMS `step` (N,) up the gradient, cut to [0, 1]."""
    direction = gradient / (gradient.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-12)
    return (images + step.view(-1, 1, 1, 1) * direction).clamp(0, 1)


def overclaim(gain: Tensor, degraded: Tensor, climbed: Tensor, clean: Tensor, severity: Tensor) -> Tensor:
    """How much more a score rises when its gradient is climbed than the pictures come nearer to the clean ones.

    A degraded picture that was brought a share r of the way back may rise by r times what the degradation had cost.

    Args:
        gain: (N,), score after the climb minus score before it.
        degraded: (N, 3, H, W) before the climb.
        climbed: the same after it.
        clean: the same before they were degraded.
        severity: (N,), what each degradation costs, in units of the score.

    Returns:
        (N,), 0 where the gain is earned; differentiable in `gain`.
    """
    before, after = ((x - clean).square().mean((1, 2, 3)).sqrt() for x in (degraded, climbed))
    earned = severity * (1 - after / (before + 1e-6)).clamp(min=0)
    return F.relu(gain - earned)
