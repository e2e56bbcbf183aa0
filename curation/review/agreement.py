"""Krippendorff's alpha for ordinal ratings, and bootstrap intervals of it and of weighted means."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 2000


def coincidences(counts: np.ndarray) -> np.ndarray:
    """Pairs of values within each unit, each unit's weighed so that it counts as many as it has ratings.

    counts   int (units, values): how often each value was given to each unit; missing ratings are simply not there
    returns  float64 (units, values, values); zero for a unit with fewer than two ratings
    """
    ratings = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - np.eye(counts.shape[1], dtype=int) * counts[:, :, None]
    return np.asarray(np.where(ratings > 1, 1 / np.maximum(ratings - 1, 1), 0.0)[:, None, None] * pairs)


def alpha(pairs: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha with the ordinal difference: 1 is full agreement, 0 what chance would give.

    pairs    float (..., values, values): coincidences summed over units
    returns  float (...); nan where all ratings are the same or none can be paired: there is nothing to disagree on
    source   Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section E
    """
    of_value = pairs.sum(-1)
    total = of_value.sum(-1)
    up_to = np.cumsum(of_value, -1)
    # ratings between two values, those of the two counting half: their difference in ranks
    middle = up_to - of_value / 2
    difference = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (pairs * difference).sum((-2, -1))
    expected = (of_value[..., :, None] * of_value[..., None, :] * difference).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan))


def resampled(n: int, seed: int) -> np.ndarray:
    """How often each of n units is drawn in each of 2,000 resamples with replacement: int (2000, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap values; None when none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
