"""Leakage: is this picture, or this caption, one of an evaluation set's?"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from curation.errors import ConfigError
from curation.images.phash import plain
from curation.joins.cosine import most_alike
from curation.joins.hamming import pairs_within
from curation.models.descriptor import IMAGENET_MEAN, IMAGENET_STD, Descriptor
from curation.schema import schema
from curation.stages.base import Pin, PinnedFile, Resource, Stage, Tally
from curation.text.ngrams import ngrams

_AHEAD_ROWS = 1 << 16  # joined with all items at once: of a million items that costs seconds, however few the rows


class Leakage(Stage):
    """Compare samples with evaluation sets; name the set and the item that was hit, and how far it is.

    The first of these that holds is told: equal bytes, pHash within the radius, descriptor above the cosine, caption
    and item sharing a run of eight words (or being the same shorter text).
    """

    name: ClassVar[str] = "leakage"
    # 2: embeddings and texts; of equally near pictures the first item; 3: plain looks apart
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "cpu"

    evalsets: Annotated[tuple[str, ...], Pin("evalset")] = Field((), description="evaluation sets in the store")
    phash_radius: int = Field(6, ge=0, le=12, description="bits of 64 by which two pictures' pHash may differ")
    min_spread: float = Field(4.0, ge=0, description="flatter pictures, stripes and the like by bytes only")
    embedding_cosine: float | None = Field(
        None,
        gt=0,
        le=1,
        description="largest cosine with any item from which a picture is a leak; null: not compared. It belongs to "
        "the descriptor: calibrate it (curation calibrate-leakage); DataComp's 0.604169 is ISC's and no other's",
    )
    embedding_space: str = Field("embedded", description="of the evaluation sets' embeddings and of the samples'")
    descriptor: PinnedFile = Field(
        "",
        description="TorchScript file of a descriptor (SSCD, ISC): float32 (n, 3, s, s) to (n, d); empty: img_emb",
    )
    descriptor_side_px: int = Field(288, ge=16, description="side of the square that the descriptor takes")
    descriptor_mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="of RGB in 0..1: ImageNet's")
    descriptor_std: tuple[float, float, float] = Field(IMAGENET_STD, description="of RGB in 0..1: ImageNet's")
    text: bool = Field(True, description="compare captions with the items' questions, answers and captions")

    @model_validator(mode="after")
    def _descriptor_has_a_use(self) -> Leakage:
        if self.descriptor and self.embedding_cosine is None:
            raise ValueError("descriptor: give embedding_cosine too, the cosine from which a picture is a leak")
        return self

    @property
    def consumes(self) -> pa.Schema:
        """Hashes, and what the other comparisons need."""
        names = ["sha256", "phash", "phash_spread"] + ["text"] * self.text
        if self.embedding_cosine is not None:
            names.append("image" if self.descriptor else "img_emb")
        return schema(*names)

    @property
    def produces(self) -> pa.Schema:
        """Kind of hit, set, item and distance: bits, 1 - cosine, or the share of the caption that is its own."""
        return schema("leak_kind", "leak_set", "leak_item", "leak_distance")

    @cached_property
    def _items(self) -> _Items:
        columns = ["item", "sha256", "phash", "phash_spread"] + ["ngrams"] * self.text
        columns += ["embedding"] * (self.embedding_cosine is not None)
        tables = []
        for path in self.evalsets:
            file = pq.ParquetFile(path)
            space = (file.schema_arrow.metadata or {}).get(b"curation.embedding_space", b"").decode()
            if self.embedding_cosine is not None and space != self.embedding_space:
                raise ConfigError(
                    f"stages.leakage.embedding_space is {self.embedding_space!r}, evaluation set "
                    f"{Path(path).parent.name} is embedded in {space or 'none'!r}: index it with that model"
                )
            table = file.read(columns).replace_schema_metadata(None)
            name = pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(table), np.int32)), pa.array([Path(path).parent.name])
            )
            tables.append(table.append_column("set", name.cast(pa.string())))
        return _Items(pa.concat_tables(tables), self.min_spread) if tables else _Items(None, self.min_spread)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Measure samples in large pieces, in order."""
        tally["eval_items"] = self._items.n
        ahead: list[pa.RecordBatch] = []
        for batch in batches:
            ahead.append(self._described(batch))
            if sum(one.num_rows for one in ahead) >= _AHEAD_ROWS:
                yield from self._measured(ahead)
                ahead = []
        yield from self._measured(ahead)

    def _measured(self, batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if not batches:
            return
        table = pa.Table.from_batches(batches).combine_chunks()
        answer = self._items.hits(table, self.phash_radius, self.embedding_cosine).cast(self.produces)
        start = 0
        for batch in batches:
            yield answer.slice(start, batch.num_rows).combine_chunks().to_batches()[0]
            start += batch.num_rows

    def _described(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the user's descriptor in the place of the pictures."""
        if not self.descriptor or self.embedding_cosine is None:
            return batch
        vectors = self.describe(batch.column("image").to_pylist())
        columns = [batch.column(name) for name in batch.schema.names if name != "image"]
        names = [name for name in batch.schema.names if name != "image"]
        flat = pa.array(vectors.astype(np.float16).ravel())
        offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
        return pa.RecordBatch.from_arrays(
            [*columns, pa.ListArray.from_arrays(offsets, flat)], names=[*names, "img_emb"]
        )

    def describe(self, images: list[bytes]) -> np.ndarray:
        """Descriptors of encoded pictures by the user's TorchScript file: float32 (n, d), rows of norm 1."""
        from PIL import Image

        return self._describes([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])

    @cached_property
    def _describes(self) -> Descriptor:
        return Descriptor(self.descriptor, self.descriptor_side_px, self.descriptor_mean, self.descriptor_std)


def _told_apart(phash: pa.ChunkedArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows whose hash tells their picture from unlike ones, and the hashes: int64 (m,), uint64 (m,)."""
    hashes = np.array([int(h, 16) for h in phash.take(pa.array(rows)).to_pylist()], np.uint64)
    useful = ~plain(hashes)
    return rows[useful], hashes[useful]


class _Items:
    """Items of all sets, in arrays that a million of them fit into a few hundred MB of."""

    def __init__(self, table: pa.Table | None, min_spread: float) -> None:
        self.n = len(table) if table is not None else 0
        self._min_spread = min_spread
        if table is None:
            return
        self._names = table.select(["set", "item"]).combine_chunks()
        shas = table["sha256"].to_numpy()
        prefix = np.array([int(sha[:15], 16) if sha else -1 for sha in shas], np.int64)
        self._sha_rows = np.argsort(prefix, kind="stable")
        self._shas, self._sha_prefix = shas, prefix[self._sha_rows]
        spread = np.nan_to_num(table["phash_spread"].to_numpy(), nan=-1.0)
        self._hash_rows = np.flatnonzero(spread >= min_spread)
        self._hash_rows, self._hashes = _told_apart(table["phash"], self._hash_rows)
        self._grams = self._gram_rows = np.empty(0, np.int64)
        if "ngrams" in table.column_names:
            grams = table["ngrams"].combine_chunks()
            numbers = np.asarray(grams.flatten())
            owner = np.repeat(np.arange(self.n), np.asarray(grams.value_lengths().fill_null(0)))
            self._grams, first = np.unique(numbers, return_index=True)
            self._gram_rows = owner[first]
        self._vectors, self._vector_rows = np.empty((0, 1), np.float16), np.empty(0, np.int64)
        if "embedding" in table.column_names:
            self._vector_rows = np.flatnonzero(np.asarray(table["embedding"].is_valid()))
            found = table["embedding"].combine_chunks().drop_null()
            self._vectors = np.asarray(found.flatten()).reshape(len(found), -1)

    def hits(self, samples: pa.Table, radius: int, cosine: float | None) -> pa.Table:
        """Best hit of each sample: leak_kind, leak_set, leak_item, leak_distance."""
        n = samples.num_rows
        kind, item, distance = np.full(n, None, object), np.full(n, -1), np.full(n, np.nan)

        def tell(what: str, rows: np.ndarray, items: np.ndarray, far: np.ndarray | float) -> None:
            new = np.array([at is None for at in kind[rows]], bool)
            kind[rows[new]], item[rows[new]] = what, items[new]
            distance[rows[new]] = far[new] if isinstance(far, np.ndarray) else far

        if self.n:
            tell("sha256", *self._same_bytes(samples["sha256"].to_pylist()), 0.0)
            tell("phash", *self._near_looks(samples, radius))
            if cosine is not None:
                tell("embedding", *self._near_vectors(samples["img_emb"].combine_chunks(), cosine))
            if "text" in samples.column_names:
                tell("text", *self._shared_words(samples["text"].to_pylist()))
            names = self._names.take(pa.array(item, mask=item < 0))
        else:
            names = pa.table({"set": pa.nulls(n, pa.string()), "item": pa.nulls(n, pa.string())})
        columns = [
            pa.array(kind, pa.string()),
            names["set"],
            names["item"],
            pa.array(distance, mask=np.isnan(distance)),
        ]
        return pa.table(columns, names=["leak_kind", "leak_set", "leak_item", "leak_distance"])

    def _same_bytes(self, shas: list[str]) -> tuple[np.ndarray, np.ndarray]:
        prefix = np.array([int(sha[:15], 16) for sha in shas], np.int64)
        at = np.searchsorted(self._sha_prefix, prefix)
        inside = np.flatnonzero(at < self.n)
        found = inside[self._sha_prefix[at[inside]] == prefix[inside]]
        items = self._sha_rows[at[found]]
        same = np.array([shas[row] == self._shas[one] for row, one in zip(found, items, strict=True)], bool)
        return found[same], items[same]

    def _near_looks(self, samples: pa.Table, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.flatnonzero(samples["phash_spread"].to_numpy() >= self._min_spread)
        rows, hashes = _told_apart(samples["phash"], rows)
        both = np.concatenate([self._hashes, hashes])
        old, new = pairs_within(both, radius, n_old=len(self._hashes), only_old=True)
        bits = np.bitwise_count(both[old] ^ both[new]).astype(float)
        order = np.lexsort((old, bits, new))
        told, at = np.unique(new[order], return_index=True)
        return rows[told - len(self._hashes)], self._hash_rows[old[order][at]], bits[order][at]

    def _near_vectors(self, vectors: pa.ListArray, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.flatnonzero(np.asarray(vectors.is_valid()))
        if not len(rows) or not len(self._vectors):
            return rows[:0], rows[:0], np.empty(0)
        mine = np.asarray(vectors.drop_null().flatten()).reshape(len(rows), -1).astype(np.float32)
        if mine.shape[1] != self._vectors.shape[1]:
            raise ConfigError(
                f"stages.leakage: samples' embeddings have {mine.shape[1]} numbers, the evaluation sets' "
                f"{self._vectors.shape[1]}: index them with the model that scores"
            )
        where, best = most_alike(mine, self._vectors)
        hit = best >= cosine
        return rows[hit], self._vector_rows[where[hit]], (1 - best[hit]).astype(float)

    def _shared_words(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers = [ngrams(text) for text in texts]
        row = np.repeat(np.arange(len(texts)), [len(one) for one in numbers])
        flat = np.array([number for one in numbers for number in one], np.int64)
        at = np.minimum(np.searchsorted(self._grams, flat), max(len(self._grams) - 1, 0))
        shared = self._grams[at] == flat if len(self._grams) else np.zeros(len(flat), bool)
        told, first, counts = np.unique(row[shared], return_index=True, return_counts=True)
        own = 1 - counts / np.bincount(row, minlength=len(texts))[told]
        return told, self._gram_rows[at[shared][first]], own
