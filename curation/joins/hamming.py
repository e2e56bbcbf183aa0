"""Pairs of 64-bit hashes within a Hamming radius: exact, without comparing all pairs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_CHUNK = 1 << 22  # comparisons at a time: 32 MB of XORs


def pairs_within(hashes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, whose hashes differ in at most `radius` bits.

    hashes   uint64 (n,), distinct
    radius   0..16 bits
    returns  two int64 arrays of equal length, sorted by (i, j), no pair twice
    source   pigeonhole: of radius + 1 blocks of bits at least one is equal (Norouzi et al. 2012, multi-index hashing)
    """
    if radius < 1 or len(hashes) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found: list[np.ndarray] = []
    edges = np.linspace(0, 64, radius + 2).round().astype(np.uint64)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        block = (hashes >> low) & mask
        order = np.argsort(block, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(block[order]) != 0])
        for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
            if end - start > 1:
                found.extend(_close_pairs(hashes, order[start:end], radius))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    codes = np.unique(np.concatenate(found))
    return codes // len(hashes), codes % len(hashes)


def _close_pairs(hashes: np.ndarray, members: np.ndarray, radius: int) -> list[np.ndarray]:
    values = hashes[members]
    rows = max(1, _CHUNK // len(members))
    found = []
    for start in range(0, len(members), rows):
        close = np.bitwise_count(values[start : start + rows, None] ^ values[None, :]) <= radius
        a, b = np.nonzero(close)
        i, j = members[a + start], members[b]
        first = i < j
        found.append(i[first].astype(np.int64) * len(hashes) + j[first])
    return found
