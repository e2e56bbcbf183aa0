from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import BadShardError
from curation.stages.dedup import DECISIONS, KEYS, Dedup

FIELDS = pa.schema([*KEYS, pa.field("shard", pa.int32())])


def keys(*rows: dict) -> pa.Table:
    defaults = {"phash_spread": 50.0, "original_width": 100, "original_height": 100, "similarity": 0.3, "shard": 0}
    full = [
        {**defaults, "phash": f"{hash(row['sample_id']) & (2**64 - 1):016x}", "sha256": row["sample_id"], **row}
        for row in rows
    ]
    return pa.Table.from_pylist(full, schema=FIELDS)


def outcome(table: pa.Table) -> dict[str, tuple]:
    return {
        row["sample_id"]: (row["duplicate_kind"], row["duplicate_of"], row["group_size"]) for row in table.to_pylist()
    }


EMPTY = DECISIONS.empty_table()


def test_keeps_the_largest_then_the_most_similar_then_the_smallest_id() -> None:
    found = Dedup().match(
        keys(
            {"sample_id": "a", "sha256": "s", "similarity": 0.2},
            {"sample_id": "b", "sha256": "s", "original_width": 200},
            {"sample_id": "c", "sha256": "t", "similarity": 0.2},
            {"sample_id": "d", "sha256": "t", "similarity": 0.4},
            {"sample_id": "f", "sha256": "u"},
            {"sample_id": "e", "sha256": "u"},
        ),
        EMPTY,
    )
    assert outcome(found) == {
        "a": ("sha256", "b", 2), "b": (None, None, 2), "c": ("sha256", "d", 2),
        "d": (None, None, 2), "e": (None, None, 2), "f": ("sha256", "e", 2),
    }  # fmt: skip


def test_look_alikes_within_the_radius_and_not_beyond() -> None:
    rows = [
        {"sample_id": name, "phash": f"{bits:016x}"} for name, bits in (("a", 0xFF00), ("b", 0xFF0F), ("c", 0xFFFF))
    ]
    found = outcome(Dedup(phash_radius=4).match(keys(*rows), EMPTY))
    assert found == {"a": (None, None, 2), "b": ("phash", "a", 2), "c": (None, None, 1)}


def test_chains_of_look_alikes_do_not_collapse() -> None:
    chain = [{"sample_id": f"{n:02d}", "phash": f"{(1 << 4 * n) - 1:016x}"} for n in range(12)]
    kept = [row for row in outcome(Dedup(phash_radius=4).match(keys(*chain), EMPTY)).values() if row[0] is None]
    assert len(kept) == 6


def test_flat_pictures_are_compared_by_bytes_only() -> None:
    flat = [{"sample_id": name, "phash": "8000000000000000", "phash_spread": 0.5} for name in "abc"]
    assert {kind for kind, *_ in outcome(Dedup().match(keys(*flat), EMPTY)).values()} == {None}


def test_same_pair_in_two_shards_and_against_the_index() -> None:
    first = Dedup().match(keys({"sample_id": "a", "shard": 0}, {"sample_id": "a", "shard": 1}), EMPTY)
    assert first["duplicate_kind"].to_pylist() == [None, "pair"]
    later = Dedup().match(keys({"sample_id": "a", "shard": 7, "original_width": 900}), first.slice(0, 1))
    assert outcome(later) == {"a": ("pair", "a", 2)}


def test_no_samples() -> None:
    assert Dedup().match(FIELDS.empty_table(), EMPTY).num_rows == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_independent_of_order_and_no_two_kept_are_duplicates(data: st.DataObject) -> None:
    rows = [
        {
            "sample_id": f"{n:02d}",
            "sha256": data.draw(st.sampled_from("stuvw")),
            "phash": f"{data.draw(st.integers(0, 63)):016x}",
            "phash_spread": data.draw(st.sampled_from([0.0, 50.0])),
            "original_width": data.draw(st.sampled_from([10, 20])),
        }
        for n in range(data.draw(st.integers(0, 12)))
    ]
    stage = Dedup(phash_radius=2)
    expected = outcome(stage.match(keys(*rows), EMPTY))
    assert outcome(stage.match(keys(*data.draw(st.permutations(rows))), EMPTY)) == expected
    by_id = {row["sample_id"]: row for row in rows}
    kept = [by_id[name] for name, (kind, *_) in expected.items() if kind is None]

    def alike(a: dict, b: dict) -> bool:
        textured = a["phash_spread"] > 4 and b["phash_spread"] > 4
        near = (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count() <= 2
        return a["sha256"] == b["sha256"] or (textured and near)

    assert not [(a, b) for a in kept for b in kept if a is not b and alike(a, b)]
    for name, (kind, of, _) in expected.items():
        assert kind is None or alike(by_id[name], by_id[of])


def test_applies_decisions_in_order() -> None:
    decided = Dedup().match(keys({"sample_id": "a", "sha256": "s"}, {"sample_id": "b", "sha256": "s"}), EMPTY)
    stage = Dedup().applying(decided)
    batches = [pa.record_batch({"sample_id": ["a"]}), pa.record_batch({"sample_id": ["b"]})]
    answers = [batch.to_pylist() for batch in stage(iter(batches), Counter())]
    assert [answer[0]["duplicate_of"] for answer in answers] == [None, "a"]
    with pytest.raises(BadShardError, match="run match again"):
        list(stage(iter(batches[::-1]), Counter()))
