"""The index of generations on a real store: two runs at once, a run that dies, later dumps, whole runs that fetch."""

import hashlib
import io
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

import curation.generations as generations
from curation.block import Block, plan
from curation.errors import BadShardError, ConfigError
from curation.generations import check_index, group, match_block, of_shard
from curation.local import run_block
from curation.pipeline import fingerprint, saved_recipe
from curation.receipt import Receipt, table_key
from curation.recipe import Recipe, load_recipe, parse_recipe
from curation.runner import read_outcomes, run_stage
from curation.schema import COLUMNS, schema
from curation.store import Store
from tests.curation.conftest import World
from tests.curation.test_local import Seen

RECIPE = {"name": "small", "stages": {"extract": {}, "download": {}, "dedup": {"rank": ["pixels"]}}, "gates": {}}
RECIPE["gates"] = {"duplicate_sha256": {"column": "duplicate_kind", "none_of": ["sha256"]}}


def put(
    store: Store,
    recipe: Recipe,
    dump: str,
    shard: int,
    contents: Sequence[str],
    stages: Sequence[str] = ("extract", "download"),
) -> None:
    """Tables of these stages as if a shard had samples of these contents; a and a' have one embedding."""
    rows = []
    for at, content in enumerate(contents):
        url = f"http://{dump}/{shard}/{at}"
        seed = hashlib.sha256(content.encode()).hexdigest()
        rows.append(
            {
                "sample_id": hashlib.blake2b(url.encode(), digest_size=16).hexdigest(),
                "url": url,
                "sha256": seed,
                "phash": seed[:16],
                "phash_spread": 50.0,
                "original_width": 10,
                "original_height": 10,
                "similarity": 0.5,
                "img_emb": _embedding(content[0]),
            }
        )
    for stage in stages:
        names = [name for name in (rows[0] if rows else []) if COLUMNS[name].producer == stage and name != "sample_id"]
        columns = schema("sample_id", "verdict", "fault", *names)
        with store.write_table(table_key(dump, stage, fingerprint(recipe, stage), shard), columns) as writer:
            writer.write(pa.RecordBatch.from_pylist([{n: r.get(n) for n in columns.names} for r in rows], columns))
            writer.set_receipt(
                Receipt(
                    object_id=f"{dump}{shard}{stage}{contents}", stage=stage, stage_version=1,
                    fingerprint=fingerprint(recipe, stage), recipe="small", dump=dump, shard=shard,
                    rows=len(rows), measured=len(rows),
                )
            )  # fmt: skip


def _embedding(content: str) -> list[float]:
    vector = np.random.default_rng(ord(content)).normal(size=32)
    return list(vector / np.linalg.norm(vector))


def kept(store: Store, recipe: Recipe, blocks: dict[str, dict[int, Sequence[str]]]) -> list[str]:
    """Contents of all kept samples."""
    found = []
    for dump, shards in blocks.items():
        for shard, contents in shards.items():
            run_stage(store, recipe, dump, shard, "dedup")
            reasons = [r for b in read_outcomes(store, recipe, dump, shard) for r in b.column("reason").to_pylist()]
            found += [content for content, reason in zip(contents, reasons, strict=True) if reason is None]
    return found


def test_two_runs_at_once_do_not_both_keep_a_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe = Store(tmp_path), parse_recipe(RECIPE)
    blocks = {
        dump: {0: [f"c{n}" for n in range(start, start + 20)]} for dump, start in (("d0", 0), ("d1", 10), ("d2", 5))
    }
    for dump, shards in blocks.items():
        put(store, recipe, dump, 0, shards[0])
    together = threading.Barrier(3)
    commit, waited = generations._commit, threading.local()

    def at_once(*arguments: Any) -> bool:
        if not getattr(waited, "done", False):  # all three have matched before the first commits
            waited.done = True
            together.wait(10)
        return commit(*arguments)

    monkeypatch.setattr(generations, "_commit", at_once)
    threads = [threading.Thread(target=match_block, args=(store, recipe, dump, [0])) for dump in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept(store, recipe, blocks)) == sorted({c for shards in blocks.values() for c in shards[0]})


def test_a_run_that_dies_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe = Store(tmp_path), parse_recipe(RECIPE)
    put(store, recipe, "d", 0, ["a", "a"])
    before = {entry.key for entry in store.entries("")}
    with monkeypatch.context() as patch:
        patch.setattr(generations, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            match_block(store, recipe, "d", [0])
    assert {entry.key for entry in store.entries("")} == before
    with pytest.raises(BadShardError, match="run match first"):
        of_shard(store, recipe, "d", 0)
    first = match_block(store, recipe, "d", [0])
    assert match_block(store, recipe, "d", [0]) == first
    assert kept(store, recipe, {"d": {0: ["a", "a"]}}) == ["a"]


def test_a_task_reads_only_the_generations_behind_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe = Store(tmp_path), parse_recipe(RECIPE)
    for number in range(4):
        put(store, recipe, f"d{number}", 0, [str(number)])
        match_block(store, recipe, f"d{number}", [0])
    generations._receipt.cache_clear()  # as in a process of its own
    read: list[str] = []
    real = Store.read_receipt
    monkeypatch.setattr(Store, "read_receipt", lambda self, key: read.append(key) or real(self, key))
    assert of_shard(store, recipe, "d2", 0).endswith("000002.parquet")
    assert len(read) == 2


def test_members_of_a_group_over_all_blocks(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), parse_recipe(RECIPE)
    put(store, recipe, "d0", 0, ["a", "b"])
    put(store, recipe, "d1", 3, ["a", "c"])
    match_block(store, recipe, "d0", [0])
    match_block(store, recipe, "d1", [3])
    head = hashlib.blake2b(b"http://d0/0/0", digest_size=16).hexdigest()
    members = group(store, recipe, head)
    assert [(m["dump"], m["shard"], m["duplicate_kind"]) for m in members] == [("d0", 0, None), ("d1", 3, "sha256")]
    assert members[0]["sample_id"] == head


def test_a_named_index_outlives_a_change_of_settings(tmp_path: Path) -> None:
    store = Store(tmp_path)
    named = {**RECIPE, "stages": {**RECIPE["stages"], "dedup": {"rank": ["pixels"], "index": "mine"}}}
    old = parse_recipe(named)
    new = parse_recipe({**named, "gates": {**RECIPE["gates"], "too_small": {"column": "min_side", "at_least": 1}}})
    put(store, old, "d0", 0, ["a", "b"])
    match_block(store, old, "d0", [0])
    other = parse_recipe(
        {**named, "stages": {**named["stages"], "dedup": {"rank": ["pixels"], "index": "mine", "phash_radius": 1}}}
    )
    assert fingerprint(other, "dedup") != fingerprint(old, "dedup") != fingerprint(new, "dedup")
    put(store, other, "d1", 0, ["b", "c"])
    match_block(store, other, "d1", [0])
    assert kept(store, other, {"d1": {0: ["b", "c"]}}) == ["c"]
    with pytest.raises(BadShardError, match="run match first"):
        of_shard(store, other, "d0", 0)


SCORED = ("extract", "download", "score")


def scored(**dedup: object) -> Recipe:
    stages = {"extract": {}, "download": {}, "score": {}, "dedup": {"index": "mine", **dedup}}
    return parse_recipe({**RECIPE, "stages": stages})


@pytest.mark.parametrize("first", [["pixels"], ["pixels", "similarity"]])
def test_a_named_index_outlives_another_rank(tmp_path: Path, first: list[str]) -> None:
    store = Store(tmp_path)
    second = ["pixels"] if len(first) == 2 else ["pixels", "similarity"]
    for dump, rank, contents in [("d0", first, ["a", "b"]), ("d1", second, ["b", "c"]), ("d2", first, ["c", "d"])]:
        put(store, scored(rank=rank), dump, 0, contents, SCORED)
        match_block(store, scored(rank=rank), dump, [0])
    assert kept(store, scored(rank=first), {"d2": {0: ["c", "d"]}}) == ["d"]


def test_a_named_index_without_embeddings_is_not_compared_by_them(tmp_path: Path) -> None:
    store, by_bytes, by_embedding = Store(tmp_path), scored(), scored(embedding_cosine=0.9)
    put(store, by_bytes, "d0", 0, ["a"], SCORED)
    match_block(store, by_bytes, "d0", [0])
    put(store, by_embedding, "d1", 0, ["b"], SCORED)
    with pytest.raises(ConfigError, match=r"stages\.dedup\.index: mine .* of none, .* compares those of embedded"):
        match_block(store, by_embedding, "d1", [0])
    match_block(store, scored(embedding_cosine=0.9, index="other"), "d1", [0])
    with pytest.raises(ConfigError, match="of embedded, this recipe compares those of none"):
        check_index(store, scored(index="other"), "dedup")


def test_an_index_begun_by_a_block_without_samples_still_compares_embeddings(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), scored(embedding_cosine=0.9, phash_radius=0)
    for dump, contents in (("d0", []), ("d1", ["a", "b"]), ("d2", ["a'", "c"])):
        put(store, recipe, dump, 0, contents, SCORED)
        match_block(store, recipe, dump, [0])
    run_stage(store, recipe, "d2", 0, "dedup")
    with store.open_parquet(table_key("d2", "dedup", fingerprint(recipe, "dedup"), 0)) as table:
        assert table.read(["duplicate_kind"])["duplicate_kind"].to_pylist() == ["embedding", None]


@given(
    st.lists(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), min_size=1, max_size=3), max_size=3), st.data()
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_whatever_the_order_of_blocks_each_content_is_kept_once(
    tmp_path_factory: pytest.TempPathFactory, dumps: list[list[list[str]]], data: st.DataObject
) -> None:
    store, recipe = Store(tmp_path_factory.mktemp("store")), parse_recipe(RECIPE)
    blocks = {f"d{at}": dict(enumerate(shards)) for at, shards in enumerate(dumps)}
    for dump, shards in blocks.items():
        for shard, contents in shards.items():
            put(store, recipe, dump, shard, contents)
    for dump in data.draw(st.permutations(list(blocks))):
        match_block(store, recipe, dump, list(blocks[dump]))
        if data.draw(st.booleans()):
            match_block(store, recipe, dump, list(blocks[dump]))  # a retry
    found = Counter(kept(store, recipe, blocks))
    assert found == Counter({c for shards in blocks.values() for contents in shards.values() for c in contents})


def crawl(folder: Path, *pages: str) -> None:
    folder.mkdir()
    for shard, body in enumerate(pages):
        with (folder / f"{shard:05d}.warc.gz").open("wb") as out:
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            writer = WARCWriter(out, gzip=True)
            page = f"http://{folder.name}{shard}.test/"
            payload = io.BytesIO(body.encode())
            writer.write_record(writer.create_warc_record(page, "response", payload=payload, http_headers=headers))


def test_no_picture_is_fetched_twice_for_a_dataset(world: World, tmp_path: Path) -> None:
    cat = '<img src="http://host.test/cat.jpg" alt="{}">'.format
    coffee = '<img src="http://host.test/coffee.jpg" alt="A cup of coffee">'
    crawl(tmp_path / "one", cat("A tabby cat"), cat("A tabby cat") + cat("Another text for it"), coffee)
    crawl(
        tmp_path / "two",
        cat("A tabby cat") + cat("A third text"),
        coffee + '<img src="http://h.test/tiny.jpg" alt="A tiny cat">',
    )
    settings = {
        "stages.download.connect_to": world.connect_to,
        "stages.pairs": {"index": "small"},
        "gates.duplicate_pair": {"column": "known_pair", "none_of": ["pair"]},
        "gates.duplicate_url": {"column": "known_pair", "none_of": ["url"]},
    }
    reasons: Counter[tuple[str, str | None]] = Counter()
    for dump in ("one", "two"):
        block = plan(world.store, load_recipe(str(world.recipe_file), settings), dump, str(tmp_path / dump))
        recipe = saved_recipe(world.store, block.recipe_key)
        for _ in range(2):  # the second time nothing is left to do
            seen = Seen()
            outcome = run_block(world.store, recipe, Block(dump, block.shards, ""), seen, until="leakage")
            assert outcome.failed == {}
            assert seen.begun[:3] == ["extract", "match pairs", "pairs"]
        for shard in block.shards:
            for batch in read_outcomes(world.store, recipe, dump, shard, ["url"]):
                for row in batch.to_pylist():
                    reasons[row["url"].rpartition("/")[2], row["reason"]] += 1
    fetched = Counter(path for path in world.requests if path.endswith(".jpg"))
    assert fetched == {"/cat.jpg": 1, "/coffee.jpg": 1, "/tiny.jpg": 1}
    assert sum(n for (name, _), n in reasons.items() if name == "cat.jpg") == 5
    assert reasons["coffee.jpg", None] == reasons["coffee.jpg", "duplicate_pair"] == 1
    assert reasons["cat.jpg", None] in (1, 2)
    assert {reason for name, reason in reasons if name == "cat.jpg"} <= {None, "duplicate_pair", "duplicate_url"}
