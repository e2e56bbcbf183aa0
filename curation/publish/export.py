"""Export of one shard: the kept samples in the forms that the recipe asks for, and a note of what they are."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import __version__, tombstones
from curation.errors import BadShardError
from curation.pipeline import judged_fingerprint
from curation.publish import condemned
from curation.publish.converse import Conversing
from curation.publish.instruct import Groups, instruct_record, is_pair, pretrain_record
from curation.publish.parts import Part, Plan, manifest_key, part_key, read_part, read_plan, version_folder
from curation.publish.quality import Quality
from curation.publish.selection import entombed, left_out, selection_identity
from curation.publish.settings import AnyRes, Publish
from curation.publish.writers import JsonWriter, TarWriter, file_of, pairs_of
from curation.receipt import Receipt, digest
from curation.recipe import Recipe
from curation.runner import read_outcomes, receipt_of
from curation.schema import COLUMNS
from curation.store import Store, TableWriter
from curation.verdicts import Verdict

FORMAT = 2  # of the files: raised when the same samples come out as other bytes
# bytes of their own kind, and the marks of the gates: the same for every sample that is kept
# where and how fast an endpoint is asked: its answers are the same
_NOT_ASKED = {"url", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "attempts"}
_NO_METADATA = frozenset(
    [
        *("image", "img_emb", "txt_emb", "sample_id", "verdict", "fault", "duplicate_pair", "url_class", "text_class"),
        "picture_ref",  # a path on the machine that read it
    ]
)
_EMBEDDINGS = ("img_emb", "txt_emb")
_ANYRES = (
    ("anyres_grid", pa.string()),  # columns x rows
    ("anyres_tokens_flat", pa.int32()),
    ("anyres_tokens_unpadded", pa.int32()),
)
_DOMAINS_A_SHARD = 300
_HOST = r"^[a-z]+://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"


def export_shard(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> dict[str, int]:
    """Write the kept samples of one shard and return their number and bytes.

    An export of the same tables that stands here, or in the version's parent, is kept. A second export, here or on
    another machine, writes the same bytes again: no clock and no host is in them. Raises BadShardError when the
    shard's last stage is not done, and when the version is published already from other tables.
    """
    source = receipt_of(store, recipe, dump, shard, recipe.stage_names[-1])
    if source is None:
        raise BadShardError(f"{dump} shard {shard:05d}: expected the table of {recipe.stage_names[-1]}, found none")
    plan = read_plan(store, recipe.name, version)
    part = standing_part(store, recipe, version, dump, shard)
    chosen = selection_identity(store, recipe, version)
    stands = part is not None and part.input == source.object_id and part.selection == chosen
    if part is None or not stands or not all(store.exists(file.key) for file in part.files):
        if not stands and store.exists(manifest_key(recipe.name, version)):
            raise BadShardError(
                f"{dump} shard {shard:05d}: version {version} is published, from other tables than stand here now; "
                "a published version never changes: plan a new one"
            )
        part = _of_parent(store, recipe, plan, source, chosen) or _export(store, recipe, plan, source, chosen)
        store.write_bytes(part_key(recipe.name, version, dump, shard), part.model_dump_json().encode())
    return {"samples": part.samples, "bytes": sum(file.size for file in part.files)}


def standing_part(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> Part | None:
    """What was exported of a shard under these settings, None when it was not."""
    part = read_part(store, recipe.name, version, dump, shard)
    return part if part is not None and part.outputs == outputs_digest(recipe) else None


def outputs_digest(recipe: Recipe) -> str:
    """Digest of what decides, beside the tables, which bytes an export writes."""
    settings = recipe.publish.model_dump_json(exclude={"release": True, "converse": {"endpoint": _NOT_ASKED}})
    return digest(str(FORMAT), judged_fingerprint(recipe), settings)


def output_keys(recipe_name: str, settings: Publish, version: str, dump: str, shard: int) -> dict[str, str]:
    """Keys of a shard's files by kind: metadata, webdataset, pretrain, instruct, multi_image."""
    suffixes = {
        "metadata": "parquet" if settings.parquet else "",
        "webdataset": "tar" if settings.webdataset else "",
        "pretrain": settings.pretrain,
        "instruct": settings.instruct,
        "multi_image": settings.multi_image,
    }
    folder = version_folder(recipe_name, version)
    return {kind: f"{folder}/{kind}/{dump}-{shard:05d}.{suffix}" for kind, suffix in suffixes.items() if suffix}


def kind_of(key: str) -> str:
    """Kind of a version's file by its key: metadata, webdataset, ...; a report's own name."""
    return key.split("/")[3]


def place_of(key: str) -> str:
    """Path of a version's file in one folder that holds the whole version, whichever version wrote it."""
    return key.split("/", 3)[3]


def _of_parent(store: Store, recipe: Recipe, plan: Plan, source: Receipt, chosen: str) -> Part | None:
    """The parent's export of this shard, when the same would be written again and its files stand."""
    part = standing_part(store, recipe, plan.parent, source.dump, source.shard) if plan.parent else None
    if part is None or part.input != source.object_id or part.selection != chosen:
        return None
    if condemned.among(store, (file.key for file in part.files)):
        return None
    if any(not store.exists(file.key) for file in part.files):
        return None
    before = read_plan(store, recipe.name, plan.parent).tombstones
    if set(plan.tombstones) != set(before) or part.counts.get(Verdict.TOMBSTONE):
        fresh = set(plan.tombstones) - set(before)
        matcher = tombstones.read(store, sorted(fresh))
        metadata = next((file.key for file in part.files if kind_of(file.key) == "metadata"), "")
        if set(before) - set(plan.tombstones) or (matcher and not metadata):
            return None
        if matcher and any_match(store, metadata, matcher):
            return None
    return part


def any_match(store: Store, metadata: str, matcher: tombstones.Matcher) -> bool:
    """Whether a published metadata table holds a sample that is meant; reads the columns that it takes."""
    with store.open_parquet(metadata) as table:
        names = [name for name in matcher.columns if name in table.schema_arrow.names]
        return any(matcher.matches(batch).any() for batch in table.iter_batches(columns=names))


def _export(store: Store, recipe: Recipe, plan: Plan, source: Receipt, chosen: str) -> Part:
    keys = output_keys(recipe.name, recipe.publish, plan.version, source.dump, source.shard)
    with contextlib.ExitStack() as spools:  # the last that is entered is committed first
        paths = {kind: spools.enter_context(store.spool(key)) for kind, key in keys.items()}
        counts, quality, domains = _write(store, recipe, plan, source, paths)
        files = [file_of(keys[kind], path) for kind, path in paths.items()]
    return Part(
        input=source.object_id,
        outputs=outputs_digest(recipe),
        selection=chosen,
        counts=dict(counts),
        files=files,
        quality=quality.to_json(),
        domains=domains,
    )


def _write(
    store: Store, recipe: Recipe, plan: Plan, source: Receipt, paths: dict[str, Path]
) -> tuple[Counter[str], Quality, dict[str, list[int]]]:
    columns = _columns(recipe)
    schema = pa.schema(
        [("sample_id", pa.string()), ("key", pa.string()), ("dump", pa.string()), ("shard", pa.int32())]
        + [_measured(recipe)[name] for name in columns]
        + (list(_ANYRES) if recipe.publish.anyres else [])
    )
    matcher = tombstones.read(store, {*plan.tombstones, *tombstones.keys(store)})  # those of today too
    others = left_out(store, recipe, plan.version, source.dump, source.shard)
    read = [*columns, "image"] if "webdataset" in paths else columns
    counts: Counter[str] = Counter()
    candidates: Counter[str] = Counter()
    kept_of: Counter[str] = Counter()
    quality = Quality(recipe.publish.perplexity_model)
    with contextlib.ExitStack() as stack:
        outputs = Outputs(stack, recipe.publish, paths)
        conversing = Conversing(store, recipe.publish.converse) if recipe.publish.converse else None
        table = stack.enter_context(_table(paths["metadata"], schema)) if "metadata" in paths else None
        for batch in read_outcomes(store, recipe, source.dump, source.shard, read):
            reasons = entombed(batch, matcher)
            if others:
                chosen = [others.get(sample_id) for sample_id in batch.column("sample_id").to_pylist()]
                reasons = pc.coalesce(reasons, pa.array(chosen, pa.string()))
            for pair in pc.value_counts(reasons).to_pylist():
                counts[pair["values"] or "kept"] += pair["counts"]
            kept = readable(batch.filter(pc.is_null(reasons)))
            _count_hosts(batch.column("url"), candidates)
            _count_hosts(kept.column("url"), kept_of)
            rows = kept.drop_columns([name for name in _EMBEDDINGS if name in columns]).to_pylist()
            if conversing:
                conversing.add_to(rows)
            first = counts["kept"] - len(rows)
            for index, row in enumerate(rows, start=first):
                # img2dataset's form, with room for the 10 million pairs that a WARC file can hold
                row |= {"key": f"{source.shard:05d}{index:07d}", "dump": source.dump, "shard": source.shard}
                if recipe.publish.anyres:
                    row |= _tokens(recipe.publish.anyres, row)
                outputs.add(row)
            quality.add_rows(rows)
            if table and rows:
                placed = {name: [row[name] for row in rows] for name in schema.names if name not in kept.schema.names}
                arrays = [
                    pa.array(placed[field.name], field.type) if field.name in placed else kept.column(field.name)
                    for field in schema
                ]
                table.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
        outputs.finish()
        if conversing:
            quality.add_conversations(conversing.outcomes)
        if table:
            table.set_receipt(_receipt(recipe, plan.version, source, counts))
    largest = sorted(candidates.items(), key=lambda item: (-item[1], item[0]))[:_DOMAINS_A_SHARD]
    return counts, quality, {host: [count, kept_of[host]] for host, count in largest}


def _tokens(anyres: AnyRes, row: dict[str, Any]) -> dict[str, Any]:
    found = anyres.layout((row["width"], row["height"]))
    values = (f"{found.grid[0]}x{found.grid[1]}", found.flat, found.unpadded)
    return dict(zip((name for name, _ in _ANYRES), values, strict=True))


class Outputs:
    """The forms other than the metadata table, written together from the same rows."""

    def __init__(self, stack: contextlib.ExitStack, settings: Publish, paths: dict[str, Path]) -> None:
        def records(kind: str, form: str) -> JsonWriter | None:
            return stack.enter_context(JsonWriter(paths[kind], form)) if kind in paths else None

        self._seed = settings.seed
        self._tar = stack.enter_context(TarWriter(paths["webdataset"])) if "webdataset" in paths else None
        self._pretrain = records("pretrain", settings.pretrain)
        self._instruct = records("instruct", settings.instruct)
        self._several = records("multi_image", settings.multi_image)
        self._groups = Groups(settings.max_images, settings.alike_bits, settings.seed)

    def add(self, row: dict[str, Any]) -> None:
        """Write a sample into each form: all its pairs, but one picture of a multi-image record."""
        hidden = _NO_METADATA - {"sample_id"}
        for pair in pairs_of(row):
            if self._tar:
                self._tar.add_sample(pair, {name: value for name, value in pair.items() if name not in hidden})
            if self._pretrain and is_pair(pair):
                self._pretrain.add(pretrain_record(pair))
            if self._instruct and is_pair(pair):
                self._instruct.add(instruct_record(pair, self._seed))
        if self._several:
            self._groups.add(row)

    def finish(self) -> None:
        """Write what takes all samples of the shard."""
        if self._several:
            for record in self._groups.records():
                self._several.add(record)


def _count_hosts(urls: pa.Array, into: Counter[str]) -> None:
    hosts = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    for pair in pc.value_counts(pc.drop_null(hosts)).to_pylist():
        into[pair["values"]] += pair["counts"]


def _columns(recipe: Recipe) -> list[str]:
    """What the stages of this recipe measure: a stage without a head for aesthetics has no such column."""
    measured = _measured(recipe)
    order = [name for name in COLUMNS if name in measured]
    order += [name for name in measured if name not in order]  # heads of the recipe's own
    columns = [name for name in order if name not in _NO_METADATA]
    return columns + [name for name in _EMBEDDINGS if recipe.publish.embeddings and name in measured]


def _measured(recipe: Recipe) -> dict[str, pa.Field]:
    return {field.name: field for name in recipe.stage_names if (one := recipe.stage(name)) for field in one.produces}


@contextlib.contextmanager
def _table(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    writer = TableWriter(path, schema)
    try:
        yield writer
    except BaseException:  # an interrupt too: what is half written is not closed, which would show it
        writer.discard()
        raise
    writer.close()


def _receipt(recipe: Recipe, version: str, source: Receipt, counts: Counter[str]) -> Receipt:
    """Without time, host and memory: the same samples give the same bytes."""
    judged = judged_fingerprint(recipe)
    return Receipt(
        object_id=digest("export", version, source.object_id),
        stage="export",
        stage_version=FORMAT,
        fingerprint=judged,
        recipe=recipe.name,
        dump=source.dump,
        shard=source.shard,
        inputs={source.stage: source.object_id},
        rows=counts.total(),
        measured=counts["kept"],
        dropped={reason: count for reason, count in counts.items() if reason != "kept"},
        curation_version=__version__,
    )


def readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every text in valid UTF-8: bytes that are none (lone surrogates) become U+FFFD."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        columns = [_decoded(column) if pa.types.is_string(column.type) else column for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    return batch


def _decoded(column: pa.Array) -> pa.Array:
    values = [None if v is None else v.decode(errors="replace") for v in column.cast(pa.binary()).to_pylist()]
    return pa.array(values, pa.string())
