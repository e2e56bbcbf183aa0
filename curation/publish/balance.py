"""How many samples of each concept are kept: thresholds, probabilities, draws.

source  Xu et al. 2024 (MetaCLIP, arXiv 2309.16671), section 3.4; the threshold by tail share is that of Chuang et
        al. 2025 (MetaCLIP 2, arXiv 2507.22062), who carry English's share over to each language
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curation.publish.draws import mixed, share


def threshold_of(counts: np.ndarray, tail_share: float) -> int:
    """Threshold at which this share of all matches falls on concepts below it, or the nearest below that share.

    counts   int64 (concepts,): samples that name each
    returns  at least 1
    """
    ordered = np.sort(counts[counts > 0])
    if not len(ordered):
        return 1
    below = np.concatenate([[0], np.cumsum(ordered)])[np.searchsorted(ordered, ordered, side="left")]
    met = ordered[below <= tail_share * ordered.sum()]
    return int(met[-1])


def tail_share_of(counts: np.ndarray, threshold: int) -> float:
    """Share of all matches that fall on concepts with fewer samples than the threshold."""
    total = counts.sum()
    return float(counts[counts < threshold].sum() / total) if total else 0.0


def probabilities(counts: np.ndarray, threshold: int) -> np.ndarray:
    """t / max(count, t): 1 for the tail. float64 (concepts,)."""
    return np.asarray(threshold / np.maximum(counts, threshold))


def salts(concepts: Sequence[str]) -> np.ndarray:
    """A number of each concept's own, that does not depend on its place in the list. uint64 (concepts,)."""
    digests = (hashlib.blake2b(concept.encode(), digest_size=8).digest() for concept in concepts)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def drawn(draws: np.ndarray, matches: pa.Array, chances: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Samples that at least one of their concepts draws, each draw independent: P(keep) = 1 - product of (1 - p).

    draws    uint64 (n,), of the samples
    matches  list<int32> (n,), numbers of the concepts that each names
    chances  float64 (concepts,); salt: salts of the concepts
    returns  bool (n,); False where no concept is named
    """
    sizes = matches.value_lengths().to_numpy(zero_copy_only=False)
    concepts = matches.flatten().to_numpy(zero_copy_only=False)
    owners = np.repeat(np.arange(len(draws)), sizes)
    wins = share(mixed(draws[owners] ^ salt[concepts])) < chances[concepts]
    kept = np.zeros(len(draws), bool)
    kept[owners[wins]] = True
    return kept
