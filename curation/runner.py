"""Run one stage of one shard: read what came before, judge, measure, write. The only such loop in the project."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import __version__, dumps, generations, telemetry
from curation.errors import BadShardError, CurationError
from curation.gates import judge
from curation.pipeline import fingerprint, localise, upstream
from curation.receipt import Receipt, digest, table_key
from curation.recipe import Recipe
from curation.schema import COLUMNS, schema
from curation.sources.archives import open_archive
from curation.stages.base import Join, Stage, Tally
from curation.stages.download import Download
from curation.stages.extract import Extract
from curation.store import Store
from curation.verdicts import HEALS, Fault

log = logging.getLogger(__name__)

BATCH_ROWS = 1024
Progress = Callable[[int, int], None]
"""Called with rows done and rows in all (0 when not known)."""


class _Plan(NamedTuple):
    """What a stage's table of a shard must be made from, known before any work."""

    object_id: str
    fingerprint: str
    inputs: dict[str, Receipt]
    basis: str  # what it depends on beside settings and tables: the archive, a generation of the index
    generation: int
    standing: Receipt | None  # of the table that stands there now, whatever it was made from


def run_stage(
    store: Store, recipe: Recipe, dump: str, shard: int, stage: str, *, progress: Progress | None = None
) -> Receipt:
    """Make the stage's table of this shard, unless it stands there already, and return its receipt.

    recipe  pinned (pipeline.pin)
    raises  BadShardError, OutageError, ConfigError with the shard's name in front; nothing is written then
    """
    try:
        plan = _plan(store, recipe, dump, shard, stage)
        if (done := _done(plan)) is not None:
            log.info("%s %05d %s: done before, %d rows", dump, shard, stage, done.rows)
            return done
        return _run(store, recipe, dump, shard, stage, plan, progress)
    except CurationError as err:
        raise type(err)(f"{dump} shard {shard:05d}, {stage}: {err}") from err


def retry_download(
    store: Store, recipe: Recipe, dump: str, shard: int, *, progress: Progress | None = None
) -> Receipt | None:
    """Fetch again what may heal of a shard; where something did, commit a new generation of its download table.

    Everything else is taken over from the earlier generation. Later stages find their input renewed and run again.

    returns  the new receipt; None when nothing healed, and then nothing is written
    raises   BadShardError when the shard was not downloaded yet; OutageError
    """
    try:
        plan = _plan(store, recipe, dump, shard, "download")
        if (done := _done(plan)) is None:
            raise BadShardError("expected its table, up to date, found none: run it first")
        if done.faults.keys().isdisjoint({*HEALS, Fault.ROBOTS_DISALLOWED}):
            return None
        following = _plan(store, recipe, dump, shard, "download", generation=done.generation + 1)
        return _run(store, recipe, dump, shard, "download", following, progress, healing=True)
    except _NothingHealedError:
        return None
    except CurationError as err:
        raise type(err)(f"{dump} shard {shard:05d}, download: {err}") from err


def receipt_of(store: Store, recipe: Recipe, dump: str, shard: int, stage: str) -> Receipt | None:
    """Receipt of the shard's table for this stage when it is done and up to date, else None."""
    try:
        return _done(_plan(store, recipe, dump, shard, stage))
    except BadShardError:
        return None


def read_outcomes(
    store: Store, recipe: Recipe, dump: str, shard: int, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Every sample of a shard with what became of it, after the last stage.

    yields  batches of sample_id, reason (a name of verdicts.py, null: kept) and the columns asked for
    """
    last = recipe.stage_names[-1]
    for batch in _Tables(store, recipe, dump, shard, last, [*columns, *_gate_columns(recipe, last)]):
        outcome = {"sample_id": batch.column("sample_id"), "reason": _reasons(batch, recipe, last)}
        yield pa.RecordBatch.from_pydict(outcome | {name: batch.column(name) for name in columns})


def read_kept(
    store: Store, recipe: Recipe, dump: str, shard: int, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The samples of a shard that every gate let through: sample_id and the columns asked for."""
    for batch in read_outcomes(store, recipe, dump, shard, columns):
        kept = batch.filter(pc.is_null(batch.column("reason")))
        if kept.num_rows:
            yield kept.drop_columns(["reason"])


def read_entering(
    store: Store, recipe: Recipe, dump: str, shard: int, stage: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The samples of a shard that enter a stage: sample_id and the columns asked for."""
    before = upstream(recipe, stage)
    if before is None:
        raise BadShardError(f"{stage} is the first stage: nothing enters it")
    for batch in _Tables(store, recipe, dump, shard, before, [*columns, *_gate_columns(recipe, before)]):
        entering = batch.filter(pc.is_null(_reasons(batch, recipe, before)))
        if entering.num_rows:
            yield entering.select(list(dict.fromkeys(["sample_id", *columns])))


class _NothingHealedError(Exception):
    """Leaves the writer without a commit."""


def _done(plan: _Plan) -> Receipt | None:
    standing = plan.standing
    return standing if standing is not None and standing.object_id == plan.object_id else None


def _plan(store: Store, recipe: Recipe, dump: str, shard: int, stage: str, *, generation: int | None = None) -> _Plan:
    own = fingerprint(recipe, stage)
    standing = store.read_receipt(table_key(dump, stage, own, shard))
    if generation is None:
        generation = standing.generation if standing is not None else 0
    inputs: dict[str, Receipt] = {}
    if stage == recipe.stage_names[0]:
        basis = dumps.archive(store, dump, shard, _extract(recipe).archive)
    else:
        for name in recipe.stage_names[: recipe.stage_names.index(stage)]:
            found = store.read_receipt(table_key(dump, name, fingerprint(recipe, name), shard))
            if found is None:
                raise BadShardError(f"expected the table of stage {name}, found none: run {name} first")
            inputs[name] = found
        basis = ""
    if isinstance(recipe.stage(stage), Join):
        basis = generations.of_shard(store, recipe, dump, shard, stage)
    parts = [own, dump, str(shard), basis, *(f"{name}={receipt.object_id}" for name, receipt in inputs.items())]
    if generation:
        parts.append(f"generation={generation}")
    return _Plan(digest(*parts), own, inputs, basis, generation, standing)


def _run(
    store: Store,
    recipe: Recipe,
    dump: str,
    shard: int,
    stage: str,
    plan: _Plan,
    progress: Progress | None,
    *,
    healing: bool = False,
) -> Receipt:
    started = time.monotonic()
    key = table_key(dump, stage, plan.fingerprint, shard)
    settings = localise(recipe, stage, store)
    if isinstance(settings, Join):
        settings = settings.applying(generations.decisions(store, plan.basis, shard))
    if healing and isinstance(settings, Download):
        settings = settings.healing(_entered(store, key, settings.produces.names))
    tally: Tally = Counter()
    dropped: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    produces = _table_schema(settings)
    expected = plan.inputs[stage_before].rows if (stage_before := upstream(recipe, stage)) else 0
    with store.write_table(key, produces) as writer:
        report = _Reporter(f"{dump} {shard:05d} {stage}", expected, progress)
        if isinstance(settings, Extract):
            rows = _extracted(settings, plan.basis, tally)
        else:
            rows = _measured(settings, recipe, _tables_for(store, recipe, dump, shard, settings), tally, report)
        for batch in rows:
            writer.write(batch)
            _count(batch.column("verdict"), dropped)
            _count(batch.column("fault"), faults)
            report(writer.rows)
        if stage_before and writer.rows != expected:
            raise BadShardError(f"samples are not conserved: {expected} came in, {writer.rows} would go out")
        if healing and not tally["healed"]:
            raise _NothingHealedError
        receipt = Receipt(
            object_id=plan.object_id,
            stage=stage,
            stage_version=settings.version,
            fingerprint=plan.fingerprint,
            recipe=recipe.name,
            dump=dump,
            shard=shard,
            inputs={name: found.object_id for name, found in plan.inputs.items()},
            generation=plan.generation,
            rows=writer.rows,
            measured=writer.rows - dropped.total() - faults.total(),
            dropped=dict(dropped),
            faults=dict(faults),
            tally=dict(tally),
            models=settings.models,
            seconds=round(time.monotonic() - started, 3),
            peak_memory_bytes=_peak_memory(),
            curation_version=__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=os.environ.get("CURATION_WORKER") or socket.gethostname(),
        )
        writer.set_receipt(receipt)
    report.final()
    telemetry.tell(telemetry.Made(store.root, receipt, plan.inputs[stage_before] if stage_before else None))
    return receipt


def _extracted(settings: Extract, archive: str, tally: Tally) -> Iterator[pa.RecordBatch]:
    names = _table_schema(settings).names
    with open_archive(archive) as stream:
        for batch in settings.read(stream, archive, tally):
            columns = {field.name: batch.column(field.name) for field in batch.schema}
            columns["verdict"] = columns["fault"] = pa.nulls(batch.num_rows, pa.string())
            yield pa.RecordBatch.from_arrays([columns[name] for name in names], schema=_table_schema(settings))


def _entered(store: Store, key: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a table that were measured or have a fault, without those that did not enter."""
    with store.open_parquet(key) as table:
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=["verdict", *columns]):
            yield batch.filter(pc.is_null(batch.column("verdict"))).select(list(columns))


def _measured(
    settings: Stage, recipe: Recipe, tables: _Tables, tally: Tally, report: _Reporter
) -> Iterator[pa.RecordBatch]:
    """Feed the rows that are still in to the stage; put its answers back among the rows that are not."""
    before = upstream(recipe, settings.name)
    assert before is not None
    out = _table_schema(settings)
    pending: deque[tuple[pa.Array, pa.Array, np.ndarray]] = deque()

    def entering() -> Iterator[pa.RecordBatch]:
        for batch in tables:
            reasons = _reasons(batch, recipe, before)
            keep = np.asarray(pc.is_null(reasons).to_numpy(zero_copy_only=False))
            pending.append((batch.column("sample_id"), reasons, keep))
            report.entered(len(keep))
            if keep.any():
                yield batch.filter(pa.array(keep)).select(settings.consumes.names)

    def skipped() -> Iterator[pa.RecordBatch]:
        while pending and not pending[0][2].any():
            ids, reasons, keep = pending.popleft()
            yield _scattered(ids, reasons, keep, settings.produces.empty_table().to_batches(), out)

    for answer in settings(entering(), tally):
        yield from skipped()
        if not pending or pending[0][2].sum() != answer.num_rows:
            raise BadShardError(f"stage {settings.name} answered {answer.num_rows} rows out of step")
        ids, reasons, keep = pending.popleft()
        yield _scattered(ids, reasons, keep, [answer], out)
    yield from skipped()
    if pending:
        raise BadShardError(f"stage {settings.name} left {sum(len(p[2]) for p in pending)} rows without an answer")


def _scattered(
    ids: pa.Array, reasons: pa.Array, keep: np.ndarray, answers: list[pa.RecordBatch], out: pa.Schema
) -> pa.RecordBatch:
    at = pa.array(np.cumsum(keep) - 1, mask=~keep)
    columns = []
    for field in out:
        if field.name == "sample_id":
            columns.append(ids)
        elif field.name == "verdict":
            columns.append(reasons)
        elif answers and field.name in answers[0].schema.names:
            columns.append(answers[0].column(field.name).take(at).cast(field.type))
        else:
            columns.append(pa.nulls(len(ids), field.type))
    return pa.RecordBatch.from_arrays(columns, schema=out)


def _reasons(batch: pa.RecordBatch, recipe: Recipe, stage: str) -> pa.StringArray:
    """Why rows do not go on after this stage, null for those that do."""
    carried = pc.coalesce(batch.column("verdict"), batch.column("fault"))
    return pc.coalesce(carried, judge(batch, recipe.gates_after(stage)))


def _gate_columns(recipe: Recipe, stage: str) -> list[str]:
    return [column for _, gate in recipe.gates_after(stage) for column in gate.columns]


def _tables_for(store: Store, recipe: Recipe, dump: str, shard: int, settings: Stage) -> _Tables:
    before = upstream(recipe, settings.name)
    assert before is not None
    return _Tables(store, recipe, dump, shard, before, [*settings.consumes.names, *_gate_columns(recipe, before)])


class _Tables:
    """The tables of a shard side by side: same rows, same order, so no join is needed."""

    def __init__(self, store: Store, recipe: Recipe, dump: str, shard: int, last: str, columns: Sequence[str]) -> None:
        self._columns: dict[str, list[str]] = {last: ["sample_id", "verdict", "fault"]}
        for column in dict.fromkeys(columns):
            producer = COLUMNS[column].producer
            if recipe.stage(producer) is None:
                raise BadShardError(f"column {column} is made by stage {producer}, which {recipe.name} leaves out")
            wanted = self._columns.setdefault(producer, ["sample_id"])
            if column not in wanted:
                wanted.append(column)
        self._keys = {name: table_key(dump, name, fingerprint(recipe, name), shard) for name in self._columns}
        self._store = store
        self._last = last

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        readers = {}
        for name, key in self._keys.items():
            try:
                readers[name] = _Rows(self._store.open_parquet(key), self._columns[name])
            except FileNotFoundError as err:
                raise BadShardError(f"expected the table of stage {name}, found none: run {name} first") from err
        while True:
            sizes = {name: reader.available() for name, reader in readers.items()}
            if len(set(map(bool, sizes.values()))) > 1:
                raise BadShardError(f"tables of {', '.join(sizes)} differ in length")
            if not (size := min(sizes.values())):
                return
            columns: dict[str, pa.Array] = {}
            for name, reader in readers.items():
                part = reader.take(size)
                if "sample_id" in columns and not columns["sample_id"].equals(part.column("sample_id")):
                    raise BadShardError(f"rows of {name} are out of step with those of {self._last}")
                columns.update({field.name: part.column(field.name) for field in part.schema})
            yield pa.RecordBatch.from_pydict(columns)


class _Rows:
    """Rows of one table in pieces of any size, without copying."""

    def __init__(self, table: pq.ParquetFile, columns: list[str]) -> None:
        self._batches = table.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        self._batch: pa.RecordBatch | None = None

    def available(self) -> int:
        while self._batch is None or not self._batch.num_rows:
            self._batch = next(self._batches, None)
            if self._batch is None:
                return 0
        return int(self._batch.num_rows)

    def take(self, size: int) -> pa.RecordBatch:
        assert self._batch is not None
        part, self._batch = self._batch.slice(0, size), self._batch.slice(size)
        return part


class _Reporter:
    """Progress to the caller, and a line in the log every ten seconds with rate and time left."""

    def __init__(self, label: str, expected: int, progress: Progress | None) -> None:
        self._label, self._expected, self._progress = label, expected, progress
        self._started = self._logged = time.monotonic()
        self._rows = self._entered = 0

    def entered(self, rows: int) -> None:
        """So many rows more went in: of a stage that holds them back until its shard is whole the only progress."""
        self._entered += rows
        self(self._rows)

    def __call__(self, rows: int) -> None:
        self._rows = rows
        rows = max(rows, self._entered)
        if self._progress:
            self._progress(rows, self._expected)
        now = time.monotonic()
        if now - self._logged >= 10:
            self._logged = now
            rate = rows / (now - self._started)
            left = f", {(self._expected - rows) / rate:.0f} s left" if self._expected and rate else ""
            log.info("%s: %d of %d rows, %.0f rows/s%s", self._label, rows, self._expected, rate, left)

    def final(self) -> None:
        seconds = time.monotonic() - self._started
        log.info("%s: %d rows in %.1f s", self._label, self._rows, seconds)


def _table_schema(settings: Stage) -> pa.Schema:
    fields = list(schema("sample_id", "verdict", "fault"))
    return pa.schema([*fields, *(f for f in settings.produces if f.name not in ("sample_id", "verdict", "fault"))])


def _extract(recipe: Recipe) -> Extract:
    return recipe.stages.extract


def _count(values: pa.Array, into: Counter[str]) -> None:
    for pair in pc.value_counts(pc.drop_null(values)).to_pylist():
        into[pair["values"]] += pair["counts"]


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
