"""How well scores agree with people: correlations, the logistic fit before PLCC, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.optimize import least_squares

INTERVAL = (2.5, 97.5)  # per cent


def logistic(x: np.ndarray, best: float, worst: float, centre: float, width: float) -> np.ndarray:
    """The four-parameter logistic of VQEG: worst + (best - worst) / (1 + exp(-(x - centre) / |width|)).

    Source:
        VQEG, "Final report from the Video Quality Experts Group on the validation of objective models of video quality
        assessment, phase II" (2003).
    """
    # clipped where the exponential would overflow: there the curve has reached its end long ago
    return worst + (best - worst) / (1 + np.exp(-np.clip((x - centre) / abs(width), -50, 50)))


def logistic5(x: np.ndarray, height: float, slope: float, centre: float, rise: float, level: float) -> np.ndarray:
    """The five-parameter logistic: height (1/2 - 1 / (1 + exp(slope (x - centre)))) + rise x + level.

    Source:
        Sheikh, Sabir and Bovik (2006), "A statistical evaluation of recent full reference image quality assessment
        algorithms", equation 11.
    """
    return height * (0.5 - 1 / (1 + np.exp(np.clip(slope * (x - centre), -50, 50)))) + rise * x + level


def fit_logistic(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """The four parameters of `logistic` that bring the scores nearest to the MOS (least squares).

    Starts from the MOS' extremes and the scores' mean, in both directions; the scores are standardised inside, so
    their unit does not matter.

    Args:
        scores: (N,), not all equal.
        mos: (N,).

    Returns:
        (4,): best, worst, centre, width.

    Raises:
        ValueError: fewer than five pictures.
    """
    _require_pictures(scores, 4)
    mean, spread = scores.mean(), scores.std()
    x = (scores - mean) / spread
    ends = (mos.max(), mos.min())
    fits = [  # from both directions, since a wrong one can end in a flat curve
        least_squares(lambda four: logistic(x, *four) - mos, (*order, 0.0, 0.5), max_nfev=2000)
        for order in (ends, ends[::-1])
    ]
    fit = min(fits, key=lambda fit: fit.cost)
    best, worst, centre, width = fit.x
    return np.array([best, worst, mean + spread * centre, spread * abs(width)])


def fit_logistic5(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """The five parameters of `logistic5` that bring the scores nearest to the MOS; arguments as `fit_logistic`.

    Returns:
        (5,): height, slope, centre, rise, level.

    Raises:
        ValueError: fewer than six pictures.
    """
    _require_pictures(scores, 5)
    mean, spread = scores.mean(), scores.std()
    x = (scores - mean) / spread
    span, middle = np.ptp(mos), mos.mean()
    fits = [
        least_squares(lambda five: logistic5(x, *five) - mos, (span, slope, 0.0, 0.0, middle), max_nfev=5000)
        for slope in (1.0, -1.0)
    ]
    height, slope, centre, rise, level = min(fits, key=lambda fit: fit.cost).x
    return np.array([height, slope / spread, mean + spread * centre, rise / spread, level - rise * mean / spread])


def fitted_scores(scores: np.ndarray, mos: np.ndarray, parameters: int = 4) -> np.ndarray:
    """The scores (N,) on the curve of four or five parameters that is fitted to them and the MOS (N,)."""
    if parameters == 4:
        return logistic(scores, *fit_logistic(scores, mos))
    return logistic5(scores, *fit_logistic5(scores, mos))


def pairwise_accuracy(scores: np.ndarray, mos: np.ndarray) -> float:
    """Share of the pairs of pictures with different MOS that the scores put in the same order; equal scores are half.

    Args:
        scores: (N,).
        mos: (N,), not all equal.
    """
    right = pairs = 0.0
    for row in range(len(scores) - 1):
        order = np.sign(mos[row + 1 :] - mos[row])
        same = order * np.sign(scores[row + 1 :] - scores[row])
        pairs += np.count_nonzero(order)
        right += (same > 0).sum() + 0.5 * ((same == 0) & (order != 0)).sum()
    return float(right / pairs)


def correlations(scores: np.ndarray, mos: np.ndarray, parameters: int = 4) -> dict[str, float]:
    """SRCC, PLCC as the scores are and after the logistic, KRCC (tau-b), pairwise accuracy.

    Args:
        scores: (N,).
        mos: (N,), higher is better.
        parameters: of the logistic, 4 or 5.

    Returns:
        `srcc`, `plcc`, `plcc_fitted`, `krcc`, `n` and `pairwise`.

    Raises:
        ValueError: fewer pictures than the fit needs, or one of the two does not vary.
    """
    _check(scores, mos)
    fitted = fitted_scores(scores, mos, parameters)
    return {
        "srcc": float(stats.spearmanr(scores, mos)[0]),
        "plcc": float(stats.pearsonr(scores, mos)[0]),
        # a curve that is flat over the scores explains nothing
        "plcc_fitted": float(stats.pearsonr(fitted, mos)[0]) if np.ptp(fitted) > 1e-9 else 0.0,
        "krcc": float(stats.kendalltau(scores, mos)[0]),
        "n": len(scores),
        "pairwise": pairwise_accuracy(scores, mos),
    }


def intervals(
    scores: np.ndarray, mos: np.ndarray, groups: Sequence[str], draws: int = 1000, seed: int = 0, parameters: int = 4
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals (percentiles) of the correlations.

    Whole groups are drawn with replacement, since the pictures of one reference are not independent. The logistic is
    fitted once, to all pictures.

    Args:
        scores: (N,).
        mos: (N,).
        groups: name of each picture's group; all different for pictures on their own.
        draws: number of resamplings.
        seed: of the resampling.
        parameters: of the logistic, 4 or 5.

    Returns:
        For each of `srcc`, `plcc`, `plcc_fitted`, `krcc` the ends of the interval.
    """
    fitted = fitted_scores(scores, mos, parameters)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(group == number) for number in range(len(names))]
    rng, resampled = np.random.default_rng(seed), []
    while len(resampled) < draws:
        picks = np.concatenate([members[number] for number in rng.integers(0, len(names), len(names))])
        s, o, f = scores[picks], mos[picks], fitted[picks]
        if np.ptp(s) == 0 or np.ptp(o) == 0 or np.ptp(f) == 0:  # one picture drawn over and over has no correlation
            continue
        ranks = (stats.rankdata(s), stats.rankdata(o))  # without scipy's tests of significance, which cost most
        linear = [np.corrcoef(*pair)[0, 1] for pair in (ranks, (s, o), (f, o))]
        resampled.append([*linear, stats.kendalltau(s, o)[0]])
    ends = np.percentile(resampled, INTERVAL, axis=0).T
    return {
        name: (float(low), float(high))
        for name, (low, high) in zip(("srcc", "plcc", "plcc_fitted", "krcc"), ends, strict=True)
    }


def _check(scores: np.ndarray, mos: np.ndarray) -> None:
    for name, values in (("scores", scores), ("mean opinion scores", mos)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} hold NaN or infinite numbers; expected finite ones.")
        if np.ptp(values) == 0:
            raise ValueError(f"all {len(values)} {name} are {values[0]:g}; a correlation needs different ones.")


def _require_pictures(scores: np.ndarray, parameters: int) -> None:
    if len(scores) <= parameters:
        names = {4: ("four", "five"), 5: ("five", "six")}[parameters]
        raise ValueError(f"got {len(scores)} pictures; a fit of {names[0]} parameters needs {names[1]} or more.")
