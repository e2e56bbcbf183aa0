"""What of the kept samples a version takes: caps by domain, balance by concept, parts that are held out.

A sample is chosen among all others, so it takes three steps: `weigh_shard` writes what a choice needs of each shard
(**emit**), `select_version` decides over all shards (**match**), and the export of a shard asks `left_out` (**apply**).
Each is done once and found done when it is asked for again. Memory: a shard's rows, eight million rows of a key, and
the counts of concepts and domains; never the pool.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import __version__, tombstones
from curation.errors import BadShardError, ConfigError
from curation.publish.balance import drawn, probabilities, salts, tail_share_of, threshold_of
from curation.publish.draws import draws, mixed
from curation.publish.parts import Plan, manifest_key, read_plan, version_folder
from curation.publish.settings import Balance, Publish, Splits
from curation.publish.splits import PARTS, cut, links_of
from curation.receipt import Receipt, digest
from curation.recipe import Recipe
from curation.runner import read_outcomes, receipt_of
from curation.store import Store
from curation.text.concepts import UNSPACED, Concepts, read_concepts
from curation.verdicts import Verdict

_FORMAT = 1
_HOST = r"^[a-z]+://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"
_WEIGHED = pa.schema(
    [
        ("sample_id", pa.string()),
        ("domain", pa.uint64()),  # hash of the picture's host
        ("group", pa.uint64()),  # hash of the duplicate group; alone: of the bytes
        ("list", pa.int16()),  # number of the concept list, -1: none for this language
        ("concepts", pa.list_(pa.int32())),  # numbers in that list
    ]
)
LONG_TAIL = pa.schema(
    [
        ("list", pa.string()),
        ("concept", pa.string()),
        ("candidates", pa.int64()),
        ("kept", pa.int64()),
        ("probability", pa.float32()),
    ]
)
"""The long tail's table: every concept of every list, those that no caption names too."""
_CAP_SALT, _ROWS_AT_ONCE = np.uint64(0xCA9), 8_000_000


class _Row(NamedTuple):
    dump: str
    shard: int


def weigh_shard(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> int:
    """Write what a choice needs of each kept sample of a shard; returns their number. What stands there is kept.

    Raises BadShardError when the shard's last stage is not done.
    """
    source = receipt_of(store, recipe, dump, shard, recipe.stage_names[-1])
    if source is None:
        raise BadShardError(f"{dump} shard {shard:05d}: expected the table of {recipe.stage_names[-1]}, found none")
    key = _weighed_key(recipe.name, version, dump, shard)
    identity = digest("weigh", str(_FORMAT), source.object_id, recipe.publish.model_dump_json())
    standing = store.read_receipt(key)
    if standing is not None and standing.object_id == identity:
        return standing.rows
    plan = read_plan(store, recipe.name, version)
    lists = _Lists(store, recipe.publish.balance)
    rows = 0
    with store.write_table(key, _WEIGHED) as writer:
        for batch in _kept(store, recipe, plan, dump, shard):
            groups = batch["sha256"]
            if "group_id" in batch.schema.names:
                groups = pc.coalesce(batch["group_id"], groups)
            hosts = pc.struct_field(pc.extract_regex(batch["url"], _HOST), "host")
            number, concepts = lists.match(batch["text"], batch["language"])
            columns = [batch["sample_id"], _hashed(hosts), _hashed(groups), number, concepts]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=_WEIGHED))
            rows += batch.num_rows
        receipt = Receipt(
            object_id=identity,
            stage="weigh",
            stage_version=_FORMAT,
            fingerprint=identity,
            recipe=recipe.name,
            dump=dump,
            shard=shard,
            inputs={source.stage: source.object_id},
            rows=rows,
            measured=rows,
            curation_version=__version__,
        )
        writer.set_receipt(receipt)
    return rows


def select_version(store: Store, recipe: Recipe, version: str) -> dict[str, Any]:
    """Decide over all shards of a planned version, weighing those that are not weighed; returns the summary.

    A recipe that selects nothing gives {}. Raises BadShardError for a shard that is not done, ConfigError for a list of
    concepts that can't be read and for a part of publish.splits that nothing would fall into.
    """
    if not recipe.publish.selects:
        return {}
    if store.exists(manifest_key(recipe.name, version)):
        return summary(store, recipe, version)
    plan = read_plan(store, recipe.name, version)
    places = [_Row(dump, shard) for dump, shards in plan.sources.items() for shard in shards]
    for place in places:
        weigh_shard(store, recipe, version, *place)
    weighed = _Weighed(store, recipe, version, places)
    if (standing := _decision(store, recipe.name, version)) and standing["inputs"] == weighed.identity:
        return _told(standing)
    settings = recipe.publish
    domains, counts = weighed.domains()
    decided: dict[str, Any] = {"inputs": weighed.identity, "samples": int(counts.sum())}
    decided["caps"] = _caps(settings, weighed, domains, counts)
    if settings.splits:
        left = np.minimum(counts, decided["caps"]["cap"] or counts.max(initial=0))
        decided["splits"] = _split(settings.splits, weighed, domains, left)
    if settings.balance:
        decided["lists"] = _balanced(store, recipe, version, settings.balance, weighed, decided["caps"])
    store.write_bytes(_decision_key(recipe.name, version), json.dumps(decided).encode())
    return _told(decided)


def summary(store: Store, recipe: Recipe, version: str) -> dict[str, Any]:
    """What was decided, without the lists of domains; {} when nothing was."""
    return _told(_decision(store, recipe.name, version) or {})


def left_out(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> dict[str, str]:
    """Samples of a shard that every gate kept and the version does not take, with the verdict.

    Raises BadShardError when select_version has not decided, or has on other tables than stand there.
    """
    if not recipe.publish.selects:
        return {}
    decided = _decision(store, recipe.name, version)
    if decided is None:
        raise BadShardError(f"version {version} of {recipe.name}: its samples are not selected yet: select_version")
    found: dict[str, str] = {}
    rules = _Rules(store, recipe, version, decided)
    for batch in _Weighed(store, recipe, version, [_Row(dump, shard)]).batches():
        reasons = rules.reasons(batch)
        dropped = batch.filter(pc.is_valid(reasons))
        found.update(zip(dropped["sample_id"].to_pylist(), pc.drop_null(reasons).to_pylist(), strict=True))
    return found


def selection_identity(store: Store, recipe: Recipe, version: str) -> str:
    """Digest of what was decided; "" where the recipe selects nothing or nothing is decided yet."""
    try:
        data = store.read_bytes(_decision_key(recipe.name, version)) if recipe.publish.selects else b""
    except FileNotFoundError:
        return ""
    return hashlib.blake2b(data, digest_size=8).hexdigest() if data else ""


def long_tail_key(recipe_name: str, version: str) -> str:
    """Key of the long tail's table, a file of the version."""
    return f"{version_folder(recipe_name, version)}/balance.parquet"


def entombed(batch: pa.RecordBatch, matcher: tombstones.Matcher) -> pa.Array:
    """Reasons of a batch of outcomes, with tombstone for kept samples that are taken down."""
    reasons = batch.column("reason")
    if not matcher:
        return reasons
    stone = pc.if_else(pa.array(matcher.matches(batch)), str(Verdict.TOMBSTONE), pa.scalar(None, pa.string()))
    return pc.coalesce(reasons, stone)


def _kept(store: Store, recipe: Recipe, plan: Plan, dump: str, shard: int) -> Iterator[pa.RecordBatch]:
    matcher = tombstones.read(store, plan.tombstones)
    columns = {"url", "text", "language", "sha256"}
    if recipe.stage("dedup"):
        columns.add("group_id")
    columns.update(tombstones.measured_columns(matcher, recipe))
    for batch in read_outcomes(store, recipe, dump, shard, sorted(columns)):
        kept = batch.filter(pc.is_null(entombed(batch, matcher)))
        if kept.num_rows:
            yield kept


class _Lists:
    """The concept lists of a recipe and the automata over them."""

    def __init__(self, store: Store, balance: Balance | None) -> None:
        self.names = sorted(balance.concepts) if balance else []
        self.concepts: list[list[str]] = []
        self._automata: list[Concepts] = []
        for name in self.names:
            assert balance is not None
            entries = (read_concepts(store.local_copy(key)) for key in balance.concepts[name])
            self.concepts.append(list(dict.fromkeys(entry for several in entries for entry in several)))
            if not self.concepts[-1]:
                raise ConfigError(f"publish.balance.concepts.{name}: no concept in {', '.join(balance.concepts[name])}")
        self._balance = balance

    def match(self, texts: pa.Array, languages: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Number of the list that each text is matched with, int16, and its concepts, list<int32>."""
        numbers = np.full(len(texts), -1, np.int16)
        found: list[list[int]] = [[] for _ in range(len(texts))]
        if self._balance:
            if not self._automata:
                self._automata = [
                    Concepts(entries, spaces=name not in UNSPACED, ignore_case=self._balance.ignore_case)
                    for name, entries in zip(self.names, self.concepts, strict=True)
                ]
            by_name = {name: at for at, name in enumerate(self.names)}
            others = by_name.get("*", -1)
            numbers[:] = [by_name.get(language, others) for language in languages.to_pylist()]
            values = texts.to_pylist()
            for number, automaton in enumerate(self._automata):
                rows = np.flatnonzero(numbers == number).tolist()
                for row, concepts in zip(rows, automaton.match([values[row] for row in rows]), strict=True):
                    found[row] = concepts
        return pa.array(numbers), pa.array(found, pa.list_(pa.int32()))


class _Weighed:
    """The tables of weigh_shard of several shards."""

    def __init__(self, store: Store, recipe: Recipe, version: str, places: Sequence[_Row]) -> None:
        self._store = store
        self._keys = [_weighed_key(recipe.name, version, *place) for place in places]
        receipts = [store.read_receipt(key) for key in self._keys]
        self.identity = digest(*(receipt.object_id if receipt else "" for receipt in receipts))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for key in self._keys:
            with self._store.open_parquet(key) as table:
                yield from table.iter_batches(columns=columns)

    def domains(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all domains, ascending, and their samples."""
        names, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for batch in self.batches(["domain"]):
            new, n = np.unique(batch["domain"].to_numpy(), return_counts=True)
            names, at = np.unique(np.concatenate([names, new]), return_inverse=True)
            counts = np.bincount(at, weights=np.concatenate([counts, n]), minlength=len(names)).astype(np.int64)
        return names, counts

    def cap_draws(self, over: np.ndarray, cap: int) -> np.ndarray:
        """Of each of these domains the draw of the cap-th sample: who draws more is left out. uint64 (domains,)."""
        places, values = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        pending: list[tuple[np.ndarray, np.ndarray]] = []

        def smallest() -> tuple[np.ndarray, np.ndarray]:
            at = np.concatenate([places, *(one[0] for one in pending)])
            drawn_now = np.concatenate([values, *(one[1] for one in pending)])
            order = np.lexsort((drawn_now, at))
            at, drawn_now = at[order], drawn_now[order]
            first = np.searchsorted(at, np.arange(len(over)))
            keep = np.arange(len(at)) - first[at] < cap
            return at[keep], drawn_now[keep]

        waiting = 0
        for batch in self.batches(["sample_id", "domain"]):
            domains = batch["domain"].to_numpy()
            at = np.searchsorted(over, domains)
            rows = np.flatnonzero(over[np.minimum(at, len(over) - 1)] == domains)
            ids = batch["sample_id"].take(pa.array(rows))
            pending.append((at[rows], _cap_draws(ids)))
            waiting += len(rows)
            if waiting > _ROWS_AT_ONCE:
                (places, values), pending, waiting = smallest(), [], 0
        places, values = smallest()
        return values[np.searchsorted(places, np.arange(len(over)), side="right") - 1]

    def links(self, domains: np.ndarray, rows: int) -> np.ndarray:
        """Places of domains that share a duplicate group, int (m, 2); groups are taken in portions of their hashes."""
        portions = max(1, -(-rows // _ROWS_AT_ONCE))
        edges = [np.zeros((0, 2), np.int64)]
        for portion in range(portions):
            groups, places = [], []
            for batch in self.batches(["domain", "group"]):
                group = batch["group"].to_numpy()
                mine = group % np.uint64(portions) == portion
                groups.append(group[mine])
                places.append(np.searchsorted(domains, batch["domain"].to_numpy()[mine]))
            if groups:
                edges.append(links_of(np.concatenate(groups), np.concatenate(places)))
        return np.concatenate(edges)


class _Rules:
    """What was decided, applied to weighed samples."""

    def __init__(self, store: Store, recipe: Recipe, version: str, decided: dict[str, Any]) -> None:
        self._settings = recipe.publish
        self._caps = _Caps(decided["caps"])
        self._lists = _Lists(store, recipe.publish.balance)
        self._salts = [salts(concepts) for concepts in self._lists.concepts]
        self._chances: list[np.ndarray] = []
        if recipe.publish.balance:
            with store.open_parquet(long_tail_key(recipe.name, version)) as table:
                rows = table.read(columns=["list", "probability"])
            names = rows["list"].to_numpy()
            chances = rows["probability"].to_numpy().astype(np.float64)
            self._chances = [chances[names == name] for name in self._lists.names]
        parts = decided.get("splits", {}).get("held", {})
        self._held = {part: np.array(parts.get(part, []), np.uint64) for part in PARTS[1:]}

    def reasons(self, batch: pa.RecordBatch) -> pa.Array:
        """Verdict of each sample, null for what is taken."""
        verdicts = np.full(batch.num_rows, None, object)
        if self._settings.splits:
            verdicts[self._part(batch) != self._settings.splits.take] = str(Verdict.HELD_OUT)
        if balance := self._settings.balance:
            verdicts[~balanced(batch, balance, self._chances, self._salts)] = str(Verdict.BALANCED_OUT)
        verdicts[~self._caps.within(batch)] = str(Verdict.DOMAIN_CAP)
        return pa.array(verdicts, pa.string())

    def _part(self, batch: pa.RecordBatch) -> np.ndarray:
        domains = batch["domain"].to_numpy()
        part = np.full(batch.num_rows, "train", "U5")
        for name, held in self._held.items():
            part[np.isin(domains, held)] = name
        return part


class _Caps:
    def __init__(self, decided: dict[str, Any]) -> None:
        self._domains = np.array(decided["domains"], np.uint64)
        self._draws = np.array(decided["draws"], np.uint64)

    def within(self, batch: pa.RecordBatch) -> np.ndarray:
        """Whether each sample is among those that its domain may give."""
        if not len(self._domains):
            return np.ones(batch.num_rows, bool)
        domains = batch["domain"].to_numpy()
        at = np.minimum(np.searchsorted(self._domains, domains), len(self._domains) - 1)
        return np.asarray((self._domains[at] != domains) | (_cap_draws(batch["sample_id"]) <= self._draws[at]))


def balanced(
    batch: pa.RecordBatch, balance: Balance, chances: Sequence[np.ndarray], salt: Sequence[np.ndarray]
) -> np.ndarray:
    """Whether each weighed sample is drawn by one of its concepts, or is none of those that are balanced. bool (n,)."""
    kept = np.ones(batch.num_rows, bool)
    numbers = batch["list"].to_numpy()
    for number, chance in enumerate(chances):
        rows = np.flatnonzero(numbers == number)
        mine = batch.take(pa.array(rows))
        kept[rows] = drawn(draws(mine["sample_id"], balance.seed), mine["concepts"], chance, salt[number])
        if balance.unmatched == "keep":
            kept[rows] |= mine["concepts"].value_lengths().to_numpy(zero_copy_only=False) == 0
    return kept


def _caps(settings: Publish, weighed: _Weighed, domains: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    bounds = [settings.max_per_domain] if settings.max_per_domain else []
    if settings.max_domain_share:
        bounds.append(max(1, int(settings.max_domain_share * counts.sum())))
    if not bounds or not (over := domains[counts > min(bounds)]).size:
        return {"domains": [], "draws": [], "cap": min(bounds, default=None)}
    return {"domains": over.tolist(), "draws": weighed.cap_draws(over, min(bounds)).tolist(), "cap": min(bounds)}


def _split(splits: Splits, weighed: _Weighed, domains: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Parts of the domains; counts: their samples within the caps."""
    links = weighed.links(domains, int(counts.sum()))
    part = cut(domains, counts, links, splits.val, splits.test, splits.seed)
    samples = {name: int(counts[part == at].sum()) for at, name in enumerate(PARTS)}
    for name in PARTS[1:]:
        if getattr(splits, name) and not samples[name]:
            raise ConfigError(
                f"publish.splits.{name}: no sample would be in it: {len(domains)} domains, linked by shared "
                "duplicates, are too few or too large for its share; raise it, or cap the domains"
            )
    held = {name: domains[part == at].tolist() for at, name in enumerate(PARTS) if at}
    return {
        "samples": samples,
        "domains": {name: int((part == at).sum()) for at, name in enumerate(PARTS)},
        "held": held,
    }


def _balanced(
    store: Store, recipe: Recipe, version: str, balance: Balance, weighed: _Weighed, caps: dict[str, Any]
) -> dict[str, Any]:
    """Count, choose thresholds, count again what they keep; write the long tail's table."""
    lists, within = _Lists(store, balance), _Caps(caps)
    candidates = [np.zeros(len(concepts), np.int64) for concepts in lists.concepts]
    samples: Counter[int] = Counter()
    unmatched: Counter[int] = Counter()
    for batch in weighed.batches(["sample_id", "domain", "list", "concepts"]):
        _count(batch.filter(pa.array(within.within(batch))), candidates, samples, unmatched)
    thresholds = [balance.threshold or threshold_of(counts, balance.tail_share) for counts in candidates]
    # what is applied is what is written: float32
    chances = [
        probabilities(counts, t).astype(np.float32).astype(np.float64)
        for counts, t in zip(candidates, thresholds, strict=True)
    ]
    salt = [salts(concepts) for concepts in lists.concepts]
    kept = [np.zeros_like(counts) for counts in candidates]
    kept_samples: Counter[int] = Counter()
    for batch in weighed.batches(["sample_id", "domain", "list", "concepts"]):
        inside = batch.filter(pa.array(within.within(batch)))
        taken = inside.filter(pa.array(balanced(inside, balance, chances, salt)))
        _count(taken, kept, kept_samples, Counter())
    with store.write_table(long_tail_key(recipe.name, version), LONG_TAIL) as writer:
        for number, name in enumerate(lists.names):
            concepts = lists.concepts[number]
            columns = [[name] * len(concepts), concepts, candidates[number], kept[number], chances[number]]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, LONG_TAIL, strict=True)]
            writer.write(pa.RecordBatch.from_arrays(arrays, schema=LONG_TAIL))
    return {
        name: {
            "threshold": thresholds[number],
            "tail_share": round(tail_share_of(candidates[number], thresholds[number]), 6),
            "concepts": len(lists.concepts[number]),
            "concepts_named": int((candidates[number] > 0).sum()),
            "concepts_thinned": int((candidates[number] > thresholds[number]).sum()),
            "matches": int(candidates[number].sum()),
            "samples": samples[number],
            "unmatched": unmatched[number],
            "kept": kept_samples[number],
        }
        for number, name in enumerate(lists.names)
    }


def _count(batch: pa.RecordBatch, into: list[np.ndarray], samples: Counter[int], unmatched: Counter[int]) -> None:
    numbers = batch["list"].to_numpy()
    for number, counts in enumerate(into):
        concepts = batch["concepts"].filter(pa.array(numbers == number))
        found = concepts.flatten().to_numpy(zero_copy_only=False)
        if len(found):
            unique, n = np.unique(found, return_counts=True)
            counts[unique] += n
        samples[number] += len(concepts)
        unmatched[number] += int((concepts.value_lengths().to_numpy(zero_copy_only=False) == 0).sum())


def _hashed(values: pa.Array) -> pa.Array:
    """A 64-bit hash of each string; equal strings are hashed once."""
    encoded = pc.fill_null(values, "").dictionary_encode()
    digests = [hashlib.blake2b(value.encode(), digest_size=8).digest() for value in encoded.dictionary.to_pylist()]
    hashes = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
    return pa.array(hashes[encoded.indices.to_numpy()])


def _cap_draws(sample_ids: pa.Array) -> np.ndarray:
    return mixed(draws(sample_ids, 0) ^ _CAP_SALT)


def _told(decided: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in decided.items() if name in ("samples", "lists")}
    if decided.get("caps", {}).get("cap") is not None:
        told["cap"] = {"per_domain": decided["caps"]["cap"], "domains_over": len(decided["caps"]["domains"])}
    if "splits" in decided:
        told["splits"] = {name: decided["splits"][name] for name in ("samples", "domains")}
    return told


def _decision(store: Store, recipe_name: str, version: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(_decision_key(recipe_name, version)))
    except FileNotFoundError:
        return None
    return found


def _decision_key(recipe_name: str, version: str) -> str:
    return f"{version_folder(recipe_name, version)}/selection/decision.json"


def _weighed_key(recipe_name: str, version: str, dump: str, shard: int) -> str:
    return f"{version_folder(recipe_name, version)}/selection/{dump}-{shard:05d}.parquet"
