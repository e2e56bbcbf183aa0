import numpy as np
import pytest

from curation.review.agreement import alpha, coincidences, interval, resampled

# Krippendorff 2011, section C: four observers, twelve units, values 1 to 5, 0 for a missing one
OBSERVED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]
)


def counted(ratings: np.ndarray) -> np.ndarray:
    return np.stack([(ratings == value).sum(0) for value in range(1, 6)], axis=1)


def test_alpha_is_the_published_one() -> None:
    assert round(float(alpha(coincidences(counted(OBSERVED)).sum(0))), 3) == 0.815


def test_alpha_at_its_ends() -> None:
    same = np.array([[1, 3, 5, 2], [1, 3, 5, 2]])
    assert alpha(coincidences(counted(same)).sum(0)) == pytest.approx(1)
    opposite = np.array([[1, 5, 1, 5], [5, 1, 5, 1]])
    assert alpha(coincidences(counted(opposite)).sum(0)) < 0
    assert np.isnan(alpha(coincidences(counted(np.full((2, 4), 3))).sum(0)))  # no variation: nothing to disagree on
    assert np.isnan(alpha(coincidences(counted(np.array([[1, 2, 3]]))).sum(0)))  # one rater


def test_chance_gives_no_agreement() -> None:
    ratings = np.random.default_rng(0).integers(1, 6, (3, 4000))
    assert abs(alpha(coincidences(counted(ratings)).sum(0))) < 0.02


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        values = rng.normal(3, 1, 60)
        low, high = interval(resampled(60, seed) @ values / 60) or (0, 0)
        hits += low <= 3 <= high
    assert 88 <= hits <= 99
    assert interval(np.array([np.nan])) is None
