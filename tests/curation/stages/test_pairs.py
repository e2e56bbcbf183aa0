import hashlib
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.stages.pairs import Pairs

Row = tuple[str, str, int]  # url, text, shard


def sample_id(url: str, text: str) -> str:
    return hashlib.blake2b(f"{url}\0{text}".encode(), digest_size=16).hexdigest()


def keys(rows: list[Row]) -> pa.Table:
    stage = Pairs()
    ids = [sample_id(url, text) for url, text, _ in rows]
    batch = pa.record_batch([pa.array(ids, pa.string()), pa.array([url for url, *_ in rows], pa.string())], stage.reads)
    return pa.Table.from_batches([stage.emit(batch)]).append_column("shard", pa.array([r[2] for r in rows], pa.int32()))


def found(stage: Pairs, rows: list[Row], index: tuple[pa.Table, ...] = ()) -> list[str | None]:
    answer: list[str | None] = stage.match(keys(rows), index)["known_pair"].to_pylist()
    return answer


def test_a_url_stays_in_one_shard_with_all_its_texts() -> None:
    rows = [("u", "x", 0), ("u", "y", 0), ("u", "x", 1), ("u", "z", 1), ("v", "x", 1)]
    owner = min((sample_id(url, text), shard) for url, text, shard in rows if url == "u")[1]
    expected = [None, None, "pair", "url", None] if owner == 0 else ["pair", "url", None, None, None]
    assert found(Pairs(), rows) == expected
    assert found(Pairs(same_url=False), rows) == [None, None, "pair", None, None]


def test_what_an_earlier_block_fetched_is_not_fetched_again() -> None:
    stage = Pairs()
    first = stage.match(keys([("u", "x", 0), ("v", "y", 0)]), ())
    later = [("u", "x", 0), ("u", "other", 0), ("w", "x", 0)]
    assert found(stage, later, (stage.kept(first),)) == ["pair", "url", None]
    assert found(Pairs(same_url=False), later, (stage.kept(first),)) == ["pair", None, None]


def test_the_same_pair_twice_in_a_shard_and_no_samples() -> None:
    assert sorted(found(Pairs(), [("u", "x", 3), ("u", "x", 3)]), key=str) == [None, "pair"]
    assert found(Pairs(), []) == []


@pytest.mark.parametrize("same_url", [True, False])
@given(data=st.data(), rows=st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("xyz"), st.integers(0, 2))))
@settings(max_examples=100)
def test_no_url_is_fetched_twice_and_none_is_lost(data: st.DataObject, rows: list[Row], same_url: bool) -> None:
    stage = Pairs(same_url=same_url)
    answer = found(stage, rows)
    shuffled = data.draw(st.permutations(range(len(rows))))
    again = found(stage, [rows[at] for at in shuffled])
    assert sorted(zip((rows[at] for at in shuffled), map(str, again), strict=True)) == sorted(
        zip(rows, map(str, answer), strict=True)
    )
    cut = data.draw(st.integers(0, len(rows)))
    first = stage.match(keys(rows[:cut]), ())
    second = found(stage, [(u, t, s + 10) for u, t, s in rows[cut:]], (stage.kept(first),))
    for kinds, shards in ((answer, rows), ([*first["known_pair"].to_pylist(), *second], moved(rows, cut))):
        kept = [row for row, kind in zip(shards, kinds, strict=True) if kind is None]
        assert len(kept) == len(set(kept))
        assert {(url, text) for url, text, _ in kept} == {(u, t) for u, t, _ in rows} or same_url
        assert {url for url, *_ in kept} == {url for url, *_ in rows}
        if same_url:
            assert len({(url, shard) for url, _, shard in kept}) == len({url for url, *_ in kept})
        pairs = {(url, text) for url, text, _ in kept}
        for (url, text, _), kind in zip(shards, kinds, strict=True):
            assert kind is None or (kind == "pair") == ((url, text) in pairs)


def moved(rows: list[Any], cut: int) -> list[Row]:
    return [*rows[:cut], *((u, t, s + 10) for u, t, s in rows[cut:])]
