"""The life of one sample: what each stage measured, where and why it was dropped, which versions hold it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import BadShardError
from curation.gates import Gate
from curation.pipeline import fingerprint
from curation.publish.export import kind_of
from curation.publish.selection import left_out
from curation.publish.verify import manifest_keys, read_manifest
from curation.receipt import RECEIPT_KEY, Receipt, table_key
from curation.recipe import Recipe, parse_recipe
from curation.schema import COLUMNS
from curation.store import Store
from curation.verdicts import Fault
from curation.web.urls import canonical

_UNREADABLE = ("image", "img_emb", "txt_emb")  # by people
_EVERY_TABLE = ("sample_id", "verdict", "fault")
# what tells more about a verdict than the column that its gate reads
_MORE = {"duplicate_kind": "duplicate_of", "leak_kind": "leak_item", "safety_tag": "safety_reason"}
_LINKS = {"duplicate_kind": "of", "leak_kind": "with", "safety_tag": "by"}


@dataclass
class Life:
    """One sample: where it stands, what was measured, and its outcome: "kept", "unfinished" or a reason."""

    sample_id: str
    dump: str
    shard: int
    outcome: str
    stage: str  # that found the reason, or the last that measured the sample
    because: str
    measured: dict[str, dict[str, Any]]  # by stage; images and embeddings are left out
    models: dict[str, dict[str, str]]  # by stage and role
    versions: list[str]  # recipe/version of the published versions that hold it

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return asdict(self)


class _Query:
    """Which samples are meant: those of a sample_id, of a picture's URL, or with a piece of text in the caption."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        if len(self.text) == 32 and set(self.text.lower()) <= set("0123456789abcdef"):
            self.column, self.value = "sample_id", self.text.lower()
        elif "://" in self.text:
            self.column, self.value = "url", canonical(self.text)
        else:
            self.column, self.value = "text", self.text

    def may_be_in(self, statistics: pq.Statistics | None) -> bool:
        """Whether a row group with these statistics can hold it."""
        if self.column == "text" or statistics is None or not statistics.has_min_max:
            return True
        return bool(statistics.min <= self.value <= statistics.max)

    def matches(self, values: pa.Array) -> pa.Array:
        """Which values are meant: boolean, (n,)."""
        if self.column == "text":
            return pc.match_substring(values, self.value, ignore_case=True)
        return pc.equal(values, self.value)


def lives(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], query: str) -> Iterator[Life]:
    """Every sample of these shards with this sample_id, this picture URL, or this text in its caption (any case).

    Shards that the recipe's first stage has not read are passed over.
    """
    wanted = _Query(query)
    first = recipe.stage_names[0]
    folder = table_key(dump, first, fingerprint(recipe, first), 0).rpartition("/")[0]
    standing = {entry.key for entry in store.entries(f"{folder}/")}
    published = _Published(store, dump)
    for shard in shards:
        key = table_key(dump, first, fingerprint(recipe, first), shard)
        if key in standing:
            for row in _rows(store, key, wanted):
                yield _life(store, recipe, dump, shard, row, published)


def _rows(store: Store, key: str, query: _Query) -> list[int]:
    """Numbers of the rows that are meant, by reading one column of the row groups that can hold them."""
    found: list[int] = []
    start = 0
    with store.open_parquet(key) as table:
        at = table.schema_arrow.names.index(query.column)
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            if query.may_be_in(group.column(at).statistics):
                values = table.read_row_group(number, [query.column])[query.column].combine_chunks()
                found += [start + row for row in pc.indices_nonzero(query.matches(values)).to_pylist()]
            start += group.num_rows
    return found


def _life(store: Store, recipe: Recipe, dump: str, shard: int, row: int, published: _Published) -> Life:
    life = Life("", dump, shard, "", "", "", {}, {}, [])
    everything: dict[str, Any] = {}
    for name in recipe.stage_names:
        read = _row(store, table_key(dump, name, fingerprint(recipe, name), shard), row)
        if read is None or (life.sample_id and read[0]["sample_id"] != life.sample_id):
            life.outcome, life.because = "unfinished", f"stage {name} is not done"
            break
        values, receipt = read
        life.sample_id = values["sample_id"]
        if values["verdict"] is not None:  # judged when this stage read; an older table may know another gate
            life.outcome = values["verdict"]
            break
        life.stage = name
        life.measured[name] = {k: v for k, v in values.items() if k not in _EVERY_TABLE}
        if receipt.models:
            life.models[name] = receipt.models
        everything |= values
        if values["fault"] is not None:
            life.outcome = values["fault"]
            life.because = everything.get("consent") or _fault(values)
            break
        missed = [(verdict, gate) for verdict, gate in recipe.gates_after(name) if not _passes(gate, everything)]
        if missed:
            life.outcome, life.because = str(missed[0][0]), why_missed(missed[0][1], everything)
            break
    life.outcome = life.outcome or "kept"
    life.versions = published.holding(shard, life.sample_id)
    if life.outcome == "kept" and (chosen := published.leaving_out(shard, life.sample_id)):
        life.because = "; ".join(f"{reason} in {version}" for version, reason in chosen.items())
        if not life.versions:
            life.stage, life.outcome = "publish", next(reversed(chosen.values()))
    return life


def _row(store: Store, key: str, row: int) -> tuple[dict[str, Any], Receipt] | None:
    """One row of a table with the table's receipt; None where no table stands, or a shorter one."""
    try:
        with store.open_parquet(key) as table:
            receipt = Receipt.model_validate_json(table.metadata.metadata[RECEIPT_KEY])
            columns = [name for name in table.schema_arrow.names if name not in _UNREADABLE]
            start = 0
            for group in range(table.metadata.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if row < start + size:
                    values: dict[str, Any] = table.read_row_group(group, columns).slice(row - start, 1).to_pylist()[0]
                    return values, receipt
                start += size
    except FileNotFoundError:
        pass
    return None


def _fault(values: dict[str, Any]) -> str:
    status = values.get("http_status")
    known = values["fault"] in set(Fault)
    return f"http status {status}" if status is not None and known else "the picture could not be measured"


def _passes(gate: Gate, values: dict[str, Any]) -> bool:
    return bool(gate.passes(_as_batch(gate, values))[0].as_py())


def _as_batch(gate: Gate, values: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({c: pa.array([values.get(c)], COLUMNS[c].type) for c in gate.columns})


def why_missed(gate: Gate, values: dict[str, Any]) -> str:
    """The rule of a gate held against a sample: `similarity 0.213 < at_least 0.28`."""
    value = values.get(gate.column)
    where = f" ({gate.by} {values.get(gate.by)})" if gate.by else ""
    if value is None:
        return f"{gate.column} has no value, which the gate drops{where}"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
    for rule in ("at_least", "at_most", "one_of", "none_of", "equals"):
        bound = getattr(gate, rule)
        if bound is None or _passes(_alone(gate, rule), values):
            continue
        if isinstance(bound, dict):
            bound = bound.get(str(values.get(gate.by or "")))
            if bound is None:
                return f"{gate.column} {shown}: the gate has no {rule} for {gate.by} {values.get(gate.by or '')}"
        more = values.get(_MORE.get(gate.column, ""))
        if gate.column == "leak_kind":
            more = f"{values.get('leak_set')}/{more}"
        return f"{gate.column} {shown}{_refusal(rule, bound)}{where}" + (
            f", {_LINKS[gate.column]} {more}" if more else ""
        )
    return f"{gate.column} {shown}"


def _refusal(rule: str, bound: Any) -> str:
    if rule in ("at_least", "at_most"):
        return f" {'<' if rule == 'at_least' else '>'} {rule} {bound:g}"
    if rule == "equals":
        return f", must be {str(bound).lower()}"
    names = ", ".join(bound)
    if rule == "none_of":
        return f" is refused (none_of {names})"
    return f" is not one_of {names}" if names else ": no value is allowed"


def _alone(gate: Gate, rule: str) -> Gate:
    """The gate with one of its rules."""
    by = gate.by if isinstance(getattr(gate, rule), dict) else None
    return Gate.model_validate({"column": gate.column, rule: getattr(gate, rule), "by": by, "if_null": gate.if_null})


class _Published:
    """The published versions that were made from a dump, and which samples each shard gave to them."""

    def __init__(self, store: Store, dump: str) -> None:
        self._store = store
        self._dump = dump
        self._versions: list[tuple[str, str, dict[int, str]]] | None = None

    def holding(self, shard: int, sample_id: str) -> list[str]:
        """Versions (recipe/version) whose metadata tables name the sample."""
        found = []
        for recipe, version, tables in self._all():
            if shard in tables and self._names(tables[shard], sample_id):
                found.append(f"{recipe}/{version}")
        return found

    def leaving_out(self, shard: int, sample_id: str) -> dict[str, str]:
        """Versions that chose others among what the gates kept, with the verdict."""
        found = {}
        for recipe, version, _ in self._all():
            manifest = read_manifest(self._store, recipe, version)
            if manifest.get("selection") and shard in manifest["dumps"].get(self._dump, []):
                with contextlib.suppress(BadShardError):  # what was decided is gone: a takedown made the version
                    made = left_out(self._store, parse_recipe(manifest["recipe"]), version, self._dump, shard)
                    if sample_id in made:
                        found[f"{recipe}/{version}"] = made[sample_id]
        return found

    def _all(self) -> list[tuple[str, str, dict[int, str]]]:
        """Recipe, version and the metadata table of each shard; it may lie in the folder of an earlier version."""
        if self._versions is None:
            manifests = ((key, json.loads(self._store.read_bytes(key))) for key in manifest_keys(self._store))
            self._versions = [
                (key.split("/")[1], manifest["version"], _tables(manifest, self._dump)) for key, manifest in manifests
            ]
        return self._versions

    def _names(self, key: str, sample_id: str) -> bool:
        try:
            return bool(_rows(self._store, key, _Query(sample_id)))
        except FileNotFoundError:  # removed since
            return False


def _tables(manifest: dict[str, Any], dump: str) -> dict[int, str]:
    named = [(part["shard"], file) for part in manifest["parts"] if part["dump"] == dump for file in part["files"]]
    return {shard: file for shard, file in named if kind_of(file) == "metadata"}
