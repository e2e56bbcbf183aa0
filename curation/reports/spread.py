"""How a measure is spread over a dump's samples, by language: what a threshold would keep, and who stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation.errors import BadShardError
from curation.recipe import Recipe
from curation.runner import read_outcomes
from curation.store import Store

_BINS = 80
_LARGEST = 12  # languages with a line of their own
_VALUES = 1 << 20
OTHERS = "(others)"


class Values(NamedTuple):
    """Measured samples: value [the column's unit], language, and where each stands."""

    column: str
    value: np.ndarray  # float32 (n,)
    language: np.ndarray  # int16 (n,), into languages
    shard: np.ndarray  # int32 (n,)
    row: np.ndarray  # int32 (n,)
    languages: list[str]
    shards: int  # that they are of

    def to_json(self, line: float, *, above: bool = True) -> dict[str, Any]:
        """Histogram, and the share of each language on the side of the line that is kept.

        above    kept is at or above the line; else at or below it
        returns  low, high, counts (_BINS,), kept, samples, languages [{language, samples, kept}] the largest first
        """
        low, high = (float(self.value.min()), float(self.value.max())) if len(self.value) else (0.0, 1.0)
        counts, _ = np.histogram(self.value, bins=_BINS, range=(low, max(high, low + 1e-6)))
        stays = self.value >= np.float32(line) if above else self.value <= np.float32(line)
        per_language = np.bincount(self.language, minlength=len(self.languages))
        kept = np.bincount(self.language[stays], minlength=len(self.languages))
        order = np.argsort(-per_language, kind="stable").tolist()
        rows = [
            {"language": self.languages[at], "samples": int(per_language[at]), "kept": int(kept[at])}
            for at in order[:_LARGEST]
        ]
        if rest := order[_LARGEST:]:
            rows.append({"language": OTHERS, "samples": int(per_language[rest].sum()), "kept": int(kept[rest].sum())})
        return {
            "low": low,
            "high": high,
            "counts": counts.tolist(),
            "samples": len(self.value),
            "kept": int(stays.sum()),
            "languages": rows,
        }

    def beside(self, line: float, n: int = 6) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Shard and row of the samples nearest below and at or above the line, nearest first; of one shard each call.

        One shard: so that a page reads the tables of one, and not of twelve.
        """
        if not len(self.value):
            return [], []
        distance = np.abs(self.value - np.float32(line))
        here = np.flatnonzero(self.shard == self.shard[int(np.argmin(distance))])
        order = here[np.argsort(distance[here], kind="stable")]
        sides = (order[self.value[order] < np.float32(line)][:n], order[self.value[order] >= np.float32(line)][:n])
        below, above = ([(int(self.shard[at]), int(self.row[at])) for at in side] for side in sides)
        return below, above


def spread(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], column: str) -> Iterator[Values]:
    """Values of a column that a stage measured, whatever gates made of the samples; more with each shard read.

    Reads up to a million values. Shards that are not done are passed over.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    languages: dict[str, int] = {}
    read, n = 0, 0
    for shard in shards:
        first = 0
        try:
            for batch in read_outcomes(store, recipe, dump, shard, [column, "language"]):
                value = batch.column(column).cast(pa.float32()).to_numpy(zero_copy_only=False)
                there = np.flatnonzero(np.isfinite(value))
                named = batch.column("language").take(pa.array(there)).to_pylist()
                of = [languages.setdefault(name or "(none)", len(languages)) for name in named]
                place = np.full(len(there), shard, np.int32)
                parts.append((value[there], np.array(of, np.int16), place, (first + there).astype(np.int32)))
                first += batch.num_rows
                n += len(there)
        except BadShardError:  # not done yet
            continue
        read += 1
        if parts:
            value, of_language, place, row = (np.concatenate(one) for one in zip(*parts, strict=True))
            parts = [(value, of_language, place, row)]
            yield Values(column, value, of_language, place, row, list(languages), read)
        if n >= _VALUES:
            return
