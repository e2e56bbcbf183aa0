"""The store keeps its promises alike on a folder, on moto's S3 and on Ceph's: one object is one commit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation.errors import BadShardError, ConfigError
from curation.receipt import Receipt
from curation.store import Store
from tests.s3.servers import moto_server, radosgw_server, use

__all__ = ["moto_server", "radosgw_server"]

RECEIPT = Receipt(
    object_id="1" * 32,
    stage="extract",
    stage_version=1,
    fingerprint="2" * 32,
    recipe="demo",
    dump="d",
    shard=0,
    rows=3,
    measured=2,
    dropped={"too_small": 1},
)
BAD_KEYS = [
    *("", "/a", "a/", "a//b", ".", "./a", "a/./b", "..", "../a", "a/../../b", "a/..", ".tmp/a"),
    *("a\0b", "a\nb", "\ud800", "x" * 256, "x/" * 600 + "x"),
]


@pytest.fixture(
    params=["folder", pytest.param("moto", marks=pytest.mark.s3), pytest.param("radosgw", marks=pytest.mark.s3)]
)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(tmp_path / "store")
        return
    server = request.getfixturevalue(f"{request.param}_server")
    use(server.url, monkeypatch)
    monkeypatch.setenv("CURATION_CACHE", str(tmp_path / "cache"))
    yield Store(server.root())


def table(rows: int = 3) -> pa.Table:
    return pa.table({"url": [f"http://a/{n}" for n in range(rows)], "image": [b"x" * 10] * rows})


def test_an_object_is_written_read_replaced_and_deleted(store: Store) -> None:
    assert not store.exists("a/b")
    assert store.write_bytes("a/b", b"one")
    assert store.write_bytes("a/b", b"two")
    assert store.read_bytes("a/b") == b"two"
    assert store.exists("a/b")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    for read in (store.read_bytes, store.open_parquet, store.local_copy):
        with pytest.raises(FileNotFoundError):
            read("a/b")


def test_a_folder_on_the_way_is_no_object(store: Store) -> None:
    store.write_bytes("a/b/c", b"1")
    assert not store.exists("a/b")
    assert not store.exists("a/b/c/d")
    store.delete("a/b")
    for read in (store.read_bytes, store.open_parquet, store.local_copy):
        with pytest.raises(FileNotFoundError):
            read("a/b")
    assert store.read_bytes("a/b/c") == b"1"


def test_objects_are_listed_by_prefix_in_order(store: Store) -> None:
    keys = ["d/a/2", "d/a/10", "d/a-b/1", "d/a.x", "e", "d/Ü/ü &+%41?#", "d/\U0001f600", "d/\uffff"]
    for key in keys:
        store.write_bytes(key, key.encode())
    assert [e.key for e in store.entries("")] == sorted(keys)
    assert [tuple(e) for e in store.entries("d/a/")] == [("d/a/10", 6), ("d/a/2", 5)]
    assert [e.key for e in store.entries("d/a")] == ["d/a-b/1", "d/a.x", "d/a/10", "d/a/2"]
    assert list(store.entries("nothing/here/")) == []
    for key in keys:
        assert store.read_bytes(key) == key.encode()


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key)[:20])
def test_keys_that_mean_something_else_elsewhere_are_refused(tmp_path: Path, key: str) -> None:
    for store in (Store(tmp_path / "store"), Store("s3://bucket/prefix")):  # refused before any connection
        for use_key in (store.exists, store.read_bytes, store.delete, store.open_parquet, store.local_copy):
            with pytest.raises(ConfigError):
                use_key(key)
        with pytest.raises(ConfigError):
            store.write_bytes(key, b"")
        if key and key != "a/":
            with pytest.raises(ConfigError):
                list(store.entries(key))
    assert not list(tmp_path.glob("[!s]*"))


@pytest.mark.parametrize("root", ["", "s3://", "s3:///x", "s3://bucket/a/../b", "gs://bucket/x", "file:///tmp"])
def test_roots_that_are_none_are_refused(root: str) -> None:
    with pytest.raises(ConfigError):
        Store(root)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(key=st.lists(st.text(max_size=8), max_size=4).map("/".join) | st.text(alphabet="./a\\~%", max_size=8))
@example("a/..b/c..")
@example("~/x")
def test_any_key_is_refused_or_round_trips_below_the_root(tmp_path: Path, key: str) -> None:
    store = Store(tmp_path / "root" / "store")
    try:
        store.write_bytes(key, b"body")
    except ConfigError:
        assert not list(store.entries(""))
    else:
        assert [tuple(e) for e in store.entries("")] == [(key, 4)]
        assert store.read_bytes(key) == b"body"
        store.delete(key)
        for left in sorted((tmp_path / "root" / "store").rglob("*"), reverse=True):
            if left.is_dir() and left.name != ".tmp":
                left.rmdir()  # else "a" is refused after "a/b": a folder stands there
    assert [path.name for path in tmp_path.iterdir()] in ([], ["root"])


def test_an_error_in_the_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.spool("a") as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), store.write_table("b", table().schema) as writer:  # noqa: PT012
        writer.write(table().to_batches()[0])
        raise ZeroDivisionError
    assert list(store.entries("")) == []


def test_an_old_object_stands_until_the_new_one_is_whole(store: Store) -> None:
    store.write_bytes("a", b"old")
    with pytest.raises(ZeroDivisionError), store.spool("a") as path:  # noqa: PT012
        path.write_bytes(b"new")
        assert store.read_bytes("a") == b"old"
        raise ZeroDivisionError
    assert store.read_bytes("a") == b"old"


def test_a_file_is_taken_in_and_left_where_it_is(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    store.write_file("a", path)
    assert store.read_bytes("a") == path.read_bytes()
    copy = store.local_copy("a")
    assert copy.read_bytes() == path.read_bytes()
    assert store.local_copy("a") == copy


def test_if_absent_writes_once(store: Store) -> None:
    assert store.write_bytes("a", b"first", if_absent=True)
    assert not store.write_bytes("a", b"second", if_absent=True)
    assert store.read_bytes("a") == b"first"


_RACER = """
import sys
from curation.store import Store
store, me = Store(sys.argv[1]), sys.argv[2]
store.exists("x")
print("ready", flush=True)
sys.stdin.readline()
print(*(n for n in range(30) if store.write_bytes(f"race/{n}", me.encode() * 1000, if_absent=True)))
"""


def test_of_two_processes_one_wins_every_key(store: Store) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, store.root, me], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for me in "ab"
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = [set(map(int, racer.communicate(timeout=60)[0].split())) for racer in racers]
    assert wins[0] | wins[1] == set(range(30))
    assert not wins[0] & wins[1]
    for me, won in zip("ab", wins, strict=True):
        for n in won:
            assert store.read_bytes(f"race/{n}") == me.encode() * 1000


def test_a_table_and_its_receipt_round_trip(store: Store) -> None:
    assert store.read_receipt(RECEIPT.key) is None
    with store.write_table(RECEIPT.key, table().schema) as writer:
        for batch in table().to_batches():
            writer.write(batch)
        writer.set_receipt(RECEIPT)
        assert store.read_receipt(RECEIPT.key) is None  # nothing half visible
    assert store.read_receipt(RECEIPT.key) == RECEIPT
    with store.open_parquet(RECEIPT.key) as found:
        assert found.read() == table()
        assert found.read(columns=["url"]).column_names == ["url"]
        assert pa.Table.from_batches(found.iter_batches(batch_size=2)) == table()


def test_an_empty_table_round_trips(store: Store) -> None:
    with store.write_table("a", table().schema) as writer:
        writer.set_receipt(RECEIPT)
    with store.open_parquet("a") as found:
        assert found.read().num_rows == 0
    assert store.read_receipt("a") == RECEIPT


def test_what_is_no_table_is_a_bad_shard(store: Store, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t", compression="none")
    good = (tmp_path / "t").read_bytes()
    for data in (b"", b"text", good[:-20], good[20:], good[:-60] + b"\xff" * 30 + good[-30:]):
        store.write_bytes("bad", data)
        with pytest.raises(BadShardError, match="bad: expected a Parquet table"), store.open_parquet("bad") as found:
            found.read()
    store.write_bytes("bad", good)
    with pytest.raises(BadShardError, match="expected a receipt"):
        store.read_receipt("bad")
    pq.write_table(table().replace_schema_metadata({"curation.receipt": '{"stage": 1}'}), tmp_path / "t")
    store.write_file("bad", tmp_path / "t")
    with pytest.raises(BadShardError, match="can't be read"):
        store.read_receipt("bad")


def test_a_page_that_rots_is_a_bad_shard(store: Store) -> None:
    numbers = pa.table({"n": list(range(100_000))})
    with store.write_table("bad", numbers.schema) as writer:
        for batch in numbers.to_batches():
            writer.write(batch)
    rotten = bytearray(store.read_bytes("bad"))
    rotten[1000:3000] = bytes(2000)
    store.write_bytes("bad", bytes(rotten))
    with store.open_parquet("bad") as found, pytest.raises(BadShardError, match="bad: expected a Parquet table"):
        list(found.iter_batches())
