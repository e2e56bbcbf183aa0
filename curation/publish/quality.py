"""Numbers on what is published: sizes, texts, scores, languages and domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_BINS = 20
_RANGES = {
    "similarity": (-0.2, 0.8),
    "n_chars": (0, 200),
    "min_side": (0, 1024),
    "aspect": (1, 3),
    "itm_text": (0, 1),
    "itm_synthetic": (0, 1),
}


class Quality:
    """Sums and histograms that add up over shards."""

    def __init__(self) -> None:
        self._samples = 0
        self._histograms = {name: [0] * _BINS for name in _RANGES}
        self._sums: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()
        self._groups: dict[str, Counter[str]] = {
            name: Counter() for name in ("partition", "language", "domain", "text_kind")
        }

    def add(self, row: dict[str, Any]) -> None:
        """Count one published sample."""
        self._samples += 1
        for name, (low, high) in _RANGES.items():
            value = row.get(name)
            if value is not None:
                at = int((value - low) / (high - low) * _BINS)
                self._histograms[name][min(max(at, 0), _BINS - 1)] += 1
                self._sums[name] += value
                self._counted[name] += 1
        for name in ("partition", "language", "text_kind"):
            self._groups[name][row.get(name) or "none"] += 1
        self._groups["domain"][urlsplit(row["url"]).hostname or ""] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; merged() adds several."""
        return {
            "samples": self._samples,
            "histograms": self._histograms,
            "sums": dict(self._sums),
            "counted": dict(self._counted),
            "groups": {name: dict(counts) for name, counts in self._groups.items()},
        }

    @staticmethod
    def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Report over all shards: means, histograms with their range, counts by group (the 20 largest)."""
        sums: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        groups: dict[str, Counter[str]] = {}
        histograms = {name: [0] * _BINS for name in _RANGES}
        for part in parts:
            sums.update(part["sums"])
            counted.update(part["counted"])
            for name, counts in part["groups"].items():
                groups.setdefault(name, Counter()).update(counts)
            for name, bins in part["histograms"].items():
                histograms[name] = [a + b for a, b in zip(histograms[name], bins, strict=True)]
        return {
            "samples": sum(part["samples"] for part in parts),
            "means": {name: sums[name] / counted[name] for name in counted},
            "histograms": {
                name: {"low": _RANGES[name][0], "high": _RANGES[name][1], "counts": bins}
                for name, bins in histograms.items()
                if any(bins)
            },
            "groups": {name: dict(counts.most_common(20)) for name, counts in groups.items()},
        }
