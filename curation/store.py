"""The one root: a local folder or s3://bucket/prefix, the same layout on both.

One object is one commit. A local object is written beside its place and renamed; an S3 object is spooled to local
disk and sent as one upload, which S3 shows whole or not at all. A reader never sees half of anything, and a writer
that dies leaves at most a temporary file (swept after a day) or an unfinished multipart upload (aborted by the
bucket's lifecycle rule).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.errors import BadShardError, ConfigError, OutageError
from curation.receipt import RECEIPT_KEY, Receipt

# Ceph and other servers answer 411 to the chunked checksums that newer AWS SDKs send; the C++ SDK in pyarrow reads
# this when it loads
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

ROW_GROUP_BYTES = 32 << 20  # one range read on S3 of a good size, and the bound of a writer's memory
ROW_GROUP_ROWS = 1 << 16
MULTIPART_BYTES = 32 << 20
_STALE_TEMPORARY_S = 24 * 3600
_UNCOMPRESSED = {"image"}  # JPEG gains nothing from zstd
_TEMPORARY = ".tmp"


class Entry(NamedTuple):
    """One object: its key and its size in bytes."""

    key: str
    size: int


class Store:
    """Objects by key under one root. Keys use / and never start with it."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/")
        self._objects = _S3(self.root) if self.root.startswith("s3://") else _Folder(Path(self.root).absolute())

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
            with _disk(self.root):
                path.write_bytes(data)
            return self._objects.commit(path, key, if_absent)

    def write_file(self, key: str, path: Path) -> None:
        """Take a finished local file into the store (it is left where it is)."""
        if isinstance(self._objects, _S3):
            self._objects.commit(path, key, False)
            return
        with self._objects.spool() as copy:
            with _disk(self.root):
                copy.write_bytes(b"")
                with path.open("rb") as source, copy.open("wb") as target:
                    while chunk := source.read(1 << 20):
                        target.write(chunk)
            self._objects.commit(copy, key, False)

    @contextlib.contextmanager
    def spool(self, key: str) -> Iterator[Path]:
        """A path to write a new object to; it is committed under the key when the block ends without an error."""
        with self._objects.spool() as path:
            with _disk(self.root):
                yield path
            self._objects.commit(path, key, False)

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        self._objects.delete(key)

    def open_parquet(self, key: str) -> pq.ParquetFile:
        """Open a table for column and row-group reads. Raises FileNotFoundError, BadShardError if it is no Parquet."""
        try:
            return pq.ParquetFile(self._objects.open(key), pre_buffer=True)
        except pa.ArrowInvalid as err:
            raise BadShardError(f"{self.root}/{key}: expected a Parquet table, found: {err}") from err

    def read_receipt(self, key: str) -> Receipt | None:
        """Receipt of a table, or None when no table stands under the key."""
        try:
            with self.open_parquet(key) as table:
                metadata = table.metadata.metadata or {}
        except FileNotFoundError:
            return None
        if RECEIPT_KEY not in metadata:
            raise BadShardError(f"{self.root}/{key}: expected a receipt in the footer, found none")
        return Receipt.model_validate_json(metadata[RECEIPT_KEY])

    @contextlib.contextmanager
    def write_table(self, key: str, schema: pa.Schema) -> Iterator[TableWriter]:
        """Write a table row group by row group; it appears under the key when the block ends without an error."""
        with self.spool(key) as path:
            writer = TableWriter(path, schema)
            try:
                yield writer
            finally:
                writer.close()

    def local_copy(self, key: str) -> Path:
        """A local file with the content of an object whose key names its content (lists/, evalsets/): cached."""
        if isinstance(self._objects, _Folder):
            return self._objects.path(key)
        place = cache_folder() / "objects" / key
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
                file.write(self.read_bytes(key))
            os.replace(file.name, place)
        return place


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
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch with the table's own schema."""
        self.rows += batch.num_rows
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= ROW_GROUP_BYTES or self._pending_rows >= ROW_GROUP_ROWS:
            self._flush()

    def set_receipt(self, receipt: Receipt) -> None:
        """Put the receipt into the footer; call it last."""
        self._flush()
        self._writer.add_key_value_metadata({RECEIPT_KEY: receipt.model_dump_json().encode()})

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending, self._schema))
        self._pending, self._pending_bytes, self._pending_rows = [], 0, 0


def cache_folder() -> Path:
    """Where downloaded lists and assembled models are kept: $CURATION_CACHE or ~/.cache/curation."""
    return Path(os.environ.get("CURATION_CACHE") or Path.home() / ".cache" / "curation")


@contextlib.contextmanager
def _disk(root: str) -> Iterator[None]:
    """A full disk is an outage with a name, not a stack trace."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(err):
            raise OutageError(f"no space left while writing to {root}: free some and run again") from err
        raise


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        path = (self._root / key).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise ConfigError(f"key {key!r} leaves the store")
        return path

    def size(self, key: str) -> int | None:
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None

    def entries(self, prefix: str) -> Iterator[Entry]:
        folder = self._root / prefix if prefix.endswith("/") else (self._root / prefix).parent
        found = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        keys = sorted((path.relative_to(self._root).as_posix(), path) for path in found)
        for key, path in keys:
            if key.startswith(prefix) and not key.startswith(_TEMPORARY):
                yield Entry(key, path.stat().st_size)

    def read(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def open(self, key: str) -> pa.NativeFile:
        return pa.OSFile(os.fspath(self.path(key)))

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        folder = self._root / _TEMPORARY
        with _disk(str(self._root)):
            folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with _disk(str(self._root)):
            handle, name = tempfile.mkstemp(dir=folder)
            os.close(handle)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def commit(self, path: Path, key: str, if_absent: bool) -> bool:
        target = self.path(key)
        with _disk(str(self._root)):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)  # mkstemp's 0600 would hide the object from other users of the store
            target.parent.mkdir(parents=True, exist_ok=True)
            if not if_absent:
                os.replace(path, target)
            else:
                try:
                    os.link(path, target)  # atomic, and refused when the name is taken
                except FileExistsError:
                    return False
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name must survive a power cut as well as the bytes
            finally:
                os.close(folder)
        return True

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)


class _S3:
    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"store root {root!r}: name a bucket, as in s3://bucket/prefix")
        self._root = root
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        retries = {"mode": "standard", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "8"))}
        checksums = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        return boto3.session.Session().client(
            "s3",
            config=Config(retries=retries, connect_timeout=10, read_timeout=60, **checksums),  # type: ignore[arg-type]
        )

    @cached_property
    def _files(self) -> pafs.S3FileSystem:
        import boto3

        session = boto3.session.Session()
        credentials = session.get_credentials()
        keys: dict[str, Any] = {"anonymous": True}
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            keys = {
                "access_key": frozen.access_key,
                "secret_key": frozen.secret_key,
                "session_token": frozen.token,
            }
        scheme, _, host = self._client.meta.endpoint_url.partition("://")
        return pafs.S3FileSystem(
            region=self._client.meta.region_name or "us-east-1",
            endpoint_override=host,
            scheme=scheme,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=8),
            connect_timeout=10,
            request_timeout=60,
            **keys,
        )

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self._root}/{key}"
        try:
            yield
        except ClientError as err:
            status = err.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = err.response.get("Error", {}).get("Code", "")
            if code == "NoSuchBucket":
                raise ConfigError(f"store root {self._root}: no bucket {self._bucket!r}; create it first") from err
            if status == 404:
                raise FileNotFoundError(where) from err
            if status in (401, 403):
                raise ConfigError(f"{where}: S3 refused ({code}): check the credentials and the bucket policy") from err
            raise OutageError(f"{where}: S3 answered {status} {code}") from err
        except BotoCoreError as err:
            if "credentials" in str(err).lower():
                raise ConfigError(f"{where}: no S3 credentials found: set AWS_ACCESS_KEY_ID or a profile") from err
            raise OutageError(f"{where}: S3 can't be reached: {err}") from err

    def size(self, key: str) -> int | None:
        try:
            with self._explained(key):
                return int(self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)["ContentLength"])
        except FileNotFoundError:
            return None

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for found in page.get("Contents", []):
                    yield Entry(found["Key"][len(self._prefix) :], found["Size"])

    def read(self, key: str) -> bytes:
        with self._explained(key):
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
            return body

    def open(self, key: str) -> pa.NativeFile:
        try:
            return self._files.open_input_file(f"{self._bucket}/{self._prefix}{key}")
        except FileNotFoundError:
            raise
        except OSError as err:
            self.size(key)  # asks again through boto3, whose errors say what to do
            raise OutageError(f"{self._root}/{key}: {err}") from err

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        with _disk(tempfile.gettempdir()):
            handle, name = tempfile.mkstemp(prefix="curation-")
            os.close(handle)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def commit(self, path: Path, key: str, if_absent: bool) -> bool:
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        with self._explained(key):
            try:
                if if_absent:
                    with path.open("rb") as body:
                        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, IfNoneMatch="*")
                else:
                    config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
                    self._client.upload_file(os.fspath(path), self._bucket, self._prefix + key, Config=config)
            except S3UploadFailedError as err:
                if isinstance(err.__context__, ClientError):
                    raise err.__context__ from err
                raise OutageError(f"{self._root}/{key}: upload failed: {err}") from err
            except ClientError as err:
                status = err.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if if_absent and status in (409, 412):
                    return False
                raise
        return True

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind a day ago or more."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_TEMPORARY_S:
                path.unlink()
