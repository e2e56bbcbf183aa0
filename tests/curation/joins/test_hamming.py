import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.joins.hamming import pairs_within


def brute_force(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(distances <= radius), strict=True) if i < j]


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.sets(st.integers(0, 63), max_size=9)), max_size=30),
    st.integers(0, 8),
)
@settings(max_examples=200, deadline=None)
def test_finds_exactly_what_brute_force_finds(seeds: list[int], flips: list[tuple[int, set[int]]], radius: int) -> None:
    near = [seeds[at % len(seeds)] ^ sum(1 << bit for bit in bits) for at, bits in flips] if seeds else []
    hashes = np.unique(np.array(seeds + near, np.uint64))
    expected = brute_force(hashes, radius) if radius else []
    assert list(zip(*(side.tolist() for side in pairs_within(hashes, radius)), strict=True)) == expected


@pytest.mark.parametrize("radius", [1, 4, 8])
def test_exact_on_many_clustered_hashes(radius: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 1500, np.uint64)
    flipped = (
        centres
        ^ (np.uint64(1) << rng.integers(0, 64, 1500, np.uint64))
        ^ (np.uint64(1) << rng.integers(0, 64, 1500, np.uint64))
    )
    hashes = np.unique(np.r_[centres, flipped])
    i, j = pairs_within(hashes, radius)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == brute_force(hashes, radius)
