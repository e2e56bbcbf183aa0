"""What only a network and a server can do to the store: lose, refuse, stall, break off, fill pages of a listing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import ConfigError, CurationError, OutageError
from curation.objects.s3 import MULTIPART_BYTES
from curation.store import Store
from tests.s3.fault_proxy import Action, FaultProxy
from tests.s3.servers import Server, moto_server, radosgw_server, until, use

__all__ = ["moto_server", "radosgw_server"]
pytestmark = pytest.mark.s3
_BOUND_S = 60  # of one call of the store against a server that stays ill: 3 tries, 1 s of silence each, and back-off
# what the proxy does alone is no different before another server
on_moto = pytest.mark.parametrize("server", ["moto"], indirect=True)


@pytest.fixture(params=["moto", "radosgw"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    use(found.url, monkeypatch)
    return found


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(server.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        monkeypatch.setenv("CURATION_S3_TIMEOUT_S", "1")
        yield proxy


def put_table(store: Store, key: str, groups: int = 3) -> pa.Table:
    """A table of several row groups, of 100 KB of pictures each."""
    group = pa.table({"n": list(range(10)), "image": [os.urandom(10_000) for _ in range(10)]})
    with store.spool(key) as path, pq.ParquetWriter(path, group.schema, compression="none") as writer:
        for _ in range(groups):
            writer.write_table(group)
    return pa.concat_tables([group] * groups)


def test_an_object_of_several_parts_is_one_object(server: Server, tmp_path: Path) -> None:
    store = Store(server.root())
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 70)
    store.write_file("large", path)
    assert store.read_bytes("large") == path.read_bytes()
    head = server.client.head_object(Bucket=server.bucket, Key=store.root.split("/", 3)[3] + "/large")
    assert head["ETag"].strip('"').endswith("-3")  # of 32 MiB
    assert [tuple(e) for e in store.entries("")] == [("large", 70 << 20)]


def test_a_listing_of_more_than_one_page_is_whole(server: Server, moto_server: Server) -> None:
    store, prefix = Store(root := server.root()), root.split("/", 3)[3]
    keys = [f"a/{n:05d}" for n in range(1001)]
    if server is moto_server:  # behind its back: its PUT takes 15 ms
        from moto.s3.models import s3_backends

        bucket = s3_backends["123456789012"]["aws"]
        for key in keys:
            bucket.put_object(server.bucket, f"{prefix}/{key}", b"1")
    else:
        with ThreadPoolExecutor(8) as pool:
            put = server.client.put_object
            list(pool.map(lambda key: put(Bucket=server.bucket, Key=f"{prefix}/{key}", Body=b"1"), keys))
    assert [entry.key for entry in store.entries("a/")] == keys


def test_a_missing_bucket_is_no_empty_one(server: Server) -> None:
    store = Store("s3://curation-no-such-bucket/x")
    for call in (
        lambda: store.exists("a"),
        lambda: store.read_bytes("a"),
        lambda: store.write_bytes("a", b""),
        lambda: store.write_bytes("a", b"", if_absent=True),
        lambda: list(store.entries("")),
        lambda: store.open_parquet("a"),
        lambda: store.read_receipt("a"),
    ):
        with pytest.raises(ConfigError, match="no bucket 'curation-no-such-bucket'"):
            call()


def test_missing_credentials_are_a_setting_to_mend(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = Store(server.root())
    for call in (store.exists, store.read_bytes, store.open_parquet, store.delete):
        with pytest.raises(ConfigError, match="no S3 credentials found"):
            call("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        Store(server.root()).exists("a")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_refused(radosgw_server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(radosgw_server.url, monkeypatch)
    root = radosgw_server.root()
    Store(root).write_bytes("a", b"1")
    monkeypatch.setenv(name, "wrong")
    store = Store(root)
    for call in (store.exists, store.read_bytes, store.open_parquet, store.delete, lambda k: list(store.entries(k))):
        with pytest.raises(ConfigError, match="check the credentials"):
            call("a")
    with pytest.raises(ConfigError, match="check the credentials"):
        store.write_bytes("b", b"")


def test_an_endpoint_that_is_none_is_a_setting_to_mend(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no url")
    with pytest.raises(ConfigError):
        Store("s3://bucket/x").exists("a")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(ConfigError, match="AWS_MAX_ATTEMPTS"):
        Store("s3://bucket/x")


def test_columns_are_read_without_the_pictures(proxy: FaultProxy, server: Server) -> None:
    store = Store(server.root())
    group = pa.record_batch({"n": list(range(100)), "image": [os.urandom(50_000) for _ in range(100)]})
    with store.write_table("t", group.schema) as writer:
        for _ in range(12):
            writer.write(group)
    proxy.moved = 0
    with store.open_parquet("t") as found:
        assert found.metadata.num_row_groups == 2
        assert found.read(columns=["n"]).num_rows == 1200
    assert proxy.moved < 1 << 20  # of 60 MB
    proxy.moved = 0
    with store.open_parquet("t") as found:
        found.read_row_group(0)
    assert proxy.moved < 36 << 20  # one group, not the table


def calls(store: Store) -> dict[str, object]:
    """What a stage does to a store, on objects that stand there."""

    def read_table() -> pa.Table:
        with store.open_parquet("t") as found:
            return found.read()

    return {
        "head": lambda: store.exists("a"),
        "read": lambda: store.read_bytes("a"),
        "list": lambda: [e.key for e in store.entries("")],
        "write": lambda: store.write_bytes("b", b"2"),
        "create": lambda: store.write_bytes(f"c{time.monotonic_ns()}", b"3", if_absent=True),
        "table": read_table,
    }


NAMES = ["head", "read", "list", "write", "create", "table"]


@pytest.mark.parametrize("action", ["reset", 503, 500, "lose", "cut"])
def test_what_heals_is_tried_again(proxy: FaultProxy, server: Server, action: Action) -> None:
    store = Store(server.root())
    store.write_bytes("a", b"1" * 1000)
    put_table(store, "t")
    expected = {name: call() for name, call in calls(store).items() if name != "list"}
    for name, call in calls(store).items():
        proxy.fail(action, times=1)
        found = call()
        if name != "list":
            assert found == expected[name], name
        else:
            assert {"a", "b", "t"} <= set(found)


@on_moto
@pytest.mark.parametrize(
    ("action", "name"),
    [*((action, name) for action in ("reset", 503) for name in NAMES), ("stall", "write"), ("stall", "table")],
)
def test_what_does_not_heal_is_an_outage_in_bounded_time(
    proxy: FaultProxy, server: Server, monkeypatch: pytest.MonkeyPatch, action: Action, name: str
) -> None:
    store = Store(server.root())
    store.write_bytes("a", b"1")
    put_table(store, "t")
    proxy.fail(action)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2" if action != "stall" else "3")
    ill = Store(store.root)
    start = time.monotonic()
    with pytest.raises(OutageError, match=r"s3://curation-test/\w+/store"):
        calls(ill)[name]()
    assert time.monotonic() - start < _BOUND_S
    proxy.fail("pass")
    calls(store)[name]()


@on_moto
@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_is_a_setting_and_not_tried_again(proxy: FaultProxy, server: Server, name: str) -> None:
    store = Store(server.root())
    store.write_bytes("a", b"1")
    put_table(store, "t")
    proxy.requests.clear()
    proxy.fail(403)
    with pytest.raises(ConfigError, match="check the credentials and the bucket policy"):
        calls(store)[name]()
    assert len(proxy.requests) == 1


@on_moto
@pytest.mark.parametrize(("action", "error"), [("reset", OutageError), (503, OutageError), (403, ConfigError)])
def test_a_table_whose_server_fails_half_way_says_so(
    proxy: FaultProxy, server: Server, action: Action, error: type[CurationError]
) -> None:
    store = Store(server.root())
    put_table(store, "t", groups=20)
    with store.open_parquet("t") as found:
        batches = found.iter_batches(batch_size=10)
        proxy.fail(action, method="GET")
        start = time.monotonic()
        with pytest.raises(error, match=r"s3://curation-test/\w+/store/t"):
            list(batches)
        assert time.monotonic() - start < _BOUND_S


def test_a_created_object_whose_answer_was_lost_is_known_as_ours(proxy: FaultProxy, server: Server) -> None:
    store = Store(server.root())
    proxy.fail("lose", times=1, method="PUT")
    assert store.write_bytes("a", b"ours", if_absent=True)
    assert sum(request.startswith("PUT") for request in proxy.requests) == 2
    proxy.fail("lose", times=1, method="PUT")
    assert not store.write_bytes("a", b"ours", if_absent=True)  # equal bytes do not make it ours


def test_a_server_that_is_gone_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(("127.0.0.1", 9)) as gone:
        use(gone.url, monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for call in (Store("s3://bucket/x").exists, Store("s3://bucket/x").open_parquet):
        with pytest.raises(OutageError, match="s3://bucket/x/a"):
            call("a")


_UPLOAD = """
import sys
from pathlib import Path
from curation.store import Store
Store(sys.argv[1]).write_file("large", Path(sys.argv[2]))
"""


def test_a_writer_killed_between_parts_leaves_nothing_visible(
    proxy: FaultProxy, server: Server, tmp_path: Path
) -> None:
    store = Store(server.root())
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * MULTIPART_BYTES))
    proxy.upload_bytes_per_s = 100e6
    proxy.fail("stall", method="PUT", path="partNumber=3")
    with subprocess.Popen([sys.executable, "-c", _UPLOAD, store.root, path]) as writer:
        try:
            sent = "PUT", "partNumber=3"
            assert until(30, lambda: any(all(word in request for word in sent) for request in proxy.requests))
            time.sleep(0.3)
        finally:
            writer.send_signal(signal.SIGKILL)
    proxy.fail("pass")
    assert not store.exists("large")
    assert list(store.entries("")) == []
    store.write_bytes("large", b"whole")
    assert store.read_bytes("large") == b"whole"


def test_an_upload_that_fails_is_an_outage_and_its_parts_are_dropped(
    proxy: FaultProxy, server: Server, tmp_path: Path
) -> None:
    store = Store(server.root())
    (tmp_path / "large").write_bytes(bytes(2 * MULTIPART_BYTES))
    proxy.fail(503, method="PUT", path="partNumber=2")
    with pytest.raises(OutageError, match="large"):
        store.write_file("large", tmp_path / "large")
    assert not store.exists("large")
    uploads = server.client.list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    assert not [upload for upload in uploads if store.root.split("/")[3] in upload["Key"]]
