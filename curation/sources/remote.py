"""Reading a remote archive as one stream: resumed where the connection broke, whole or an error, never shorter."""

import fnmatch
import io
import random
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import urllib3

from curation.errors import BadShardError, OutageError

Ranges = Callable[[int], tuple[Any, int | None]]
"""Opens an archive at an offset: the body, with read(), and the size of the whole archive when it is announced."""

ATTEMPTS = 4
_FIRST_DELAY_S = 0.5  # doubled at each attempt
_TIMEOUT_S = 60.0
_PERMANENT = frozenset({400, 401, 403, 404, 405, 410, 416, 451})


class Unreachable(Exception):
    """One attempt failed in a way that another may heal."""


class RemoteStream(io.RawIOBase):
    """A remote archive from its first to its last byte; see Ranges. Memory: the caller's buffer."""

    def __init__(self, location: str, ranges: Ranges) -> None:
        self._location, self._ranges = location, ranges
        self._body: Any = None
        self._position = 0
        self._size: int | None = None
        self._retrying(self._open)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: another offset is another request."""
        return True

    def tell(self) -> int:
        """Offset that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset. Raises OSError for one from the end of an archive whose size was not announced."""
        if whence == io.SEEK_END and self._size is None:
            raise OSError(f"{self._location}: the server does not say how long it is")
        position = offset + {io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}.get(whence, 0)
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next; 0 only at the announced end."""
        if not len(buffer):
            return 0
        chunk = self._retrying(lambda: self._read(len(buffer)))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Let the connection go."""
        self._drop()
        super().close()

    def _open(self) -> bytes:
        body, size = self._ranges(self._position)
        if self._size is not None and size != self._size:
            raise OutageError(f"{self._location}: changed while it was read: {self._size} bytes before, {size} now")
        self._body, self._size = body, size
        return b""

    def _read(self, size: int) -> bytes:
        from botocore.exceptions import BotoCoreError  # here and below: 0.4 s that local archives save

        if self._position == self._size:
            return b""
        if self._body is None:
            self._open()
        try:
            chunk: bytes = self._body.read(size)
        except (OSError, urllib3.exceptions.HTTPError, BotoCoreError) as error:
            raise Unreachable(str(error)) from error
        if not chunk and self._size is not None:
            raise Unreachable(f"the connection ended at byte {self._position} of {self._size}")
        self._position += len(chunk)
        return chunk

    def _retrying(self, step: Callable[[], bytes]) -> bytes:
        for attempt in range(ATTEMPTS):
            try:
                return step()
            except Unreachable as error:
                self._drop()
                if attempt == ATTEMPTS - 1:
                    raise OutageError(f"{self._location}: {error}; tried {ATTEMPTS} times") from error
                time.sleep(_FIRST_DELAY_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def http_ranges(url: str) -> Ranges:
    """Ranges of an archive behind http(s)."""

    def open_at(offset: int) -> tuple[Any, int | None]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            response = _pool().request("GET", url, headers=headers, preload_content=False, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(str(error)) from error
        if response.status != (206 if offset else 200):
            response.close()
            if response.status in _PERMANENT or 200 <= response.status < 400:
                raise BadShardError(f"{url}: expected the archive from byte {offset}, found HTTP {response.status}")
            raise Unreachable(f"HTTP {response.status}")
        length = response.headers.get("Content-Length", "")
        return response, offset + int(length) if length.isdigit() else None

    return open_at


def s3_ranges(location: str) -> Ranges:
    """Ranges of an archive in S3."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _bucket_and_key(location)

    def open_at(offset: int) -> tuple[Any, int | None]:
        try:
            answer = (
                _s3().get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")
                if offset
                else _s3().get_object(Bucket=bucket, Key=key)
            )
        except (ClientError, BotoCoreError) as error:
            raise _s3_failure(location, error) from error
        return answer["Body"], offset + answer["ContentLength"]

    return open_at


def list_s3(pattern: str) -> Iterator[str]:
    """Locations under an s3:// prefix or matching an s3:// glob. Raises BadShardError or OutageError."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _bucket_and_key(pattern)
    wild = min((key.find(mark) for mark in "*?[" if mark in key), default=-1)
    prefix = key[:wild] if wild >= 0 else key
    try:
        for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"]
                below = name == key or not key or name.startswith(key.rstrip("/") + "/")
                if fnmatch.fnmatchcase(name, key) if wild >= 0 else below:
                    yield f"s3://{bucket}/{name}"
    except (ClientError, BotoCoreError) as error:
        failure = _s3_failure(pattern, error)
        raise OutageError(f"{pattern}: {failure}") if isinstance(failure, Unreachable) else failure from error


def _s3_failure(location: str, error: Exception) -> Exception:
    from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

    if not isinstance(error, ClientError):
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return BadShardError(f"{location}: expected credentials for S3, found none: set AWS_ACCESS_KEY_ID")
        return Unreachable(str(error))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in _PERMANENT:
        return BadShardError(f"{location}: expected a readable object, found HTTP {status}: {error}")
    return Unreachable(str(error))


def _bucket_and_key(location: str) -> tuple[str, str]:
    parts = location.removeprefix("s3://").partition("/")
    return parts[0], parts[2]


@lru_cache(maxsize=1)
def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(
        maxsize=2, timeout=urllib3.Timeout(_TIMEOUT_S), retries=urllib3.Retry(0, redirect=5, raise_on_status=False)
    )


@lru_cache(maxsize=1)
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    # retries are RemoteStream's: one policy for the request and for the body, which botocore leaves alone
    return boto3.client("s3", config=Config(retries={"total_max_attempts": 2}, read_timeout=_TIMEOUT_S))
