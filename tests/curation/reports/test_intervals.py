import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.reports.intervals import Labelled, wilson


def test_wilson_as_published() -> None:
    # Newcombe 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


SCORED = st.lists(st.tuples(st.integers(0, 9).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=60)


@given(SCORED, st.integers(0, 10).map(lambda n: n / 10))
def test_points_count_as_one_would_by_hand(rows: list[tuple[float, bool]], threshold: float) -> None:
    point = Labelled(*map(np.array, zip(*rows, strict=True))).at(threshold)
    taken = [label for score, label in rows if score >= threshold]
    assert (point.taken, point.right) == (len(taken), sum(taken))
    assert point.labelled == sum(label for _, label in rows)


@given(SCORED, st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_the_lowest_threshold_of_a_precision(rows: list[tuple[float, bool]], wanted: float) -> None:
    labelled = Labelled(*map(np.array, zip(*rows, strict=True)))
    reaching = [score for score, _ in rows if labelled.at(score).precision >= wanted]
    found = labelled.of_precision(wanted)
    assert (found.threshold if found else None) == (min(reaching) if reaching else None)


@given(SCORED)
def test_auc_is_the_chance_that_right_is_above_wrong(rows: list[tuple[float, bool]]) -> None:
    auc = Labelled(*map(np.array, zip(*rows, strict=True))).auc
    yes, no = [s for s, label in rows if label], [s for s, label in rows if not label]
    if not yes or not no:
        assert math.isnan(auc)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in yes for b in no)
    assert auc == pytest.approx(wins / len(yes) / len(no))
