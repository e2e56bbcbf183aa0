"""Objects by key, whole or not at all: on a local folder, on an S3-compatible server. `curation.store` is the door."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from curation.errors import ConfigError, OutageError

TEMPORARY = ".tmp"
_STALE_TEMPORARY_S = 24 * 3600
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_MAX_KEY_BYTES = 1024  # S3's limit
_MAX_NAME_BYTES = 255  # NAME_MAX of the usual file systems


class Entry(NamedTuple):
    """One object: its key and its size in bytes."""

    key: str
    size: int


def checked_key(key: str) -> str:
    """The key, if it means one and the same object on a folder and on S3, inside the root. Raises ConfigError."""
    names = key.split("/")
    try:
        too_long = len(key.encode()) > _MAX_KEY_BYTES or any(len(name.encode()) > _MAX_NAME_BYTES for name in names)
    except UnicodeEncodeError as err:
        raise ConfigError(f"key {key!r}: not valid Unicode") from err
    if too_long:
        raise ConfigError(f"key {key[:80]!r}...: longer than {_MAX_KEY_BYTES} bytes, or a name in it than 255")
    if ".." in names:
        raise ConfigError(f"key {key!r} leaves the store")
    if any(name in ("", ".") for name in names) or names[0] == TEMPORARY:
        raise ConfigError(f"key {key!r}: expected names joined by single slashes, as in dumps/a/b.parquet")
    if any(char < " " or char == "\x7f" for char in key):
        raise ConfigError(f"key {key!r}: control characters can't be listed on S3")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix, if it is empty or the beginning of a good key, a slash at its end included."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


@contextlib.contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """A full disk is an outage with a name, not a stack trace; a folder that refuses us is a setting to mend."""
    with full_disk_named(place):
        try:
            yield
        except OSError as err:
            if err.errno in _NOT_WRITABLE:
                raise ConfigError(f"can't write to {place}: {err.strerror}: {err.filename}") from err
            raise


@contextlib.contextmanager
def full_disk_named(place: str | Path) -> Iterator[None]:
    """Turn no-space errors into OutageError and leave every other alone: for blocks that do more than write."""
    try:
        yield
    except OSError as err:
        if err.errno in _FULL or "No space left" in str(err) or "File too large" in str(err):
            raise OutageError(f"no space left while writing to {place}: free some and run again") from err
        raise


@contextlib.contextmanager
def temporary_file(folder: Path, prefix: str) -> Iterator[Path]:
    """A new empty file, gone at the end; older ones that killed writers left behind are swept first."""
    _sweep(folder, prefix)
    with writing(folder):
        handle, name = tempfile.mkstemp(dir=folder, prefix=prefix)
        os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sweep(folder: Path, prefix: str) -> None:
    """Remove our files that were last written a day ago or more."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith(prefix):
                continue
            with contextlib.suppress(OSError):  # another writer swept it first, or it is another user's
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _STALE_TEMPORARY_S:
                    os.unlink(entry.path)
