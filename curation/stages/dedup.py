"""Dedup: the same pair, the same bytes, the same URL, or nearly the same picture as a sample that is kept.

Work across shards in three steps: emit the keys of a block's shards, match them against each other and against the
index of earlier blocks, apply the decisions shard by shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from curation.images.phash import plain
from curation.joins.best_first import Near, keep_best, near
from curation.joins.cosine import centroids, nearest, pairs_above
from curation.joins.hamming import pairs_within
from curation.joins.pieces import gathered
from curation.schema import schema
from curation.stages.base import Join, Resource

_KINDS = ("pair", "sha256", "url", "phash", "embedding")
"""Why a sample is a duplicate; where several hold, the first is told."""

_LOOK, _ROW = 3, 4  # among the codes that keep_best is given

_OUTCOME = schema("duplicate_kind", "duplicate_of", "group_id", "group_size")
_ID = pa.binary(16)


class Dedup(Join):
    """Keep the best of each group of duplicates, by a declared rank.

    Samples are taken by rank; one that duplicates a sample taken before it is dropped in its favour. So no two kept
    samples are duplicates, every dropped one duplicates a kept one (chains of look-alikes do not collapse into one
    group), and the result does not depend on the order of shards. What earlier blocks kept always stands.
    """

    name: ClassVar[str] = "dedup"
    # 2: the same URL is a duplicate; embeddings; 3: of equally near known ones the newest; 4: plain looks apart
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "cpu"
    outcome: ClassVar[pa.Schema] = _OUTCOME

    rank: tuple[Literal["pixels", "similarity"], ...] = Field(
        ("pixels", "similarity"), description="what makes a sample the best of its group, most important first"
    )
    same_url: bool = Field(True, description="samples of one URL are duplicates, also where its bytes have changed")
    phash_radius: int = Field(4, ge=0, le=8, description="bits of 64 by which two pictures' pHash may differ")
    min_spread: float = Field(
        4.0,
        ge=0,
        description="pictures flatter than this (phash_spread) are compared by bytes only: their bits are noise; so "
        "are stripes and mirrored patterns, whose bits are few",
    )
    embedding_cosine: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cosine of img_emb from which two pictures are duplicates (SemDeDup); null: not compared. It is "
        "the model's: 0.94 in clip-retrieval, 0.99 in NeMo Curator, both with OpenAI's CLIP",
    )
    cluster_rows: int = Field(
        2000, ge=1, description="samples a cluster holds about; pairs in two clusters are not found"
    )

    @property
    def reads(self) -> pa.Schema:
        """Columns of every sample that matching needs."""
        names = ["sample_id", "url", "sha256", "phash", "phash_spread", "original_width", "original_height"]
        names += ["similarity"] * ("similarity" in self.rank) + ["img_emb"] * (self.embedding_cosine is not None)
        return schema(*names)

    @property
    def keys(self) -> pa.Schema:
        """What matching holds of a sample: 67 bytes, and the embedding where it is compared."""
        fields = {"pair": _ID, "content": _ID, "url": pa.uint64(), "look": pa.uint64(), "pixels": pa.int64()}
        if "similarity" in self.rank:
            fields["similarity"] = pa.float32()
        if self.embedding_cosine is not None:
            fields["img_emb"] = pa.list_(pa.float16())
            fields["cluster"] = pa.int32()
        return pa.schema(fields)

    def emit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Keys of the samples of a batch that has the columns of `reads`. look is null for a picture too plain."""
        looks = np.array([int(h or "0", 16) for h in batch.column("phash").to_pylist()], np.uint64)
        flat = pc.less(pc.fill_null(batch.column("phash_spread"), 0.0), self.min_spread)
        flat = pc.or_(flat, pa.array(plain(looks)))
        side = {n: batch.column(f"original_{n}").cast(pa.int64()) for n in ("width", "height")}
        columns = {
            "pair": pa.array([bytes.fromhex(i) for i in batch.column("sample_id").to_pylist()], _ID),
            # half of a sha256 tells contents apart as well as the 128-bit sample_id does pairs
            "content": pa.array(
                [bytes.fromhex(s[:32]) if s else None for s in batch.column("sha256").to_pylist()], _ID
            ),
            "url": pa.array([_url_key(url) for url in batch.column("url").to_pylist()], pa.uint64()),
            "look": pc.if_else(flat, pa.scalar(None, pa.uint64()), pa.array(looks)),
            "pixels": pc.multiply(side["width"], side["height"]),
        }
        for name in {"similarity", "img_emb"} & set(self.keys.names):
            columns[name] = batch.column(name)
        if "cluster" in self.keys.names:
            columns["cluster"] = pa.nulls(batch.num_rows, pa.int32())
        return pa.RecordBatch.from_arrays([columns[name] for name in self.keys.names], schema=self.keys)

    def kept(self, decisions: pa.Table) -> pa.Table:
        """Those that later blocks are matched against, without what ranked them: the rank may have changed since."""
        names = [name for name in self.keys.names if name not in ("pixels", "similarity")]
        return super().kept(decisions).select(names)

    def prepare(self, keys: pa.Table) -> pa.Table | None:
        """Centroids of the clusters, from the first block that is matched: later ones must fall into the same."""
        if self.embedding_cosine is None or not keys.num_rows:
            return None
        vectors = _vectors(keys.take(pc.sort_indices(keys["pair"])))
        found = centroids(vectors, max(1, len(vectors) // self.cluster_rows))
        return pa.table({"centroid": pa.FixedSizeListArray.from_arrays(found.ravel(), found.shape[1])})

    def match(self, keys: pa.Table, index: Iterable[pa.Table], prepared: pa.Table | None = None) -> pa.Table:
        """Decide which samples of a block are duplicates.

        keys      what `emit` gave, and `shard`, one row a sample in any order
        index     decisions of earlier blocks, rows that are kept, in pieces of any size
        prepared  what `prepare` gave to the first block of this index
        returns   `decisions`, one row for each row of keys, in the same order
        """
        by_rank = _by_rank(keys, self.rank)
        taken = keys.take(by_rank).combine_chunks()
        if prepared is not None and taken.num_rows:
            centres = np.stack(prepared["centroid"].to_numpy())
            clusters = pa.array(nearest(_vectors(taken), centres).astype(np.int32))
            taken = taken.set_column(taken.schema.get_field_index("cluster"), "cluster", clusters)
        known_kind, known = self._known(taken, index)
        looks, look_of = np.unique(taken["look"].drop_null().to_numpy(), return_inverse=True)
        textured = ~np.asarray(taken["look"].is_null())
        look = np.full(len(taken), -1)
        look[textured] = look_of
        equal = [_codes(taken["pair"]), _codes(taken["content"])]
        equal.append(_codes(taken["url"]) if self.same_url else np.full(len(taken), -1))
        equal += [look, np.arange(len(taken))]
        head, which = keep_best(equal, self._near(taken, looks), known_kind >= 0)
        # equal pHashes and near ones are the same kind; nothing equals by row
        kind = np.where(known_kind >= 0, known_kind, np.array([0, 1, 2, _LOOK, -1, 3, 4, -1])[which])
        back = np.empty_like(by_rank)
        back[by_rank] = np.arange(len(by_rank))
        decided = self._decided(taken, kind, head, known)
        return decided.take(back).combine_chunks()

    def _near(self, taken: pa.Table, looks: np.ndarray) -> list[Near]:
        a, b = pairs_within(looks, self.phash_radius)
        # by distance, then by hash: the closest kept sample is named
        found = [near(_LOOK, a, b, np.bitwise_count(looks[a] ^ looks[b]), len(looks))]
        if self.embedding_cosine is not None and len(taken):
            i, j, cosine = pairs_above(_vectors(taken), taken["cluster"].to_numpy(), self.embedding_cosine)
            found.append(near(_ROW, i, j, -cosine, len(taken)))
        return found

    def _known(self, taken: pa.Table, index: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
        """Kind (-1: none) and sample_id of what earlier blocks kept and a row duplicates: int8 (n,), object (n,)."""
        n = len(taken)
        kind, known = np.full(n, len(_KINDS), np.int8), np.full(n, None, object)
        distance = np.full(n, 65, np.int64)
        for piece in gathered(index, n):
            ids = piece["pair"].combine_chunks()
            exact = [("pair", 0), ("content", 1)] + [("url", 2)] * self.same_url
            for column, at in exact:
                found = pc.index_in(taken[column], value_set=piece[column].combine_chunks(), skip_nulls=True)
                better = np.asarray(found.is_valid()) & (kind > at)
                known[better] = ids.take(found.combine_chunks().filter(pa.array(better))).to_pylist()
                kind[better] = at
            self._known_looks(taken, piece, kind, known, distance)
            if self.embedding_cosine is not None and n and len(piece):
                self._known_embeddings(taken, piece, kind, known)
        return np.where(kind == len(_KINDS), -1, kind), known

    def _known_looks(
        self, taken: pa.Table, piece: pa.Table, kind: np.ndarray, known: np.ndarray, distance: np.ndarray
    ) -> None:
        rows = np.flatnonzero(np.asarray(taken["look"].is_valid()) & (kind >= 3))
        old = np.flatnonzero(np.asarray(piece["look"].is_valid()))
        old_looks, first = np.unique(piece["look"].drop_null().to_numpy(), return_index=True)
        new_looks, look = np.unique(taken["look"].take(pa.array(rows)).to_numpy(), return_inverse=True)
        both = np.concatenate([old_looks, new_looks])
        a, b = pairs_within(both, self.phash_radius, n_old=len(old_looks), only_old=True)
        apart = np.bitwise_count(both[a] ^ both[b]).astype(np.int64)
        order = np.lexsort((first[a], apart, b))  # whatever pieces the index comes in, the newest is named
        told, at = np.unique(b[order], return_index=True)
        nearest_old = np.full(len(new_looks), -1)
        nearest_old[told - len(old_looks)] = a[order][at]
        bits = np.full(len(new_looks), 65)
        bits[told - len(old_looks)] = apart[order][at]
        better = (nearest_old[look] >= 0) & (bits[look] < distance[rows])
        hit = rows[better]
        known[hit] = piece["pair"].take(pa.array(old[first[nearest_old[look[better]]]])).to_pylist()
        kind[hit], distance[hit] = 3, bits[look[better]]

    def _known_embeddings(self, taken: pa.Table, piece: pa.Table, kind: np.ndarray, known: np.ndarray) -> None:
        rows = np.flatnonzero(kind > 4)
        vectors = np.concatenate([_vectors(piece), _vectors(taken)[rows]])
        clusters = np.concatenate([piece["cluster"].to_numpy(), taken["cluster"].to_numpy()[rows]])
        assert self.embedding_cosine is not None
        old, new, cosine = pairs_above(vectors, clusters, self.embedding_cosine, n_old=len(piece), only_old=True)
        order = np.lexsort((old, -cosine, new))
        told, at = np.unique(new[order], return_index=True)
        hit = rows[told - len(piece)]
        known[hit] = piece["pair"].take(pa.array(old[order][at])).to_pylist()
        kind[hit] = 4

    def _decided(self, taken: pa.Table, kind: np.ndarray, head: np.ndarray, known: np.ndarray) -> pa.Table:
        of_group = head.astype(np.int64)
        barred = np.flatnonzero(head < 0)
        before = pa.array(known[barred].tolist(), _ID).dictionary_encode()
        of_group[barred] = len(taken) + np.asarray(before.indices)
        _, group, sizes = np.unique(of_group, return_inverse=True, return_counts=True)
        size = sizes[group] + (head < 0)  # a head of an earlier block counts too
        grouped = np.flatnonzero(size > 1)  # the few rows that need a name: of all of them names are gigabytes
        names = np.full(len(taken), None, object)
        heads = pa.concat_arrays([taken["pair"].combine_chunks(), before.dictionary])
        names[grouped] = [of.hex() for of in heads.take(pa.array(of_group[grouped])).to_pylist()]
        columns = {
            "duplicate_kind": pa.array(np.array([*_KINDS, None], object)[kind], pa.string()),
            "duplicate_of": pa.array(names, pa.string(), mask=kind < 0),
            "group_id": pa.array(names, pa.string()),
            "group_size": pa.array(size, pa.int32()),
        }
        for name, column in columns.items():
            taken = taken.append_column(name, column)
        return taken.select(self.decisions.names).cast(self.decisions)


def _url_key(url: str) -> int:
    """64 bits of the URL: among 10 billion, three pairs would be taken for the same."""
    return int.from_bytes(hashlib.blake2b(url.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Number of each distinct value, -1 for null: int64 (n,)."""
    codes = column.combine_chunks().dictionary_encode().indices
    return np.asarray(pc.fill_null(codes, -1)).astype(np.int64)


def _vectors(table: pa.Table) -> np.ndarray:
    column = table["img_emb"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _by_rank(keys: pa.Table, rank: tuple[str, ...]) -> np.ndarray:
    """Row numbers, best first; what the rank leaves equal goes by sample_id, then by shard."""
    order = [(name, "descending") for name in rank] + [("pair", "ascending"), ("shard", "ascending")]
    # pixels and similarity may be null: such rows come last
    found: np.ndarray = pc.sort_indices(keys.select([name for name, _ in order]), sort_keys=order).to_numpy()
    return found
