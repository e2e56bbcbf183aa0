"""The one root: a local folder or s3://bucket/prefix, the same layout on both.

One object is one commit. A local object is written beside its place and renamed; an S3 object is spooled to local
disk and sent as one upload, which S3 shows whole or not at all. A reader never sees half of anything, and a writer
that dies leaves at most a temporary file (swept after a day) or an unfinished multipart upload (aborted by the
bucket's lifecycle rule).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

# Ceph and other servers answer 411 to the chunked checksums that newer AWS SDKs send; the C++ SDK in pyarrow reads
# this when it loads
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

from curation.errors import BadShardError, ConfigError, OutageError
from curation.objects import Entry as Entry
from curation.objects import checked_key, full_disk_named, temporary_file, writing
from curation.objects.folder import Folder
from curation.objects.s3 import S3
from curation.receipt import RECEIPT_KEY, Receipt, digest

ROW_GROUP_BYTES = 32 << 20  # one range read on S3 of a good size, and the bound of a writer's memory
ROW_GROUP_ROWS = 1 << 16
_UNCOMPRESSED = {"image"}  # JPEG gains nothing from zstd


class Store:
    """Objects by key under one root. Keys are names joined by single slashes, the same on a folder and on S3.

    root     a folder, or s3://bucket/prefix
    raises   ConfigError for a bad key or root, missing or refused credentials, a missing bucket;
             OutageError for a full disk or a server that stays ill
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        self.root = text.rstrip("/") or text[:1]
        scheme = re.match(r"(\w+)://", text)
        if not text or (scheme and scheme[1] != "s3") or self.root == "s3:":
            raise ConfigError(f"store root {text!r}: expected a folder or s3://bucket/prefix")
        self._objects: Folder | S3 = S3(self.root) if scheme else Folder(Path(self.root).absolute())

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def exists(self, key: str) -> bool:
        """Whether an object stands under the key."""
        return self._objects.size(key) is not None

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key starts with the prefix, in order of key."""
        return self._objects.entries(prefix)

    def read_bytes(self, key: str) -> bytes:
        """Whole object. Raises FileNotFoundError."""
        return self._objects.read(key)

    def write_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write an object whole; with if_absent, False and nothing written when one stands there already."""
        with self._objects.spool() as path:
            with writing(path.parent):
                path.write_bytes(data)
            return self._objects.commit(path, key, if_absent)

    def write_file(self, key: str, path: Path) -> None:
        """Take a finished local file into the store (it is left where it is)."""
        if isinstance(self._objects, S3):
            self._objects.commit(path, key, False)
            return
        with self.spool(key) as copy:
            shutil.copyfile(path, copy)

    @contextlib.contextmanager
    def spool(self, key: str) -> Iterator[Path]:
        """A path to write a new object to; it is committed under the key when the block ends without an error."""
        with self._objects.spool() as path:
            with full_disk_named(path.parent):
                yield path
            self._objects.commit(path, key, False)

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        self._objects.delete(key)

    def open_stream(self, key: str) -> pa.NativeFile:
        """Open an object for reads in pieces or at any offset; a context manager. Raises FileNotFoundError."""
        return self._objects.open(key)

    def open_parquet(self, key: str) -> pq.ParquetFile:
        """Open a table for column and row-group reads. Raises FileNotFoundError, BadShardError if it is no Parquet."""
        file = self._objects.open(key)
        with self._reading(key):
            try:
                return Table(file, lambda: self._reading(key))
            except BaseException:  # an interrupt too: who asked gets no file to close
                file.close()
                raise

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Name what went wrong inside a table: the table (no retry helps) or the way to it (one may)."""
        where = f"{self.root}/{key}"
        try:
            yield
        except pa.ArrowInvalid as err:
            raise BadShardError(f"{where}: expected a Parquet table, found: {err}") from err
        except FileNotFoundError as err:
            raise BadShardError(f"{where}: the table was deleted while it was read") from err
        except OSError as err:
            # Arrow has no class of its own for a table that is broken inside; a server's answers carry "AWS Error"
            if isinstance(self._objects, S3) and "AWS Error" in str(err):
                raise self._objects.read_failed(key, err) from err
            if err.errno is None:
                raise BadShardError(f"{where}: expected a Parquet table, found: {err}") from err
            raise OutageError(f"{where}: can't be read: {err}") from err

    def read_receipt(self, key: str) -> Receipt | None:
        """Receipt of a table, or None when no table stands under the key."""
        try:
            with self.open_parquet(key) as table:
                metadata = table.metadata.metadata or {}
        except FileNotFoundError:
            return None
        if RECEIPT_KEY not in metadata:
            raise BadShardError(f"{self.root}/{key}: expected a receipt in the footer, found none")
        try:
            return Receipt.model_validate_json(metadata[RECEIPT_KEY])
        except ValidationError as err:
            raise BadShardError(f"{self.root}/{key}: the receipt in the footer can't be read: {err}") from err

    @contextlib.contextmanager
    def write_table(self, key: str, schema: pa.Schema) -> Iterator[TableWriter]:
        """Write a table row group by row group; it appears under the key when the block ends without an error."""
        with self.spool(key) as path:
            writer = TableWriter(path, schema)
            try:
                yield writer
            except BaseException:  # an interrupt too: what is half written is not closed, which would show it
                writer.discard()
                raise
            writer.close()

    def local_copy(self, key: str) -> Path:
        """A local file with the content of an object whose key names its content (lists/, evalsets/): cached."""
        if isinstance(self._objects, Folder):
            return self._objects.local(key)
        place = cache_folder() / "objects" / digest(self._objects.identity)[:12] / checked_key(key)
        if not place.exists():
            with writing(place.parent):
                place.parent.mkdir(parents=True, exist_ok=True)
                with temporary_file(place.parent, ".tmp-") as path:
                    self._objects.download(key, path)
                    path.rename(place)
        return place


class Table(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """A Parquet table of the store; its reads raise the project's errors."""

    def __init__(self, file: pa.NativeFile, reading: Callable[[], AbstractContextManager[None]]) -> None:
        self._reading = reading
        super().__init__(file, pre_buffer=True, page_checksum_verification=True)

    def read(self, *args: Any, **kwargs: Any) -> pa.Table:
        """As ParquetFile.read."""
        with self._reading():
            return super().read(*args, **kwargs)

    def read_row_group(self, *args: Any, **kwargs: Any) -> pa.Table:
        """As ParquetFile.read_row_group."""
        with self._reading():
            return super().read_row_group(*args, **kwargs)

    def read_row_groups(self, *args: Any, **kwargs: Any) -> pa.Table:
        """As ParquetFile.read_row_groups."""
        with self._reading():
            return super().read_row_groups(*args, **kwargs)

    def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        """As ParquetFile.iter_batches."""
        batches = super().iter_batches(*args, **kwargs)
        while True:
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class TableWriter:
    """Collects batches into row groups of bounded size; holds at most one row group in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._pending_rows = 0
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression={f.name: "none" if f.name in _UNCOMPRESSED else "zstd" for f in schema},
            use_dictionary=[f.name for f in schema if pa.types.is_string(f.type)],
            write_statistics=[f.name for f in schema if f.name not in _UNCOMPRESSED],
            write_page_index=True,
            write_page_checksum=True,  # zstd has none here: a rotten page would decode to wrong numbers
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch with the table's own schema."""
        share = min(1.0, ROW_GROUP_BYTES / max(batch.nbytes, 1))
        step = min(ROW_GROUP_ROWS, max(1, int(batch.num_rows * share)))  # a large batch fills several row groups
        for start in range(0, batch.num_rows, step):
            self._append(batch.slice(start, step))

    def _append(self, batch: pa.RecordBatch) -> None:
        if self._pending_bytes + batch.nbytes > ROW_GROUP_BYTES or self._pending_rows >= ROW_GROUP_ROWS:
            self._flush()
        self.rows += batch.num_rows
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes

    def set_receipt(self, receipt: Receipt) -> None:
        """Put the receipt into the footer; call it last."""
        self._flush()
        self._writer.add_key_value_metadata({RECEIPT_KEY: receipt.model_dump_json().encode()})

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def discard(self) -> None:
        """Let go of the file without finishing it: what is written so far will not be looked at."""
        self._pending = []
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending, self._schema))
        self._pending, self._pending_bytes, self._pending_rows = [], 0, 0


def cache_folder() -> Path:
    """Where downloaded lists and assembled models are kept: $CURATION_CACHE or ~/.cache/curation."""
    return Path(os.environ.get("CURATION_CACHE") or Path.home() / ".cache" / "curation")
