"""The store on a local disk: killed writers, full disks, leftovers, and the memory a large table takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from curation.errors import ConfigError, OutageError
from curation.store import ROW_GROUP_BYTES, Store
from tests.s3.servers import until

_DAY_S = 24 * 3600


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"NO REAL FULL DISK: mounting a tmpfs needs root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


_HALF = """
import os, signal, sys
import pyarrow as pa
from curation.store import Store
store = Store(sys.argv[1])
rows = pa.record_batch({"n": list(range(200_000))})
with store.write_table("table", rows.schema) as writer, store.spool("bytes") as path:
    path.write_bytes(b"half")
    writer.write(rows)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_nothing_visible_and_its_files_are_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("bytes", b"old")
    assert run(_HALF, tmp_path).returncode == -signal.SIGKILL
    assert [entry.key for entry in store.entries("")] == ["bytes"]
    assert store.read_bytes("bytes") == b"old"
    left = sorted((tmp_path / ".tmp").iterdir())
    assert len(left) == 2
    store.write_bytes("a", b"")  # young files may be another writer's
    assert sorted((tmp_path / ".tmp").iterdir()) == left
    for path in left:
        os.utime(path, (path.stat().st_mtime - _DAY_S - 60,) * 2)
    store.write_bytes("a", b"")
    assert not list((tmp_path / ".tmp").iterdir())


_WRITER = """
import sys
from curation.store import Store
store = Store(sys.argv[1])
for n in range(10**9):
    store.write_bytes("object", bytes([n % 256]) * 500_000)
"""


def test_a_reader_sees_whole_objects_while_a_writer_is_killed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path]) as writer:
        assert until(30, lambda: store.exists("object"))
        for _ in range(100):
            data = store.read_bytes("object")
            assert len(data) == 500_000
            assert len(set(data)) == 1
        writer.kill()
    data = store.read_bytes("object")
    assert len(data) == 500_000
    assert len(set(data)) == 1


def big_batches() -> Iterator[pa.RecordBatch]:
    for _ in range(4):
        yield pa.record_batch({"image": [os.urandom(500_000) for _ in range(20)]})


def write_big_table(store: Store) -> None:
    with store.write_table("table", next(big_batches()).schema) as writer:
        for batch in big_batches():
            writer.write(batch)


def test_a_full_disk_is_an_outage_and_nothing_shows(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "store")
    store.write_bytes("old", b"x" * 1000)
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    with pytest.raises(OutageError, match=r"no space left while writing to .*store.*free some"):
        store.write_bytes("bytes", bytes(8 << 20))
    with pytest.raises(OutageError, match="no space left"):
        store.write_bytes("bytes", bytes(8 << 20), if_absent=True)
    with pytest.raises(OutageError, match="no space left"):
        store.write_file("file", tmp_path / "large")
    with pytest.raises(OutageError, match="no space left"):
        write_big_table(store)
    assert [entry.key for entry in store.entries("")] == ["old"]
    assert not list((small_disk / "store" / ".tmp").iterdir())
    assert store.write_bytes("new", b"x" * 1000)  # and the space is free again


def test_a_disk_full_of_names_is_an_outage(tmp_path: Path) -> None:
    place = tmp_path / "few"
    place.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", "nr_inodes=8", "tmpfs", place]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("NO REAL FULL DISK: mounting a tmpfs needs root")
    try:
        with pytest.raises(OutageError, match="no space left"):  # noqa: PT012
            for n in range(20):
                Store(place).write_bytes(f"{n}/{n}", b"")
    finally:
        subprocess.run(["umount", "-l", place], check=True)


_LIMITED = """
import resource, sys
from curation.errors import OutageError
from curation.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
store = Store(sys.argv[1])
try:
    store.write_bytes("a", bytes(2 << 20))
except OutageError as err:
    print(err, list(store.entries("")))
"""


def test_a_limit_on_file_size_is_an_outage(tmp_path: Path) -> None:
    done = run(_LIMITED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no space left while writing to" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_a_root_that_can_not_be_one_is_a_setting_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't write to"):
        Store(tmp_path / "file").write_bytes("a", b"")
    with pytest.raises(ConfigError, match="can't write to"):
        Store(tmp_path / "file" / "x").write_bytes("a", b"")


def test_an_object_can_not_stand_where_a_folder_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("a/b", b"1")
    for if_absent in (False, True):
        with pytest.raises(ConfigError, match="can't write to"):
            store.write_bytes("a/b/c", b"2", if_absent=if_absent)
    with pytest.raises(ConfigError, match="can't write to"):
        store.write_bytes("a", b"2")
    assert [entry.key for entry in store.entries("")] == ["a/b"]


def test_a_link_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ConfigError, match="leaves the store"):
        Store(tmp_path / "store").write_bytes("link/a", b"")
    assert not list((tmp_path / "out").iterdir())


def test_objects_are_readable_by_other_users(tmp_path: Path) -> None:
    Store(tmp_path).write_bytes("a", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_large_batch_becomes_several_row_groups(tmp_path: Path) -> None:
    store = Store(tmp_path)
    batch = pa.record_batch({"image": [bytes(1 << 20)] * 100, "n": list(range(100))})
    with store.write_table("a", batch.schema) as writer:
        writer.write(batch)
    assert writer.rows == 100
    with store.open_parquet("a") as found:
        assert found.metadata.num_row_groups == 4
        # the bound holds for every group, not on average
        assert max(found.metadata.row_group(n).total_byte_size for n in range(4)) <= ROW_GROUP_BYTES
        assert found.read(columns=["n"])["n"].to_pylist() == list(range(100))


_LARGE = """
import resource, sys
import numpy as np
import pyarrow as pa
from curation.store import Store
rng = np.random.default_rng(0)
pictures = [rng.bytes(100_000) for _ in range(20)]
batch = lambda: pa.record_batch({"image": pictures, "n": range(20)})
store, megabytes = Store(sys.argv[1]), int(sys.argv[2])
with store.write_table("warm", batch().schema) as writer:
    for _ in range(40):
        writer.write(batch())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with store.write_table("large", batch().schema) as writer:
    for _ in range(megabytes // 2):
        writer.write(batch())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_is_bounded_by_the_row_group_not_by_the_table(tmp_path: Path) -> None:
    """1 GB; the peak after the first 80 MB grows by less than two row groups."""
    done = run(_LARGE, tmp_path, 1000)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "large").stat().st_size > 990e6
    assert int(done.stdout) < 2 * ROW_GROUP_BYTES
    (tmp_path / "large").unlink()
