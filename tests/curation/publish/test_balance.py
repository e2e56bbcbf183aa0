import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.publish.balance import drawn, probabilities, salts, tail_share_of, threshold_of
from curation.publish.draws import mixed
from curation.publish.longtail import allocated

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(np.array)


@given(COUNTS, st.floats(0.01, 0.9))
def test_the_threshold_meets_the_tail_share_and_the_next_one_would_not(counts: np.ndarray, tail: float) -> None:
    t = threshold_of(counts, tail)
    assert t >= 1
    if counts.sum():
        assert tail_share_of(counts, t) <= tail
        larger = counts[counts > t]
        if len(larger):
            assert tail_share_of(counts, int(larger.min())) > tail


def test_a_threshold_scales_with_the_pool() -> None:
    counts = (1e6 / np.arange(1, 5000)).astype(int)
    assert threshold_of(counts * 10, 0.06) == threshold_of(counts, 0.06) * 10


def test_common_concepts_come_down_to_the_threshold_and_rare_ones_stay() -> None:
    n = 60_000
    rng = np.random.default_rng(0)
    draws = mixed(np.arange(n, dtype=np.uint64))
    matches = [[0] if rng.random() < 0.99 else [0, 1] for _ in range(n - 300)] + [[2]] * 200 + [[]] * 100
    counts = np.bincount([c for one in matches for c in one])
    chances = probabilities(counts, 1000)
    kept = drawn(draws, pa.array(matches, pa.list_(pa.int32())), chances, salts(["common", "rare", "rarest"]))
    both = np.array([one == [0, 1] for one in matches])
    assert kept[both].all() == (chances[1] == 1)
    assert kept[-300:-100].all()
    assert not kept[-100:].any()
    only = np.array([one == [0] for one in matches])
    expected = only.sum() * chances[0]
    assert kept[only].sum() == pytest.approx(expected, abs=4 * expected**0.5)


def test_draws_are_independent_and_do_not_depend_on_the_list() -> None:
    draws = mixed(np.arange(40_000, dtype=np.uint64))
    matches = pa.array([[0, 1]] * len(draws), pa.list_(pa.int32()))
    salt = salts(["a", "b"])
    kept = drawn(draws, matches, np.array([0.3, 0.4]), salt)
    assert kept.mean() == pytest.approx(1 - 0.7 * 0.6, abs=0.012)
    swapped = drawn(draws, matches, np.array([0.4, 0.3]), salt[::-1])
    assert (kept == swapped).all()


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(0, 500), st.integers(0, 9))
def test_a_budget_is_spent_whole_and_by_weight(weights: list[int], slots: int, seed: int) -> None:
    given_slots = allocated(np.array(weights, float), slots, seed)
    if sum(weights):
        assert given_slots.sum() == slots
        for weight, n in zip(weights, given_slots.tolist(), strict=True):
            assert abs(n - weight / sum(weights) * slots) < 1 + 1e-6
    else:
        assert not given_slots.any()
