"""Greedy removal of duplicates: rows are taken best first; one that duplicates a row taken before is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Near(NamedTuple):
    """Codes of equal[of] near each code, nearest first: offsets int64 (n_codes + 1,) and codes int64 (m,)."""

    of: int
    offsets: np.ndarray
    codes: np.ndarray


_COMPILE_ROWS = 20_000  # from here on compiling the loop (2 s) costs less than running it as it is


def keep_best(equal: Sequence[np.ndarray], near: Sequence[Near], barred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decide, row by row in the order given, which rows are kept and which of these each dropped one duplicates.

    equal    for each kind of equality int64 (n,): rows with the same code are duplicates, -1 equals nothing
    near     for each kind of nearness, which codes are near which: rows that carry these are duplicates
    barred   bool (n,): rows that are out already; they are not kept and nothing duplicates them
    returns  head int64 (n,): the row kept in its place, itself where kept, -1 where barred;
             kind int8 (n,): position in equal, then in near, of what made it a duplicate; -1 for none
    """
    codes = np.stack(equal)
    n_codes = int(codes.max(initial=-1)) + 1
    bases = np.cumsum([0, *(len(one.codes) for one in near)])
    offsets = np.stack([np.pad(one.offsets, (0, n_codes + 1 - len(one.offsets)), "edge") for one in near])
    of = np.array([one.of for one in near])
    loop = _loop
    if len(barred) >= _COMPILE_ROWS:
        from numba import njit

        loop = njit(_loop)
    return loop(codes, of, offsets + bases[:-1, None], np.concatenate([one.codes for one in near]), barred, n_codes)


def near(of: int, left: np.ndarray, right: np.ndarray, order: np.ndarray, n: int) -> Near:
    """Pairs of codes below n (each told once), seen from both sides, in ascending `order` (m,) for each code."""
    source, target = np.concatenate([left, right]), np.concatenate([right, left])
    sorting = np.lexsort((target, np.concatenate([order, order]), source))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=n))]).astype(np.int64)
    return Near(of, offsets, target[sorting].astype(np.int64))


def _loop(
    codes: np.ndarray, of: np.ndarray, offsets: np.ndarray, others: np.ndarray, barred: np.ndarray, n_codes: int
) -> tuple[np.ndarray, np.ndarray]:
    n = len(barred)
    head, kind = np.full(n, -1, np.int64), np.full(n, -1, np.int8)
    first = np.full((len(codes), n_codes), -1, np.int64)
    for row in range(n):
        if barred[row]:
            continue
        for which in range(len(codes)):
            code = codes[which, row]
            if code >= 0 and first[which, code] >= 0:
                head[row], kind[row] = first[which, code], which
                break
        if kind[row] < 0:
            for which in range(len(of)):
                code = codes[of[which], row]
                if code < 0:
                    continue
                for at in range(offsets[which, code], offsets[which, code + 1]):
                    other = first[of[which], others[at]]
                    if other >= 0:
                        head[row], kind[row] = other, len(codes) + which
                        break
                if kind[row] >= 0:
                    break
        if kind[row] < 0:
            head[row] = row
            for which in range(len(codes)):
                if codes[which, row] >= 0:
                    first[which, codes[which, row]] = row
    return head, kind
