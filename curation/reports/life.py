"""The life of one sample: what each stage measured, and where and why it was dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from curation.gates import Gate
from curation.pipeline import fingerprint
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.schema import COLUMNS
from curation.store import Store
from curation.verdicts import Fault
from curation.web.urls import canonical

_UNREADABLE = ("image", "img_emb", "txt_emb")


@dataclass
class Life:
    """One sample: where it stands, what was measured, and its outcome ("kept" or a reason)."""

    sample_id: str
    shard: int
    outcome: str
    stage: str  # that dropped it, or the last that measured it
    because: str
    measured: dict[str, dict[str, Any]]
    versions: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return asdict(self)


def lives(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], query: str) -> Iterator[Life]:
    """Every sample of these shards with this sample_id, or with this picture URL."""
    column, value = ("sample_id", query) if _is_id(query) else ("url", canonical(query))
    first = recipe.stage_names[0]
    for shard in shards:
        key = table_key(dump, first, fingerprint(recipe, first), shard)
        try:
            with store.open_parquet(key) as table:
                found = pc.indices_nonzero(pc.equal(table.read([column])[column], value)).to_pylist()
        except FileNotFoundError:
            continue
        for row in found:
            yield _life(store, recipe, dump, shard, row)


def _life(store: Store, recipe: Recipe, dump: str, shard: int, row: int) -> Life:
    measured: dict[str, dict[str, Any]] = {}
    everything: dict[str, Any] = {}
    outcome, stage, because = "", "", ""
    for name in recipe.stage_names:
        values = _row(store, table_key(dump, name, fingerprint(recipe, name), shard), row)
        if values is None:
            outcome, because = outcome or "unfinished", because or f"stage {name} is not done"
            break
        if values["verdict"] is not None:
            outcome = values["verdict"]
            break
        stage = name
        measured[name] = {k: v for k, v in values.items() if k not in ("verdict", "fault", "sample_id")}
        everything |= values
        if values["fault"] is not None:
            outcome = values["fault"]
            break
        missed = [(v, g) for v, g in recipe.gates_after(name) if not _passes(g, everything)]
        if missed:
            outcome, because = str(missed[0][0]), _rule(missed[0][1], everything)
            break
    if outcome in set(Fault):
        because = everything.get("consent") or f"found while {stage} measured it"
    versions = [] if outcome else _versions(store, recipe.name, dump, shard)
    return Life(everything["sample_id"], shard, outcome or "kept", stage, because, measured, versions)


def _row(store: Store, key: str, row: int) -> dict[str, Any] | None:
    try:
        with store.open_parquet(key) as table:
            columns = [name for name in table.schema_arrow.names if name not in _UNREADABLE]
            start = 0
            for group in range(table.metadata.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if row < start + size:
                    values: dict[str, Any] = table.read_row_group(group, columns).slice(row - start, 1).to_pylist()[0]
                    return values
                start += size
    except FileNotFoundError:
        pass
    return None


def _passes(gate: Gate, values: dict[str, Any]) -> bool:
    import pyarrow as pa

    batch = pa.RecordBatch.from_pydict({c: pa.array([values.get(c)], COLUMNS[c].type) for c in gate.columns})
    return bool(gate.passes(batch)[0].as_py())


def _rule(gate: Gate, values: dict[str, Any]) -> str:
    rules = []
    for rule in ("at_least", "at_most", "one_of", "none_of", "equals"):
        bound = getattr(gate, rule)
        if isinstance(bound, dict):
            bound = bound.get(str(values.get(gate.by or "")), "no bound")
        if bound is not None:
            rules.append(f"{rule} {bound:g}" if isinstance(bound, float) else f"{rule} {bound}")
    hint = values.get("duplicate_of") or values.get("leak_item")
    return f"{gate.column} is {values.get(gate.column)!r}, the gate asks for {' and '.join(rules)}" + (
        f" ({hint})" if hint else ""
    )


def _versions(store: Store, recipe: str, dump: str, shard: int) -> list[str]:
    found = []
    for entry in store.entries(f"datasets/{recipe}/"):
        if entry.key.endswith("/manifest.json"):
            manifest = json.loads(store.read_bytes(entry.key))
            if shard in manifest["dumps"].get(dump, []):
                found.append(manifest["version"])
    return found


def _is_id(query: str) -> bool:
    return len(query) == 32 and all(c in "0123456789abcdef" for c in query)
