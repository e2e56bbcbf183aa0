import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curation.joins.best_first
import curation.joins.pieces
from curation.errors import BadShardError
from curation.images.phash import phash
from curation.stages.dedup import Dedup


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def look(bits: str) -> str:
    """Bits turned over in a pattern of 32, as many as a photograph has: distances stay, and no look is too plain."""
    return f"{int(bits, 16) ^ 0x5555555555555555:016x}"


def sample_id(name: str) -> str:
    """Ids in the order of the names, which are at most two characters long."""
    return name.encode().hex().ljust(32, "0")


def keys(stage: Dedup, *rows: dict[str, Any]) -> pa.Table:
    """Keys of samples named by `id`; every other picture is different from all unless said."""
    full, shards = [], []
    for row in rows:
        name = row["id"] + str(row.get("shard", 0))
        defaults = {"url": f"http://a/{name}", "sha256": name, "phash": digest(name)[:16], "phash_spread": 50.0}
        size = {"original_width": 100, "original_height": 100, "similarity": 0.3}
        sample = {**defaults, **size, **row, "sample_id": sample_id(row["id"])}
        sample["sha256"] = digest(sample["sha256"])
        sample["phash"] = look(sample["phash"])
        full.append({column: sample[column] for column in stage.reads.names})
        shards.append(row.get("shard", 0))
    emitted = stage.emit(pa.RecordBatch.from_pylist(full, schema=stage.reads))
    return pa.Table.from_batches([emitted]).append_column("shard", pa.array(shards, pa.int32()))


def outcome(table: pa.Table) -> dict[str, tuple[Any, ...]]:
    names = {None: None} | {pair.hex(): pair.decode().strip("\0") for pair in table["pair"].to_pylist()}
    return {
        names[row["pair"].hex()]: (
            row["duplicate_kind"],
            row["duplicate_of"] and bytes.fromhex(row["duplicate_of"]).decode().strip("\0"),
            row["group_size"],
        )
        for row in table.to_pylist()
    }


def found(stage: Dedup, *rows: dict[str, Any], index: tuple[pa.Table, ...] = ()) -> dict[str, tuple[Any, ...]]:
    return outcome(stage.match(keys(stage, *rows), index))


def test_keeps_the_largest_then_the_most_similar_then_the_smallest_id() -> None:
    rows = [
        {"id": "a", "sha256": "s", "similarity": 0.2},
        {"id": "b", "sha256": "s", "original_width": 200, "similarity": 0.1},
        {"id": "c", "sha256": "t", "similarity": 0.2},
        {"id": "d", "sha256": "t", "similarity": 0.4},
        {"id": "f", "sha256": "u"},
        {"id": "e", "sha256": "u"},
    ]
    assert found(Dedup(), *rows) == {
        "a": ("sha256", "b", 2), "b": (None, None, 2), "c": ("sha256", "d", 2),
        "d": (None, None, 2), "e": (None, None, 2), "f": ("sha256", "e", 2),
    }  # fmt: skip
    assert found(Dedup(rank=("similarity",)), *rows)["b"] == ("sha256", "a", 2)


def test_look_alikes_within_the_radius_and_not_beyond() -> None:
    rows = [{"id": name, "phash": f"{bits:016x}"} for name, bits in (("a", 0xFF00), ("b", 0xFF0F), ("c", 0xFFFF))]
    assert found(Dedup(phash_radius=4), *rows) == {"a": (None, None, 2), "b": ("phash", "a", 2), "c": (None, None, 1)}


def test_chains_of_look_alikes_do_not_collapse() -> None:
    chain = [{"id": f"{n:02d}", "phash": f"{(1 << 4 * n) - 1:016x}"} for n in range(12)]
    assert sum(row[0] is None for row in found(Dedup(phash_radius=4), *chain).values()) == 6


def test_flat_pictures_are_compared_by_bytes_only() -> None:
    flat = [{"id": name, "phash": "8000000000000000", "phash_spread": 0.5} for name in "abc"]
    assert {kind for kind, *_ in found(Dedup(), *flat).values()} == {None}


def test_stripes_that_are_unlike_are_no_group() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(20):  # flags: as many bands, other colours
        bands = rng.integers(0, 256, (3, 1, 3), np.uint8)
        found_look, spread = phash(np.broadcast_to(bands.repeat(100, 0), (300, 450, 3)).copy())
        rows.append({"id": f"{n:02d}", "phash": look(found_look), "phash_spread": spread})
    assert {kind for kind, *_ in found(Dedup(min_spread=0), *rows).values()} == {None}
    rows[1]["sha256"] = rows[0]["sha256"] = "same"
    assert found(Dedup(), *rows)["01"] == ("sha256", "00", 2)


def test_one_url_with_changed_bytes_is_a_duplicate_unless_told_otherwise() -> None:
    rows = [{"id": "a", "url": "http://a/x"}, {"id": "b", "url": "http://a/x"}]
    assert found(Dedup(), *rows)["b"] == ("url", "a", 2)
    assert found(Dedup(same_url=False), *rows)["b"] == (None, None, 1)


def test_a_look_whose_best_row_is_dropped_for_another_reason_still_counts() -> None:
    rows = [
        {"id": "a", "url": "http://a/x", "original_width": 900},
        {"id": "b", "url": "http://a/x", "original_width": 800, "phash": f"{0xFF00:016x}"},  # dropped: url of a
        {"id": "c", "original_width": 700, "phash": f"{0xFF00:016x}"},
        {"id": "d", "phash": f"{0xFF01:016x}"},
    ]
    assert found(Dedup(), *rows) == {
        "a": (None, None, 2), "b": ("url", "a", 2), "c": (None, None, 2), "d": ("phash", "c", 2)
    }  # fmt: skip


def test_same_pair_in_two_shards_and_against_the_index() -> None:
    stage = Dedup()
    first = stage.match(keys(stage, {"id": "a", "shard": 0}, {"id": "a", "shard": 1}), ())
    assert first["duplicate_kind"].to_pylist() == [None, "pair"]
    later = {"id": "a", "shard": 7, "original_width": 900}
    assert found(stage, later, index=(stage.kept(first),)) == {"a": ("pair", "a", 2)}


def test_against_the_index_the_nearest_look_is_named_and_better_reasons_come_first() -> None:
    stage = Dedup()
    old = keys(stage, {"id": "a", "phash": f"{0xF:016x}"}, {"id": "b", "phash": f"{0xFFF:016x}"}, {"id": "c"})
    index = stage.kept(stage.match(old, ()))
    new = [{"id": "x", "phash": f"{0x3FF:016x}"}, {"id": "y", "phash": f"{0xFFF:016x}", "sha256": "c0"}, {"id": "z"}]
    expected = {"x": ("phash", "b"), "y": ("sha256", "c"), "z": (None, None)}
    for pieces in ((index,), (index.slice(0, 1), index.slice(1)), (index.slice(1), index.slice(0, 1))):
        decided = stage.match(keys(stage, *new), pieces)
        of = [row and bytes.fromhex(row).decode().strip("\0") for row in decided["duplicate_of"].to_pylist()]
        assert dict(zip("xyz", zip(decided["duplicate_kind"].to_pylist(), of, strict=True), strict=True)) == expected


@pytest.mark.parametrize("pass_rows", [1, 1_000_000])
def test_of_equally_near_known_looks_the_newest_is_named_however_the_index_is_cut(
    pass_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation.joins.pieces, "_PASS_ROWS", pass_rows)
    stage = Dedup()
    older, newer = (
        stage.kept(stage.match(keys(stage, {"id": name, "phash": f"{look:016x}"}), ()))
        for name, look in (("o", 0xF0), ("n", 0xFFF0))
    )
    assert found(stage, {"id": "x", "phash": f"{0x3F0:016x}"}, index=(newer, older))["x"] == ("phash", "o", 2)
    assert found(stage, {"id": "x", "phash": f"{0x3F0:016x}"}, index=(older, newer))["x"] == ("phash", "o", 2)
    between = {"id": "x", "phash": f"{0x33F0:016x}"}
    assert found(Dedup(phash_radius=4), between, index=(newer, older))["x"] == ("phash", "n", 2)
    assert found(Dedup(phash_radius=4), between, index=(older, newer))["x"] == ("phash", "o", 2)


def test_no_samples() -> None:
    assert Dedup().match(keys(Dedup()), ()).num_rows == 0


def test_embeddings_within_clusters_also_against_the_index() -> None:
    stage = Dedup(embedding_cosine=0.95, cluster_rows=6)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6, 16))
    vectors = np.concatenate([base, base + 0.02 * rng.normal(size=base.shape)])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    rows = [{"id": f"{n:02d}", "img_emb": vector.tolist()} for n, vector in enumerate(vectors)]
    block = keys(stage, *rows)
    prepared = stage.prepare(block)
    assert prepared is not None
    assert prepared.num_rows > 1
    decided = stage.match(block, (), prepared)
    assert outcome(decided) == {f"{n:02d}": (None, None, 2) for n in range(6)} | {
        f"{n + 6:02d}": ("embedding", f"{n:02d}", 2) for n in range(6)
    }
    first = stage.kept(stage.match(block.slice(0, 6), (), prepared))
    later = stage.match(block.slice(6), (first,), prepared)
    assert later["duplicate_kind"].to_pylist() == ["embedding"] * 6
    assert later["duplicate_of"].to_pylist() == [sample_id(f"{n:02d}") for n in range(6)]


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "sha256": st.sampled_from("stuvwxyz"),
            "url": st.sampled_from([f"http://a/{n}" for n in range(12)]),
            "phash": st.integers(0, 255).map("{:016x}".format),
            "phash_spread": st.sampled_from([0.0, 50.0]),
            "original_width": st.sampled_from([10, 20]),
            "similarity": st.sampled_from([0.2, 0.3]),
            "shard": st.integers(0, 2),
        }
    ),
    max_size=14,
)


def alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    textured = a["phash_spread"] > 4 and b["phash_spread"] > 4
    near = (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count() <= 2
    return a["sha256"] == b["sha256"] or a["url"] == b["url"] or (textured and near)


@pytest.mark.parametrize("compiled", [False, True])
@given(data=st.data(), rows=ROWS)
@settings(max_examples=60)
def test_independent_of_order_and_no_two_kept_are_duplicates(
    data: st.DataObject, rows: list[dict[str, Any]], compiled: bool
) -> None:
    rows = [{**row, "id": f"{n:02d}"} for n, row in enumerate(rows)]
    stage = Dedup(phash_radius=2)
    with pytest.MonkeyPatch.context() as patch:
        if compiled:
            from numba import njit

            patch.setattr(curation.joins.best_first, "_loop", COMPILED.setdefault("loop", njit(LOOP)))
        expected = found(stage, *rows)
        assert found(stage, *data.draw(st.permutations(rows))) == expected
        by_id = {row["id"]: row for row in rows}
        kept = [by_id[name] for name, (kind, *_) in expected.items() if kind is None]
        assert not [(a, b) for a in kept for b in kept if a is not b and alike(a, b)]
        for name, (kind, of, _) in expected.items():
            assert kind is None or alike(by_id[name], by_id[of])
        # in two blocks: what both keep is free of duplicates too, and each dropped row duplicates a kept one
        at = data.draw(st.integers(0, len(rows)))
        first = stage.match(keys(stage, *rows[:at]), ())
        second = stage.match(keys(stage, *rows[at:]), (stage.kept(first),))
        kinds = [*first["duplicate_kind"].to_pylist(), *second["duplicate_kind"].to_pylist()]
        kept = [row for row, kind in zip(rows, kinds, strict=True) if kind is None]
        assert not [(a, b) for a in kept for b in kept if a is not b and alike(a, b)]
        dropped = [row for row, kind in zip(rows, kinds, strict=True) if kind is not None]
        assert all(any(alike(row, other) for other in kept) for row in dropped)


LOOP = curation.joins.best_first._loop
COMPILED: dict[str, Any] = {}


def test_applies_decisions_in_order() -> None:
    stage = Dedup()
    ready = stage.applying(stage.match(keys(stage, {"id": "a", "sha256": "s"}, {"id": "b", "sha256": "s"}), ()))
    batches = [pa.record_batch({"sample_id": [sample_id(name)]}) for name in "ab"]
    answers = [batch.to_pylist() for batch in ready(iter(batches), Counter())]
    assert [answer[0]["duplicate_of"] for answer in answers] == [None, sample_id("a")]
    with pytest.raises(BadShardError, match="run match again"):
        list(ready(iter(batches[::-1]), Counter()))
