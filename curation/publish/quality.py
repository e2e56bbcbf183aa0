"""Numbers on what is published: scores, sizes, texts, languages and domains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from curation.web.urls import hostname

_BINS = 100
# what a histogram spans; values beyond are counted in its first or last bin
_RANGES: dict[str, tuple[float, float]] = {
    "similarity": (-0.25, 0.75),
    "aesthetic": (1, 10),
    "punsafe": (0, 1),
    "caption_chars": (0, 300),
    "caption_words": (0, 100),
    "min_side": (0, 2000),
    "aspect": (1, 4),
    "itm_text": (0, 1),
    "itm_synthetic": (0, 1),
}
_GROUPS = ("language", "partition", "caption_source", "text_kind", "original_format", "domain")
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LARGEST = 20
_DOMAINS_A_SHARD = 1000  # bounds what a publish of 1,000 shards holds; the rest of a shard is counted as OTHERS
OTHERS = "(others)"


class Quality:
    """Sums and histograms of one shard; they add up over shards."""

    def __init__(self) -> None:
        self._samples = 0
        self._histograms = {name: [0] * _BINS for name in _RANGES}
        self._sums: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()
        self._groups: dict[str, Counter[str]] = {name: Counter() for name in _GROUPS}

    def add(self, row: dict[str, Any]) -> None:
        """Count one published sample."""
        self._samples += 1
        caption = row.get("caption") or row["text"]
        row = row | {
            "caption_chars": len(caption),
            "caption_words": len(caption.split()),
            "domain": hostname(row["url"]),
        }
        for name, (low, high) in _RANGES.items():
            value = row.get(name)
            if value is not None and math.isfinite(value):
                at = int((value - low) / (high - low) * _BINS)
                self._histograms[name][min(max(at, 0), _BINS - 1)] += 1
                self._sums[name] += value
                self._counted[name] += 1
        for name in _GROUPS:
            if name in row:
                self._groups[name][row[name] or "none"] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; merged() adds several."""
        return {
            "samples": self._samples,
            "histograms": self._histograms,
            "sums": dict(self._sums),
            "counted": dict(self._counted),
            "groups": {name: _largest(counts, _DOMAINS_A_SHARD) for name, counts in self._groups.items()},
        }


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Report over all shards: means, quantiles, histograms with their range, counts by group, the largest first.

    A quantile is read from a histogram of 100 bins: exact to a hundredth of the range.
    """
    sums: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    groups: dict[str, Counter[str]] = {name: Counter() for name in _GROUPS}
    histograms = {name: [0] * _BINS for name in _RANGES}
    for part in parts:
        sums.update(part["sums"])
        counted.update(part["counted"])
        for name, counts in part["groups"].items():
            groups[name].update(counts)
        for name, bins in part["histograms"].items():
            histograms[name] = [a + b for a, b in zip(histograms[name], bins, strict=True)]
    measured = [name for name in _RANGES if counted[name]]
    return {
        "samples": sum(part["samples"] for part in parts),
        "means": {name: sums[name] / counted[name] for name in measured},
        "quantiles": {
            name: {f"p{share * 100:02.0f}": _quantile(histograms[name], _RANGES[name], share) for share in _QUANTILES}
            for name in measured
        },
        "histograms": {
            name: {"low": _RANGES[name][0], "high": _RANGES[name][1], "counts": histograms[name]} for name in measured
        },
        "groups": {name: _largest(counts, _LARGEST) for name, counts in groups.items() if counts},
    }


def _largest(counts: Counter[str], n: int) -> dict[str, int]:
    rest = counts.pop(OTHERS, 0)
    largest = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n])
    rest += counts.total() - sum(largest.values())
    return largest | ({OTHERS: rest} if rest else {})


def _quantile(bins: list[int], span: tuple[float, float], share: float) -> float:
    low, high = span
    wanted = share * sum(bins)
    below = 0
    for at, count in enumerate(bins):
        if count and below + count >= wanted:
            return round(low + (at + (wanted - below) / count) / _BINS * (high - low), 4)
        below += count
    return high
