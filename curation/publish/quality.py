"""Numbers on what is published: scores, sizes, texts, languages and domains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from curation.captions.statistics import Statistics, comparison
from curation.publish.grammar import LANGUAGE, grammar
from curation.publish.lexical import diversity
from curation.publish.perplexity import EMBEDDED, negative_log_likelihood
from curation.publish.writers import caption_of
from curation.web.urls import hostname

_BINS = 100
# what a histogram spans; values beyond are counted in its first or last bin
_RANGES: dict[str, tuple[float, float]] = {
    "similarity": (-0.25, 0.75),
    "aesthetic": (1, 10),
    "punsafe": (0, 1),
    "pwatermark": (0, 1),
    "caption_chars": (0, 300),
    "caption_words": (0, 100),
    "min_side": (0, 2000),
    "aspect": (1, 4),
    "itm_text": (0, 1),
    "itm_synthetic": (0, 1),
    "anyres_tokens_flat": (0, 6000),
    "anyres_tokens_unpadded": (0, 6000),
    "itm_gain": (-1, 1),  # synthetic over original: what recaptioning brings
}
_GROUPS = (
    "conversation_by",
    *("language", "partition", "caption_source", "caption_origin", "text_kind", "original_format", "anyres_grid"),
    "domain",
)
_FLAGS = ("leak_kind", "safety_tag", "page_opt_out", "consent")  # what the gates of a release count
MEASURED = tuple(_RANGES)
"""What has a mean and quantiles in the report."""
COUNTED = (*_GROUPS, *_FLAGS)
"""What is counted by value in the report."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LARGEST = 20
_DOMAINS_A_SHARD = 1000  # bounds what a publish of 1,000 shards holds; the rest of a shard is counted as OTHERS
_TEXTS_A_SHARD = 200  # lexical diversity and grammar are measured on the shard's first captions
OTHERS = "(others)"
_ORIGINS = ("alt text", "synthetic", "published")


class Quality:
    """Sums and histograms of one shard; they add up over shards."""

    def __init__(self, perplexity_model: str = "") -> None:
        self._perplexity_model = perplexity_model
        self._samples = 0
        self._pairs = 0
        self._histograms = {name: np.zeros(_BINS, np.int64) for name in _RANGES}
        self._sums = dict.fromkeys(_RANGES, 0.0)
        self._counted: Counter[str] = Counter()
        self._groups: dict[str, Counter[str]] = {name: Counter() for name in _GROUPS}
        self._flags: dict[str, Counter[str]] = {}
        self._texts: list[str] = []
        self._english: list[str] = []
        self._captioned: dict[str, list[str]] = {name: [] for name in _ORIGINS}

    def add(self, row: dict[str, Any]) -> None:
        """Count one published sample."""
        self.add_rows([row])

    def add_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count published samples, all with the same columns."""
        if not rows:
            return
        self._samples += len(rows)
        self._pairs += sum(max(1, len(row.get("captions") or ())) for row in rows)
        captions = [caption_of(row) for row in rows]
        self._texts += captions[: _TEXTS_A_SHARD - len(self._texts)]
        english = (text for text, row in zip(captions, rows, strict=True) if row.get("language") == LANGUAGE)
        self._english += islice(english, _TEXTS_A_SHARD - len(self._english))
        captioned = (row for row in rows if row.get("synthetic"))
        for row in islice(captioned, _TEXTS_A_SHARD - len(self._captioned["synthetic"])):
            for origin, text in zip(_ORIGINS, (row["text"], row["synthetic"], caption_of(row)), strict=True):
                self._captioned[origin].append(text)
        columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in _RANGES if name in rows[0]}
        columns["caption_chars"] = [len(caption) for caption in captions]
        columns["caption_words"] = [len(caption.split()) for caption in captions]
        if "itm_text" in columns and "itm_synthetic" in columns:
            pairs = zip(columns["itm_synthetic"], columns["itm_text"], strict=True)
            columns["itm_gain"] = [None if a is None or b is None else a - b for a, b in pairs]
        for name, values in columns.items():
            self._count(name, np.array([np.nan if value is None else value for value in values], np.float64))
        for name in _GROUPS:
            if name == "domain":
                self._groups[name].update(hostname(row["url"]) or "none" for row in rows)
            elif name == "caption_origin":
                self._groups[name].update(_origin(row) for row in rows)
            elif name in rows[0]:
                self._groups[name].update(row[name] or "none" for row in rows)
        for name in _FLAGS:
            if name in rows[0]:
                self._flags.setdefault(name, Counter()).update(str(row[name]) for row in rows if row[name] is not None)

    def add_conversations(self, outcomes: Mapping[str, int]) -> None:
        """Count by what came of asking an endpoint for conversations."""
        self._groups["conversation_by"].update(+Counter(outcomes))

    def _count(self, name: str, values: np.ndarray) -> None:
        values = values[np.isfinite(values)]
        low, high = _RANGES[name]
        at = np.clip((values - low) / (high - low) * _BINS, 0, _BINS - 1).astype(np.int64)
        self._histograms[name] += np.bincount(at, minlength=_BINS)
        self._sums[name] += float(values.sum())
        self._counted[name] += len(values)

    def to_json(self) -> dict[str, Any]:
        """Plain data; merged() adds several."""
        return {
            "samples": self._samples,
            "pairs": self._pairs,
            "histograms": {name: bins.tolist() for name, bins in self._histograms.items() if bins.any()},
            "sums": {name: total for name, total in self._sums.items() if self._counted[name]},
            "counted": dict(self._counted),
            "groups": {name: _largest(counts, _DOMAINS_A_SHARD) for name, counts in self._groups.items()},
            "flags": {name: _largest(counts, _LARGEST) for name, counts in self._flags.items()},
            "lexical": diversity(self._texts),
            "grammar": grammar(self._english),
            "nll": self._likelihood(),
            "captions": {origin: dict(_tally(texts)) for origin, texts in self._captioned.items() if texts},
        }

    def _likelihood(self) -> list[float]:
        """Negative log-likelihood of the shard's first captions and its number of tokens; zeros where not measured.

        The embedded model knows English alone, and is asked about English captions alone.
        """
        texts = self._english if self._perplexity_model == EMBEDDED else self._texts
        return list(negative_log_likelihood(texts, self._perplexity_model)) if self._perplexity_model else [0.0, 0]


def _tally(texts: Sequence[str]) -> Counter[str]:
    told = Statistics()
    told.add(texts)
    return told.tally()


def _origin(row: dict[str, Any]) -> str:
    """Who wrote the caption that is published: human or synthetic as an annotated set says, web, or our captioner."""
    return "synthetic" if row.get("caption_source") == "synthetic" else row.get("text_origin") or "web"


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Report over all shards: means, quantiles, histograms with their range, counts by group, the largest first.

    A quantile is read from a histogram of 100 bins: exact to a hundredth of the range. Lexical diversity is the mean
    over shards, each weighed by its words; noun phrases are told apart within a shard. `captions` has synthetic
    captions beside alt texts and what is published, of the first 200 captioned pictures of each shard.
    """
    sums = dict.fromkeys(_RANGES, 0.0)
    counted: Counter[str] = Counter()
    groups: dict[str, Counter[str]] = {name: Counter() for name in _GROUPS}
    flags: dict[str, Counter[str]] = {}
    histograms = {name: np.zeros(_BINS, np.int64) for name in _RANGES}
    lexical: dict[str, float] = {}
    for part in parts:
        for name, total in part["sums"].items():
            sums[name] += total
        counted.update(part["counted"])
        for name, counts in part["groups"].items():
            groups[name].update(counts)
        for name, counts in part["flags"].items():
            flags.setdefault(name, Counter()).update(counts)
        for name, bins in part["histograms"].items():
            histograms[name] += np.array(bins)
        for name, value in part["lexical"].items():
            weight = 1 if name == "words" else part["lexical"]["words"]
            lexical[name] = lexical.get(name, 0.0) + value * weight
    spoken: Counter[str] = Counter()
    for part in parts:
        spoken.update(part.get("grammar", {}))  # parts of before have none
    captions: dict[str, Counter[str]] = {}
    for part in parts:
        for origin, counts in part.get("captions", {}).items():
            captions.setdefault(origin, Counter()).update(counts)
    nats, tokens = (sum(part["nll"][at] for part in parts) for at in (0, 1))
    measured = [name for name in _RANGES if counted[name]]
    words = int(lexical.pop("words", 0))
    return {
        "samples": sum(part["samples"] for part in parts),
        "pairs": sum(part.get("pairs", part["samples"]) for part in parts),  # parts of before had one a sample
        # visual tokens of one pass over the pictures, by the two ways of counting
        "anyres_tokens": {
            name.removeprefix("anyres_tokens_"): round(sums[name])
            for name in measured
            if name.startswith("anyres_tokens_")
        },
        "means": {name: sums[name] / counted[name] for name in measured},
        "quantiles": {
            name: {f"p{share * 100:02.0f}": _quantile(histograms[name], _RANGES[name], share) for share in _QUANTILES}
            for name in measured
        },
        "histograms": {
            name: {"low": _RANGES[name][0], "high": _RANGES[name][1], "counts": histograms[name].tolist()}
            for name in measured
        },
        "groups": {name: _largest(counts, _LARGEST) for name, counts in groups.items() if counts},
        "flags": {name: _largest(counts, _LARGEST) for name, counts in flags.items()},
        "lexical": {name: round(value / words, 4) for name, value in lexical.items()} | {"words": words}
        if words
        else {},
        "grammar": _grammar(spoken),
        "perplexity": round(math.exp(nats / tokens), 4) if tokens else None,
        "captions": {origin: comparison(counts) for origin, counts in captions.items()},
    }


def _grammar(counts: Counter[str]) -> dict[str, float]:
    """Parts of speech as shares of all words, noun phrases a caption, and the share of these that differ."""
    captions, words, phrases = (counts.pop(name, 0) for name in ("captions", "words", "noun_phrases"))
    distinct = counts.pop("distinct_noun_phrases", 0)
    if not words:
        return {}
    shares = {name: round(count / words, 4) for name, count in counts.items()}
    told = {"captions": captions, "noun_phrases": round(phrases / captions, 3)}
    return told | {"noun_phrase_variety": round(distinct / phrases, 4) if phrases else 0.0} | shares


def _largest(counts: Counter[str], n: int) -> dict[str, int]:
    rest = counts.pop(OTHERS, 0)
    largest = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n])
    rest += counts.total() - sum(largest.values())
    return largest | ({OTHERS: rest} if rest else {})


def _quantile(bins: np.ndarray, span: tuple[float, float], share: float) -> float:
    low, high = span
    wanted = share * int(bins.sum())
    below = 0
    for at, count in enumerate(bins.tolist()):
        if count and below + count >= wanted:
            return float(round(low + (at + (wanted - below) / count) / _BINS * (high - low), 4))
        below += count
    return high
