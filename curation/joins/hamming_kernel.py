"""The inner loops of the Hamming join, compiled by numba: imported only where hashes are joined."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def _ones(_: Any, value: Any) -> Any:
    """Count the bits that are set, by the processor's own instruction."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(value), build


@njit(nogil=True)  # type: ignore[untyped-decorator]
def grouped(hashes: np.ndarray, mask: np.uint64, table_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows sorted by the masked bits (hashed to a table), in order of row within: starts, rows, their hashes."""
    shift = np.uint64(64 - table_bits)
    spread = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the product's high bits depend on all low ones
    starts = np.zeros((1 << table_bits) + 1, np.uint32)
    for row in range(len(hashes)):
        starts[np.int64(((hashes[row] & mask) * spread) >> shift) + 1] += 1
    for at in range(1, len(starts)):
        starts[at] += starts[at - 1]
    rows = np.empty(len(hashes), np.uint32)
    values = np.empty(len(hashes), np.uint64)
    ends = starts.copy()
    for row in range(len(hashes)):
        slot = np.int64(((hashes[row] & mask) * spread) >> shift)
        rows[ends[slot]] = row
        values[ends[slot]] = hashes[row]
        ends[slot] += 1
    return starts, rows, values


@njit(nogil=True)  # type: ignore[untyped-decorator]
def close_pairs(
    starts: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    n_old: int,
    end: int,
    mask: np.uint64,
    passed_over: np.ndarray,
    radius: int,
    left: np.ndarray,
    right: np.ndarray,
) -> int:
    """Count pairs (row < end, row >= n_old) of equal masked bits within the radius; write what there is room for."""
    found = 0
    for slot in range(len(starts) - 1):
        for b in range(starts[slot] + 1, starts[slot + 1]):
            if rows[b] < n_old:
                continue
            for a in range(starts[slot], b):
                if rows[a] >= end:
                    break
                differing = values[a] ^ values[b]
                if differing & mask or _ones(differing) > radius:
                    continue
                first = True  # each pair is told once: by the first band in which it agrees
                for block in passed_over:
                    if not differing & block:
                        first = False
                        break
                if first:
                    if found < len(left):
                        left[found] = rows[a]
                        right[found] = rows[b]
                    found += 1
    return found
