"""Leakage: is this picture one of an evaluation set's?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from curation.schema import schema
from curation.stages.base import Pin, Resource, Stage, Tally


class Leakage(Stage):
    """Compare pictures with evaluation sets by bytes and by pHash; name the set and the item that was hit."""

    name: ClassVar[str] = "leakage"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "cpu"
    consumes: ClassVar[pa.Schema] = schema("sha256", "phash", "phash_spread")

    evalsets: Annotated[tuple[str, ...], Pin("evalset")] = Field((), description="evaluation sets in the store")
    phash_radius: int = Field(6, ge=0, le=12, description="bits of 64 by which two pictures' pHash may differ")
    min_spread: float = Field(4.0, ge=0, description="flatter pictures are compared by bytes only")

    @property
    def produces(self) -> pa.Schema:
        """Kind of hit, set, item and distance in bits."""
        return schema("leak_kind", "leak_set", "leak_item", "leak_distance")

    @cached_property
    def _items(self) -> tuple[list[tuple[str, str]], dict[str, int], np.ndarray, np.ndarray]:
        names: list[tuple[str, str]] = []
        by_bytes: dict[str, int] = {}
        hashes: list[int] = []
        rows: list[int] = []
        for path in self.evalsets:
            table = pq.read_table(path)
            for item, sha256, phash, spread in zip(*(column.to_pylist() for column in table.columns), strict=True):
                by_bytes.setdefault(sha256, len(names))
                if spread >= self.min_spread:
                    hashes.append(int(phash, 16))
                    rows.append(len(names))
                names.append((Path(path).parent.name, item))
        return names, by_bytes, np.array(hashes, np.uint64), np.array(rows, np.int64)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Measure each sample on its own."""
        tally["eval_items"] = len(self._items[0])
        for batch in batches:
            rows = zip(*(batch.column(name).to_pylist() for name in self.consumes.names), strict=True)
            hits = [self._hit(*row) for row in rows]
            columns = zip(*hits, strict=True)
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(columns, self.produces, strict=True)],
                schema=self.produces,
            )

    def _hit(self, sha256: str, phash: str, spread: float) -> tuple[str | None, str | None, str | None, float | None]:
        names, by_bytes, hashes, rows = self._items
        if sha256 in by_bytes:
            return "sha256", *names[by_bytes[sha256]], 0.0
        if len(hashes) and spread >= self.min_spread:
            distances = np.bitwise_count(hashes ^ np.uint64(int(phash, 16)))
            nearest = int(distances.argmin())
            if distances[nearest] <= self.phash_radius:
                return "phash", *names[rows[nearest]], float(distances[nearest])
        return None, None, None, None
