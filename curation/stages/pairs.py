"""Pairs: has this pair, or this URL, been seen in another shard or dump? Asked before anything is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from curation.joins.pieces import gathered
from curation.schema import schema
from curation.stages.base import Join, Resource


class Pairs(Join):
    """Let each URL be fetched in one shard of all blocks that share an index.

    Of the shards of a block that hold a URL, the one with the smallest sample_id on it keeps all its texts; in the
    others, and in later blocks, they are told as duplicates: `pair` where the same text is kept, else `url`.
    """

    name: ClassVar[str] = "pairs"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "cpu"
    outcome: ClassVar[pa.Schema] = schema("known_pair")

    same_url: bool = Field(
        True, description="another text of a URL that is fetched elsewhere is a duplicate too; false: only equal pairs"
    )

    @property
    def reads(self) -> pa.Schema:
        """Identity and URL."""
        return schema("sample_id", "url")

    @property
    def keys(self) -> pa.Schema:
        """24 bytes a sample. Among 10 billion URLs, about three are taken for another at 64 bits."""
        return pa.schema({"pair": pa.binary(16), "url": pa.uint64()})

    def emit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The sample_id as bytes, and 64 bits of a digest of the URL."""
        pairs = [bytes.fromhex(name) for name in batch.column("sample_id").to_pylist()]
        urls = [
            int.from_bytes(hashlib.blake2b(url.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
            for url in batch.column("url").to_pylist()
        ]
        return pa.RecordBatch.from_arrays(
            [pa.array(pairs, pa.binary(16)), pa.array(urls, pa.uint64())], schema=self.keys
        )

    def match(self, keys: pa.Table, index: Iterable[pa.Table], prepared: pa.Table | None = None) -> pa.Table:
        """Decide in which shard each URL is fetched.

        keys     what `emit` gave, and `shard`, one row a sample in any order
        index    decisions of earlier blocks, rows that are kept, in pieces of any size
        returns  `decisions`, one row for each row of keys, in the same order
        """
        keys = keys.combine_chunks()
        known = np.zeros(keys.num_rows, np.int8)  # 0 not seen, 1 url, 2 pair
        column = "url" if self.same_url else "pair"
        for piece in gathered(index, keys.num_rows):
            seen = np.asarray(pc.is_in(keys[column], value_set=piece[column].combine_chunks()))
            rows = np.flatnonzero(seen)
            same = pc.is_in(keys["pair"].take(pa.array(rows)), value_set=piece["pair"].combine_chunks())
            known[rows] = np.maximum(known[rows], np.where(np.asarray(same), 2, 1))
        new = np.flatnonzero(known == 0)
        known[new] = self._within(keys.take(pa.array(new)))
        kinds = pa.array([None, "url", "pair"], pa.string()).take(pa.array(known))
        return keys.append_column("known_pair", kinds).select(self.decisions.names).cast(self.decisions)

    def _within(self, keys: pa.Table) -> np.ndarray:
        """What rows of one block are to each other: int8 (n,), 0 stays, 1 url, 2 pair."""
        n = keys.num_rows
        if not n:
            return np.empty(0, np.int8)
        halves = np.frombuffer(b"".join(keys["pair"].to_pylist()), ">u8").reshape(n, 2).astype(np.uint64)
        shard = keys["shard"].to_numpy()
        url = keys["url"].to_numpy() if self.same_url else np.zeros(n, np.uint64)
        order = np.lexsort((shard, halves[:, 1], halves[:, 0], url))
        url, halves, shard = url[order], halves[order], shard[order]
        new_pair = np.r_[True, (halves[1:] != halves[:-1]).any(axis=1) | (url[1:] != url[:-1])]
        new_group = np.r_[True, url[1:] != url[:-1]] if self.same_url else new_pair
        elsewhere = shard != shard[new_group][np.cumsum(new_group) - 1]
        starts = np.flatnonzero(new_pair)
        pair = np.cumsum(new_pair) - 1
        pair_kept = np.logical_or.reduceat(~elsewhere, starts)[pair]
        again = np.r_[False, ~new_pair[1:] & (shard[1:] == shard[:-1])]  # the same pair in the same shard
        found = np.where(elsewhere, np.where(pair_kept, 2, 1), np.where(again, 2, 0)).astype(np.int8)
        back = np.empty(n, np.int8)
        back[order] = found
        return back
