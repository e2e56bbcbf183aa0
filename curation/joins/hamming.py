"""Pairs of 64-bit hashes within a Hamming radius: exact, without comparing all pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

MAX_RADIUS = 16
_MOVE_NS, _COMPARE_NS = 60, 4  # a hash into its group; two hashes compared, more often than if bits were even
_ROWS_A_SLOT_BITS = 5  # a table much smaller than the cache beats short groups: 10 M hashes in 10 s instead of 30 s
_ALL_PAIRS_ROWS = 2048  # up to here comparing all is done before numba has compiled (2 to 4 s)


class Band(NamedTuple):
    """A share of the work that needs no other: the pairs that agree in `mask` and in none of the blocks passed over."""

    mask: int
    passed_over: tuple[int, ...]


def bands(rows: int, radius: int) -> list[Band]:
    """How to find all pairs among so many hashes: every pair within the radius is found by exactly one band.

    64 bits are cut into m blocks; two hashes that differ in at most `radius` bits agree in at least m - radius whole
    blocks, so that grouping by each choice of m - radius blocks brings every pair together. More blocks make longer
    keys, thus fewer comparisons, but more groupings: m is chosen by what a run over so many rows costs.

    rows     int, hashes that will be joined
    radius   0..16 bits
    source   Manku et al. 2007, section 3 (several tables); Norouzi et al. 2012, multi-index hashing
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius {radius}: expected 0 to {MAX_RADIUS}")
    kept = min(range(1, 5), key=lambda k: _cost_ns(rows, radius, k))
    # bit b goes to block b mod m: neighbouring bits of a pHash are correlated, and one block should not hold them all
    blocks = [sum(1 << bit for bit in range(at, 64, radius + kept)) for at in range(radius + kept)]
    found = []
    for chosen in combinations(range(len(blocks)), kept):
        passed_over = tuple(blocks[at] for at in range(chosen[-1]) if at not in chosen)
        found.append(Band(sum(blocks[at] for at in chosen), passed_over))
    return found


def pairs_within(
    hashes: np.ndarray,
    radius: int,
    *,
    n_old: int = 0,
    only_old: bool = False,
    share: Sequence[Band] | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, whose hashes differ in at most `radius` bits, equal hashes included.

    hashes   uint64 (n,), n < 2**32
    radius   0..16 bits
    n_old    pairs among the first n_old hashes are left out
    only_old pairs among the others are left out too
    share    bands to search; None: all of them. The union over disjoint shares is the whole, no pair twice
    threads  bands at a time, each with 12 bytes a hash of its own; None: one a core, at most 4
    returns  two uint32 arrays of equal length, sorted by (i, j), no pair twice
    """
    if len(hashes) <= n_old or len(hashes) < 2:
        return np.empty(0, np.uint32), np.empty(0, np.uint32)
    if share is None and len(hashes) <= _ALL_PAIRS_ROWS:
        return _all_pairs(hashes, radius, n_old, only_old)
    share = bands(len(hashes), radius) if share is None else share
    hashes = np.ascontiguousarray(hashes, np.uint64)
    with ThreadPoolExecutor(threads or min(4, len(os.sched_getaffinity(0)))) as pool:
        parts = list(pool.map(lambda band: _pairs_of(hashes, radius, n_old, only_old, band), share))
    left, right = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    order = np.argsort(left.astype(np.uint64) << np.uint64(32) | right)
    return left[order], right[order]


def _all_pairs(hashes: np.ndarray, radius: int, n_old: int, only_old: bool) -> tuple[np.ndarray, np.ndarray]:
    close = np.triu(np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= radius, 1)
    close[:, :n_old] = False
    if only_old:
        close[n_old:] = False
    left, right = np.nonzero(close)
    return left.astype(np.uint32), right.astype(np.uint32)


def _cost_ns(rows: int, radius: int, kept: int) -> float:
    bits = min(64 * kept / (radius + kept), 64)
    return comb(radius + kept, kept) * (rows * _MOVE_NS + rows * rows / 2 / 2**bits * _COMPARE_NS)


def _pairs_of(hashes: np.ndarray, radius: int, n_old: int, only_old: bool, band: Band) -> tuple[np.ndarray, np.ndarray]:
    from curation.joins.hamming_kernel import close_pairs, grouped  # numba: half a second that few tasks need

    mask, passed_over = np.uint64(band.mask), np.array(band.passed_over, np.uint64)
    table_bits = max(len(hashes).bit_length() - _ROWS_A_SLOT_BITS, 1)
    groups = grouped(hashes, mask, table_bits)
    left = right = np.empty(0, np.uint32)
    end = n_old if only_old else len(hashes)
    while True:  # counted first, then written: nothing is held that is not a pair
        found = close_pairs(*groups, n_old, end, mask, passed_over, radius, left, right)
        if found == len(left):
            return left, right
        left, right = np.empty(found, np.uint32), np.empty(found, np.uint32)
