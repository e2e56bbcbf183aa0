"""Train, validation and test parts such that no domain and no duplicate group stands on two sides."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from curation.publish.draws import mixed, share

PARTS = ("train", "val", "test")


def components(n: int, links: np.ndarray) -> np.ndarray:
    """Number of the connected component of each of n domains. links: int (m, 2), domains that share a group."""
    if not len(links):
        return np.arange(n)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1])


def cut(domains: np.ndarray, samples: np.ndarray, links: np.ndarray, val: float, test: float, seed: int) -> np.ndarray:
    """Part of each domain: 0 train, 1 val, 2 test.

    Domains that share a duplicate group go together. Each such component is drawn by its smallest domain: in the next
    version it is on the same side as long as that stays its smallest. One that is larger than the larger of the two
    held-out parts may be goes to train, and the chances of the others are raised for it, so that shares are met.

    domains  uint64 (n,), hashes in ascending order; samples: int64 (n,); links: int (m, 2), places in domains
    returns  int8 (n,)
    """
    component = components(len(domains), links)
    n = int(component.max(initial=-1)) + 1
    sizes = np.bincount(component, weights=samples, minlength=n)
    first = np.full(n, len(domains))
    np.minimum.at(first, component, np.arange(len(domains)))
    small = sizes <= max(val, test) * samples.sum()
    eligible = sizes[small].sum()
    if not eligible:
        return np.zeros(len(domains), np.int8)
    raised = min(samples.sum() / eligible, 1 / max(val + test, 1e-12))
    u = share(mixed(domains[first] ^ mixed(np.array([seed], np.uint64))))
    part = np.where(u < test * raised, 2, np.where(u < (test + val) * raised, 1, 0))
    return np.asarray(np.where(small, part, 0)[component].astype(np.int8))


def links_of(groups: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """Pairs of domains that share a group. uint64 (rows,) and places (rows,) in; int (m, 2) out."""
    order = np.lexsort((domains, groups))
    groups, domains = groups[order], domains[order]
    linked = (groups[1:] == groups[:-1]) & (domains[1:] != domains[:-1])
    return np.unique(np.stack([domains[:-1][linked], domains[1:][linked]], axis=1), axis=0)
