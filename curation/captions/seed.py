"""The seed set that a teacher describes: good pictures that differ from each other, not the first N of a dump."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.cluster.vq import kmeans2, vq

from curation.errors import BadShardError, ConfigError
from curation.recipe import Recipe
from curation.store import Store
from curation.tombstones import read_spared

CLUSTERS = 1000  # most clusters; within one, farthest-point costs members × members taken × dimensions
SAMPLE = 50_000  # rows that k-means learns its centres from
SCHEMA = pa.schema({"sample_id": pa.string(), "shard": pa.int32(), "cluster": pa.int32(), "quality": pa.float32()})


@dataclass(frozen=True)
class SeedSet:
    """key: its table in the store (sample_id, shard, cluster, quality); eligible: samples above every bar."""

    key: str
    chosen: int
    eligible: int
    clusters: int


def choose_seed(
    vectors: np.ndarray, quality: np.ndarray, count: int, *, clusters: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `count` samples that cover the space of their embeddings, and the cluster of each.

    k-means parts the space, clusters get equal shares (one that is too small leaves its rest to the others), and
    within a cluster each next sample is the one farthest from those taken; the first is the one of best quality.

    vectors   float (n, d), norm 1        quality   float (n,), more is better
    returns   int (m,) rows in rising order and int (m,) clusters, m = min(count, n)
    source    Gonzalez 1985 (farthest-point clustering)
    """
    n = len(vectors)
    if count >= n:
        return np.arange(n), np.zeros(n, int)
    vectors = np.ascontiguousarray(vectors, np.float32)
    rng = np.random.default_rng(seed)
    learnt = vectors[np.sort(rng.permutation(n)[:SAMPLE])]
    with warnings.catch_warnings():
        # an empty cluster has no share; copies make many
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
        centres, _ = kmeans2(learnt, min(clusters, count, len(learnt)), minit="points", rng=rng, missing="warn")
    labels, _ = vq(vectors, centres)
    taken: list[np.ndarray] = []
    for cluster, share in enumerate(_shares(np.bincount(labels, minlength=len(centres)), count)):
        if share:
            members = np.flatnonzero(labels == cluster)
            taken.append(members[_farthest(vectors[members], quality[members], share)])
    rows = np.sort(np.concatenate(taken))
    return rows, labels[rows].astype(int)


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many to take of each cluster: as equal as the sizes allow, `count` in all (count <= sum of sizes)."""
    shares = np.zeros_like(sizes)
    while (left := count - int(shares.sum())) > 0:
        room = np.flatnonzero(shares < sizes)
        if left < len(room):
            shares[room[np.argsort(-sizes[room], kind="stable")[:left]]] += 1
            break
        shares[room] = np.minimum(sizes[room], shares[room] + left // len(room))
    return shares


def _farthest(vectors: np.ndarray, quality: np.ndarray, count: int) -> np.ndarray:
    chosen = [int(np.argmax(quality))]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < count:
        nearest[chosen[-1]] = np.inf  # never again, were it a copy of what is left
        chosen.append(int(np.argmin(nearest)))
        np.maximum(nearest, vectors @ vectors[chosen[-1]], out=nearest)
    return np.array(chosen)


def make_seed_set(
    store: Store, recipe: Recipe, dump: str, shards: Sequence[int], name: str, count: int,
    *, bars: Mapping[str, float], clusters: int = CLUSTERS, seed: int = 0,
) -> SeedSet:  # fmt: skip
    """Choose a seed set from the samples of a dump that every gate let through, and write it to the store.

    bars     least value by measured column, such as {"similarity": 0.3, "aesthetic": 5}; the first one is what the
             best of a cluster is told by
    raises   ConfigError where there is no bar, nothing to choose from, or a column that the recipe does not measure
    """
    if not bars or count < 1:
        raise ConfigError("seed set: give a count from 1 on, and at least one quality bar such as similarity=0.3")
    _expect_numbers(recipe, bars)
    ids, places, vectors, quality = _eligible(store, recipe, dump, shards, bars)
    order = np.argsort(ids)  # the choice does not depend on how samples were spread over shards
    rows, labels = choose_seed(vectors[order], quality[order], count, clusters=clusters, seed=seed)
    chosen = order[rows]
    settings = {"dump": dump, "recipe": recipe.name, "count": count, "bars": dict(bars), "clusters": clusters}
    settings["seed"] = seed
    schema = SCHEMA.with_metadata({"curation.seed_set": json.dumps(settings)})
    columns = [
        pa.array(ids[chosen], pa.string()), pa.array(places[chosen], pa.int32()),
        pa.array(labels, pa.int32()), pa.array(quality[chosen], pa.float32()),
    ]  # fmt: skip
    key = f"captions/seeds/{name}.parquet"
    with store.write_table(key, schema) as writer:
        writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
    return SeedSet(key, len(chosen), len(ids), len(set(labels.tolist())))


def _expect_numbers(recipe: Recipe, bars: Mapping[str, float]) -> None:
    stages = filter(None, map(recipe.stage, recipe.stage_names))
    measured = {field.name: field.type for stage in stages for field in stage.produces}
    if "img_emb" not in measured:
        raise ConfigError(f"seed set: recipe {recipe.name} has no stage score, whose embeddings it is spread over")
    numbers = [name for name, of in measured.items() if pa.types.is_integer(of) or pa.types.is_floating(of)]
    for column in bars:
        if column not in numbers:
            raise ConfigError(
                f"bar {column}: recipe {recipe.name} measures no such number; it has {', '.join(numbers)}"
            )


def _eligible(
    store: Store, recipe: Recipe, dump: str, shards: Sequence[int], bars: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ids: list[str] = []
    places: list[int] = []
    vectors: list[np.ndarray] = []
    quality: list[np.ndarray] = []
    for shard in shards:
        try:
            for batch in read_spared(store, recipe, dump, shard, ["img_emb", *bars]):
                values = {name: batch.column(name).to_numpy(zero_copy_only=False).astype(float) for name in bars}
                good = np.asarray(batch.column("img_emb").is_valid())
                for name, least in bars.items():
                    good &= np.nan_to_num(values[name], nan=-np.inf) >= least
                if not good.any():
                    continue
                kept = batch.filter(pa.array(good))
                ids += kept.column("sample_id").to_pylist()
                places += [shard] * len(kept)
                # of fixed size: the flat values are the rows, one after the other
                vectors.append(np.asarray(kept.column("img_emb").flatten(), np.float16).reshape(len(kept), -1))
                quality.append(values[next(iter(bars))][good])
        except BadShardError:  # not done yet
            continue
    if not ids:
        told = ", ".join(f"{name} from {least:g} on" for name, least in bars.items())
        raise ConfigError(f"{dump}: no sample of recipe {recipe.name} that is done and kept has {told}")
    return np.array(ids), np.array(places), np.concatenate(vectors), np.concatenate(quality)
