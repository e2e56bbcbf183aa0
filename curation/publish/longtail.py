"""The long tail of a balanced version: which concepts are rare, and what a budget to fill them up should go for."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curation.errors import ConfigError
from curation.publish.draws import draws, mixed, share
from curation.publish.export import kind_of
from curation.publish.selection import long_tail_key
from curation.publish.verify import read_manifest
from curation.store import Store
from curation.text.concepts import UNSPACED, Concepts

Purpose = Literal["crawl", "augment", "caption"]
"""crawl: look for more pictures of the concept; augment, caption: make more of the samples that name it."""


def long_tail(store: Store, recipe: str, version: str, listed: int = 100) -> dict[str, Any]:
    """Which concepts of a balanced version are rare, and how many samples each lacks to its list's threshold.

    returns  plain data: version, lists ({name: threshold, tail_share, ...; rare (concepts below the threshold), absent
             (named by no caption), lacking (samples in all), rarest and most_common ({concept: candidates, kept,
             lacks}), `listed` of each})
    raises   ConfigError when the version was not balanced
    """
    manifest = read_manifest(store, recipe, version)
    told = {}
    for name, (concepts, candidates, kept, lacks) in _tables(store, recipe, manifest).items():
        present = np.flatnonzero(candidates)
        order = present[np.argsort(candidates[present], kind="stable")]
        told[name] = manifest["selection"]["lists"][name] | {
            "rare": int((lacks > 0).sum()),
            "absent": int((candidates == 0).sum()),
            "lacking": int(lacks.sum()),
            **{
                title: {
                    concepts[at]: {"candidates": int(candidates[at]), "kept": int(kept[at]), "lacks": int(lacks[at])}
                    for at in places[:listed].tolist()
                }
                for title, places in (("rarest", order), ("most_common", order[::-1]))
            },
        }
    return {"version": manifest["version"], "lists": told}


def spend(
    store: Store, recipe: str, version: str, slots: int, purpose: Purpose, *, seed: int = 0, samples_each: int = 100
) -> list[dict[str, Any]]:
    """Spend a budget over the rare concepts, each in proportion to what it lacks; the same for the same seed.

    For augment and caption only concepts that a sample of the version names get slots, and the samples are named that
    shall be used, each as often as the next one; the captions of the version are read once, in batches.

    returns  rows of list, concept, candidates, lacks, slots, samples (sample_id, url, dump, shard, key: at most
             `slots` and `samples_each` of them; fewer than slots: use them several times)
    raises   ConfigError when the version was not balanced
    """
    manifest = read_manifest(store, recipe, version)
    rows: list[dict[str, Any]] = []
    for name, (concepts, candidates, kept, lacks) in _tables(store, recipe, manifest).items():
        weights = lacks if purpose == "crawl" else np.where(kept > 0, lacks, 0)
        rows += [
            {"list": name, "concept": concept, "candidates": int(n), "lacks": int(lack), "weight": int(weight)}
            for concept, n, lack, weight in zip(concepts, candidates, lacks, weights, strict=True)
            if weight
        ]
    given = allocated(np.array([row.pop("weight") for row in rows], np.float64), slots, seed)
    rows = [row | {"slots": int(n)} for row, n in zip(rows, given, strict=True) if n]
    if purpose != "crawl":
        _name_samples(store, manifest, rows, seed, samples_each)
    return sorted(rows, key=lambda row: (-row["slots"], row["list"], row["concept"]))


def allocated(weights: np.ndarray, slots: int, seed: int) -> np.ndarray:
    """Slots of each weight: its share rounded up or down, by one systematic draw, so that they add up to all slots.

    weights  float64 (n,), at least 0     returns  int64 (n,)
    """
    if not weights.sum():
        return np.zeros(len(weights), np.int64)
    start = share(mixed(np.array([seed], np.uint64)))[0]
    up_to = np.floor(np.cumsum(weights) / weights.sum() * slots + start)
    up_to[-1] = np.floor(slots + start)
    return np.asarray(np.diff(up_to, prepend=np.floor(start)).astype(np.int64))


def _name_samples(store: Store, manifest: dict[str, Any], rows: list[dict[str, Any]], seed: int, each: int) -> None:
    """Put the samples with the smallest draws into each row."""
    by_list: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        by_list.setdefault(row["list"], []).append(at)
    ignore_case = manifest["recipe"]["publish"]["balance"]["ignore_case"]
    automata = {
        name: Concepts([rows[at]["concept"] for at in places], spaces=name not in UNSPACED, ignore_case=ignore_case)
        for name, places in by_list.items()
    }
    best: list[list[tuple[int, dict[str, Any]]]] = [[] for _ in rows]
    for part in manifest["parts"]:
        table_key = next((key for key in part["files"] if kind_of(key) == "metadata"), None)
        if table_key is None:
            raise ConfigError(f"{manifest['version']}: has no metadata tables: set publish.parquet")
        with store.open_parquet(table_key) as table:
            for batch in table.iter_batches(columns=["sample_id", "key", "url", "text", "language"]):
                place = {"dump": part["dump"], "shard": part["shard"]}
                _take_smallest(batch, place, by_list, automata, rows, best, seed, each)
    for row, found in zip(rows, best, strict=True):
        row["samples"] = [sample for _, sample in found]


def _take_smallest(
    batch: pa.RecordBatch,
    place: dict[str, Any],
    by_list: dict[str, list[int]],
    automata: dict[str, Concepts],
    rows: list[dict[str, Any]],
    best: list[list[tuple[int, dict[str, Any]]]],
    seed: int,
    each: int,
) -> None:
    ranks = draws(batch["sample_id"], seed)
    languages = np.array(batch["language"].to_pylist(), object)
    named = [name for name in automata if name != "*"]
    for name, automaton in automata.items():
        mine = np.flatnonzero(~np.isin(languages.astype(str), named) if name == "*" else languages == name)
        texts = batch["text"].take(pa.array(mine)).to_pylist()
        for row, concepts in zip(mine.tolist(), automaton.match(texts), strict=True):
            for concept in concepts:
                at = by_list[name][concept]
                wanted = min(rows[at]["slots"], each)
                if len(best[at]) < wanted or ranks[row] < best[at][-1][0]:
                    sample = {column: batch[column][row].as_py() for column in ("sample_id", "url", "key")} | place
                    best[at].append((int(ranks[row]), sample))
                    best[at].sort(key=lambda one: (one[0], one[1]["sample_id"]))
                    del best[at][wanted:]


_Tail = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]
"""Concepts, candidates, kept samples, samples that lack to the threshold."""


def _tables(store: Store, recipe: str, manifest: dict[str, Any]) -> dict[str, _Tail]:
    lists = manifest.get("selection", {}).get("lists")
    if not lists:
        raise ConfigError(f"{recipe}/{manifest['version']} is not balanced: set publish.balance in the recipe")
    key = next(file["key"] for file in manifest["files"] if file["key"].endswith("/balance.parquet"))
    assert key == long_tail_key(recipe, manifest["version"])
    with store.open_parquet(key) as table:
        rows = table.read()
    names = rows["list"].to_numpy()
    found = {}
    for name, one in lists.items():
        mine = rows.filter(pa.array(names == name))
        candidates, kept = mine["candidates"].to_numpy(), mine["kept"].to_numpy()
        found[name] = (mine["concept"].to_pylist(), candidates, kept, np.maximum(one["threshold"] - candidates, 0))
    return found
