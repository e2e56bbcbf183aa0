"""Confidence intervals of shares, and the points of a score against labels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share: low and high, 0..1; (0, 1) where there is nothing to go by.

    source   Wilson 1927; kept inside 0..1 and of use for few samples, unlike p +- z * sqrt(p (1 - p) / n)
    """
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Point:
    """What a threshold does to labelled samples: those at or above it are taken."""

    threshold: float
    taken: int
    right: int  # taken and labelled
    labelled: int
    total: int

    @property
    def precision(self) -> float:
        """Share of the taken that are labelled; 1 where none is taken."""
        return self.right / self.taken if self.taken else 1.0

    @property
    def recall(self) -> float:
        """Share of the labelled that are taken; 1 where none is labelled."""
        return self.right / self.labelled if self.labelled else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data with 95 % intervals."""
        return asdict(self) | {
            "precision": self.precision,
            "precision_95": wilson(self.right, self.taken),
            "recall": self.recall,
            "recall_95": wilson(self.right, self.labelled),
            "false_positive_rate": (self.taken - self.right) / max(1, self.total - self.labelled),
        }


class Labelled:
    """Scores of samples and whether each is what the score looks for."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
        self.scores = np.asarray(scores, np.float64)[order]
        self.labels = np.asarray(labels, bool)[order]
        self._right = np.concatenate([[0], np.cumsum(self.labels)])

    def at(self, threshold: float) -> Point:
        """The point of a threshold."""
        taken = int(np.searchsorted(-self.scores, -threshold, side="right"))
        return Point(threshold, taken, int(self._right[taken]), int(self._right[-1]), len(self.scores))

    def of_precision(self, wanted: float) -> Point | None:
        """The lowest threshold whose taken samples have at least this precision; None where none has."""
        last_of_ties = np.flatnonzero(np.append(np.diff(self.scores) != 0, True)) if len(self.scores) else np.arange(0)
        reached = self._right[last_of_ties + 1] / (last_of_ties + 1) >= wanted
        return self.at(float(self.scores[last_of_ties[reached][-1]])) if reached.any() else None

    @property
    def auc(self) -> float:
        """Chance that a labelled sample scores above one that is not, ties counting half; nan without both kinds."""
        yes, no = np.sort(self.scores[self.labels]), np.sort(self.scores[~self.labels])
        if not len(yes) or not len(no):
            return math.nan
        below = np.searchsorted(no, yes, side="left") + np.searchsorted(no, yes, side="right")
        return float(below.mean() / (2 * len(no)))
