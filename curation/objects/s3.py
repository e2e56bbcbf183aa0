"""Objects on an S3-compatible server: spooled to local disk, sent as one upload, which S3 shows whole or not at all.

boto3 writes, lists and reads whole objects; pyarrow reads ranges of tables. Both give up on a dead server after
S3_ATTEMPTS tries of at most S3_TIMEOUT_S of silence each, so that a task fails while somebody still watches it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs

from curation.errors import ConfigError, OutageError
from curation.objects import Entry, checked_key, checked_prefix, temporary_file

MULTIPART_BYTES = 32 << 20
S3_ATTEMPTS = 5  # back-offs of 1, 2, 4, 8 s at most: 15 s in all against an answering server that is ill
S3_TIMEOUT_S = 20  # silence of a connection, not the length of a transfer
_LOGIN_CODES = {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"}


def _setting(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError as err:
        raise ConfigError(f"{name}={os.environ[name]!r}: expected a whole number") from err


class S3:
    """Objects below s3://bucket/prefix; endpoint and credentials come by boto3's usual chain."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"store root {root!r}: name a bucket, as in s3://bucket/prefix")
        self._root = root
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._timeout_s = _setting("CURATION_S3_TIMEOUT_S", S3_TIMEOUT_S)
        self._attempts = _setting("AWS_MAX_ATTEMPTS", S3_ATTEMPTS)
        self._reader: tuple[object, pafs.S3FileSystem] | None = None
        self._bucket_seen = False
        self.spool_folder = Path(tempfile.gettempdir())

    @property
    def identity(self) -> str:
        """Endpoint and root: what tells this store from another of the same name."""
        return f"{self._client.meta.endpoint_url} {self._root}"

    @cached_property
    def _session(self) -> Any:
        import boto3

        return boto3.session.Session()

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config

        with self._explained(""):
            return self._session.client(
                "s3",
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": self._attempts},
                    connect_timeout=self._timeout_s,
                    read_timeout=self._timeout_s,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    @property
    def _files(self) -> pafs.S3FileSystem:
        credentials = self._session.get_credentials()
        if credentials is None:
            raise ConfigError(f"{self._root}: no S3 credentials found: set AWS_ACCESS_KEY_ID or a profile")
        frozen = credentials.get_frozen_credentials()  # boto3 renews a role's keys: pyarrow must get the new ones
        if self._reader is None or self._reader[0] != frozen:
            scheme, _, host = self._client.meta.endpoint_url.partition("://")
            files = pafs.S3FileSystem(
                region=self._client.meta.region_name or "us-east-1",
                endpoint_override=host,
                scheme=scheme,
                retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=self._attempts),
                connect_timeout=self._timeout_s,
                request_timeout=self._timeout_s,
                tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
                access_key=frozen.access_key,
                secret_key=frozen.secret_key,
                session_token=frozen.token,
            )
            self._reader = frozen, files
        return self._reader[1]

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
            ProfileNotFound,
        )

        where = f"{self._root}/{key}" if key else self._root
        try:
            yield
        except ClientError as err:
            raise self._named(err, where) from err
        except (NoCredentialsError, PartialCredentialsError) as err:
            raise ConfigError(f"{where}: no S3 credentials found: set AWS_ACCESS_KEY_ID or a profile") from err
        except (ParamValidationError, ProfileNotFound) as err:
            raise ConfigError(f"{where}: {err}") from err
        except BotoCoreError as err:
            raise OutageError(f"{where}: S3 can't be reached: {err}") from err
        except ValueError as err:  # an endpoint that is no URL
            raise ConfigError(f"{where}: {err}") from err

    def _named(self, err: Any, where: str) -> Exception:
        status = err.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = err.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket":
            return ConfigError(f"store root {self._root}: no bucket {self._bucket!r}; create it first")
        if status == 404:
            return FileNotFoundError(where)
        if code == "QuotaExceeded" or status == 507:
            return OutageError(f"{where}: no space left in the bucket ({code}): free some and run again")
        if status in (401, 403) or code in _LOGIN_CODES:
            return ConfigError(f"{where}: S3 refused ({code}): check the credentials and the bucket policy")
        return OutageError(f"{where}: S3 answered {status} {code}")

    def _expect_bucket(self) -> None:
        """Tell a missing object from a missing bucket: the answer to HEAD has no room for the difference."""
        if self._bucket_seen:
            return
        try:
            with self._explained(""):
                self._client.head_bucket(Bucket=self._bucket)
        except FileNotFoundError as err:
            raise ConfigError(f"store root {self._root}: no bucket {self._bucket!r}; create it first") from err
        except ConfigError:
            pass  # may read objects but not look at the bucket: a policy of its own right
        self._bucket_seen = True

    def size(self, key: str) -> int | None:
        """Bytes of an object, None when there is none."""
        name = self._prefix + checked_key(key)
        try:
            with self._explained(key):
                return int(self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"])
        except FileNotFoundError:
            self._expect_bucket()
            return None

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below the prefix, in order of key."""
        name = self._prefix + checked_prefix(prefix)
        with self._explained(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=name):
                for found in page.get("Contents", []):
                    yield Entry(found["Key"][len(self._prefix) :], found["Size"])

    def _get(self, key: str, target: IO[bytes]) -> None:
        """Copy an object into the file; boto3 retries a request but not a body that breaks off, so we do."""
        from botocore.exceptions import BotoCoreError

        name = self._prefix + checked_key(key)
        with self._explained(key):
            for attempt in range(1, self._attempts + 1):
                target.seek(0)
                target.truncate()
                body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
                try:
                    for chunk in body.iter_chunks(1 << 20):
                        target.write(chunk)
                    return
                except BotoCoreError:
                    if attempt == self._attempts:
                        raise
                finally:
                    body.close()
                time.sleep(min(2.0**attempt / 4, 4))

    def read(self, key: str) -> bytes:
        """Whole object. Raises FileNotFoundError."""
        import io

        buffer = io.BytesIO()
        self._get(key, buffer)
        return buffer.getvalue()

    def download(self, key: str, path: Path) -> None:
        """Whole object into a local file. Raises FileNotFoundError."""
        with path.open("wb") as file:
            self._get(key, file)

    def open(self, key: str) -> pa.NativeFile:
        """Object for reads at any offset. Raises FileNotFoundError."""
        name = self._prefix + checked_key(key)
        try:
            return self._files.open_input_file(f"{self._bucket}/{name}")
        except FileNotFoundError as err:
            self._expect_bucket()
            raise FileNotFoundError(f"{self._root}/{key}") from err
        except OSError as err:
            raise self.read_failed(key, err) from err

    def read_failed(self, key: str, err: OSError) -> ConfigError | OutageError:
        """What pyarrow's error means to the user."""
        text = " ".join(str(err).split())
        if any(word in text for word in ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "HTTP status 403")):
            return ConfigError(f"{self._root}/{key}: S3 refused: check the credentials and the bucket policy: {text}")
        return OutageError(f"{self._root}/{key}: S3 can't be read: {text}")

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        """A path on the local disk of temporary files."""
        with temporary_file(self.spool_folder, "curation-spool-") as path:
            yield path

    def commit(self, path: Path, key: str, if_absent: bool) -> bool:
        """Upload the file as the object; False when if_absent and one stands there."""
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        name = self._prefix + checked_key(key)
        with self._explained(key):
            if if_absent:
                return self._create(path, key, name)
            config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
            try:
                self._client.upload_file(os.fspath(path), self._bucket, name, Config=config)
            except S3UploadFailedError as err:
                if isinstance(err.__context__, ClientError):
                    raise err.__context__ from err
                raise OutageError(f"{self._root}/{key}: upload failed: {err}") from err
        return True

    def _create(self, path: Path, key: str, name: str) -> bool:
        from botocore.exceptions import ClientError

        token = uuid.uuid4().hex
        for attempt in range(1, self._attempts + 1):
            try:
                with path.open("rb") as body:
                    self._client.put_object(
                        Bucket=self._bucket, Key=name, Body=body, IfNoneMatch="*", Metadata={"writer": token}
                    )
                return True
            except ClientError as err:
                answer = err.response["ResponseMetadata"]
                if answer.get("HTTPStatusCode") == 412:
                    if not answer.get("RetryAttempts"):
                        return False
                    # the first try may have gone through and only its answer been lost: ask whose object it is
                    head = self._client.head_object(Bucket=self._bucket, Key=name)
                    return bool(head["Metadata"].get("writer") == token)
                if answer.get("HTTPStatusCode") != 409 or attempt == self._attempts:
                    raise
            time.sleep(min(2.0**attempt / 4, 4))  # 409: another writer is at it this moment; not yet known who wins
        return False

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        name = self._prefix + checked_key(key)
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=name)
