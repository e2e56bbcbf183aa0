"""Pairs of unit vectors above a cosine, searched within clusters: near-linear, and blind to pairs across clusters."""

from __future__ import annotations

import numpy as np

_TRAIN_A_CLUSTER = 64  # vectors; more moves the centroids little
_ROUNDS = 10
_CHUNK = 4096
_COSINES = 1 << 26  # at a time: 256 MB


def centroids(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Spherical k-means over the vectors in the order given (no randomness): float32 (k, d), rows of norm 1.

    vectors   float (n, d), rows of norm 1; of many, evenly spaced ones are used
    clusters  at most so many
    """
    step = max(1, len(vectors) // (clusters * _TRAIN_A_CLUSTER))
    sample = vectors[::step].astype(np.float32)
    centres = sample[:: max(1, len(sample) // max(clusters, 1))][:clusters].copy()
    for _ in range(_ROUNDS):
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest(sample, centres), sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres)  # an empty cluster stays
    return centres.astype(np.float32)


def nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Number of the centre with the largest cosine: int64 (n,)."""
    parts = [
        (vectors[at : at + _CHUNK].astype(np.float32) @ centres.T).argmax(axis=1)
        for at in range(0, len(vectors), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def most_alike(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the others has the largest cosine with each vector, of equals the first: int64 (n,), float32 (n,).

    vectors  float (n, d), rows of norm 1     others  float (m, d), m > 0, in whatever width they are kept
    """
    vectors = vectors.astype(np.float32)
    best, where = np.full(len(vectors), -2.0, np.float32), np.zeros(len(vectors), np.int64)
    step = max(1, _COSINES // max(len(vectors), 1))
    for start in range(0, len(others), step):
        cosines = vectors @ others[start : start + step].astype(np.float32).T
        at = cosines.argmax(axis=1)
        top = cosines[np.arange(len(vectors)), at]
        better = top > best
        best[better], where[better] = top[better], at[better] + start
    return where, best


def pairs_above(
    vectors: np.ndarray, clusters: np.ndarray, cosine: float, *, n_old: int = 0, only_old: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j), i < j, of the same cluster with at least this cosine: two int64 arrays and float32 cosines.

    vectors   float (n, d), rows of norm 1
    clusters  int (n,)
    n_old     pairs among the first n_old are left out; with only_old those among the others too
    source    Abbas et al. 2023 (SemDeDup), section 3: k-means, then all pairs within a cluster
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        members = order[start:end]  # ascending: old ones first
        left = members[members < n_old] if only_old else members
        values = vectors[left].astype(np.float32)
        later = members[members >= n_old]
        for at in range(0, len(later), _CHUNK):
            part = later[at : at + _CHUNK]
            cosines = values @ vectors[part].astype(np.float32).T
            a, b = np.nonzero((cosines >= cosine) & (left[:, None] < part[None, :]))
            found.append((left[a], part[b], cosines[a, b]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    i, j, c = (np.concatenate(side) for side in zip(*found, strict=True))
    return i, j, c
