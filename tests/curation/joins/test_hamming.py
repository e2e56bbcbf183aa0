import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.images.decode import measure_picture
from curation.joins.hamming import Band, bands, pairs_within

Pairs = set[tuple[int, int]]


def brute_force(hashes: np.ndarray, radius: int, n_old: int = 0) -> Pairs:
    found: Pairs = set()
    for start in range(0, len(hashes), 256):
        close = np.bitwise_count(hashes[start : start + 256, None] ^ hashes[None, :]) <= radius
        found.update(
            (int(i) + start, int(j)) for i, j in zip(*np.nonzero(close), strict=True) if i + start < j >= n_old
        )
    return found


def spelt(pairs: tuple[np.ndarray, np.ndarray]) -> Pairs:
    told = list(zip(*(side.tolist() for side in pairs), strict=True))
    assert told == sorted(set(told))
    return set(told)


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.sets(st.integers(0, 63), max_size=9)), max_size=30),
    st.integers(0, 8),
    st.integers(0, 60),
    st.sampled_from([None, 10, 10**6, 10**8, 10**10]),
)
@settings(max_examples=300)
def test_finds_exactly_what_brute_force_finds(
    seeds: list[int], flips: list[tuple[int, set[int]]], radius: int, n_old: int, planned_for: int | None
) -> None:
    near = [seeds[at % len(seeds)] ^ sum(1 << bit for bit in bits) for at, bits in flips] if seeds else []
    hashes = np.array(seeds + near, np.uint64)
    share = bands(planned_for, radius) if planned_for else None
    expected = brute_force(hashes, radius, n_old)
    assert spelt(pairs_within(hashes, radius, n_old=n_old, share=share)) == expected
    across = {(i, j) for i, j in expected if i < n_old}
    assert spelt(pairs_within(hashes, radius, n_old=n_old, only_old=True, share=share)) == across


@pytest.mark.parametrize("radius", range(9))
def test_exact_on_many_clustered_hashes(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**64, 3000, np.uint64)
    for at in range(9):  # one more bit away from the first third each time
        hashes[1000 + 200 * at :][:200] = hashes[:200]
        for bit in range(at):
            hashes[1000 + 200 * at :][:200] ^= np.uint64(1) << np.uint64((7 * bit) % 64)
    assert len(hashes) > 2048
    expected = brute_force(hashes, radius, 500)
    assert len(expected) >= 200
    assert spelt(pairs_within(hashes, radius, n_old=500)) == expected


@given(st.integers(0, 16), st.sampled_from([1, 10**5, 10**7, 10**9]), st.sets(st.integers(0, 63), max_size=16))
def test_each_pair_within_the_radius_belongs_to_one_band(radius: int, rows: int, differing: set[int]) -> None:
    bits = sum(1 << bit for bit in differing)

    def tells(band: Band) -> bool:
        return not bits & band.mask and all(bits & block for block in band.passed_over)

    told = sum(map(tells, bands(rows, radius)))
    assert told == 1 if len(differing) <= radius else told <= 1


def test_shares_of_the_bands_add_up() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, 3000, np.uint64)
    plan = bands(len(hashes), 4)
    parts = [spelt(pairs_within(hashes, 4, share=plan[at::3])) for at in range(3)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == brute_force(hashes, 4)


def test_a_radius_out_of_range() -> None:
    with pytest.raises(ValueError, match="expected 0 to 16"):
        bands(10, 17)


@pytest.mark.shared
def test_exact_on_hashes_of_real_pictures(shared: Path) -> None:
    files = sorted((shared / "data/evalsets").rglob("*.*"))[:40]
    hashes = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        for quality in range(10, 95, 5):
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=quality)
            hashes.append(int(measure_picture(out.getvalue(), file.name)[0], 16))
    hashed = np.array(hashes, np.uint64)
    for radius in (0, 4, 8):
        found = spelt(pairs_within(hashed, radius, share=bands(10**7, radius)))
        assert found == brute_force(hashed, radius)
        assert len(found) > len(hashed)
