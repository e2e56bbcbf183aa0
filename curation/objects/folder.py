"""Objects as files below a local folder: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from curation.errors import ConfigError
from curation.objects import TEMPORARY, Entry, checked_key, checked_prefix, temporary_file, writing


class Folder:
    """A folder of objects; the folder itself is made with the first object."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.spool_folder = root / TEMPORARY

    def path(self, key: str) -> Path:
        """Where the object lies. Raises ConfigError for a key that leaves the root, by name or by symbolic link."""
        path = (self._root / checked_key(key)).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise ConfigError(f"key {key!r} leaves the store")
        return path

    def size(self, key: str) -> int | None:
        """Bytes of an object, None when there is none: a folder on the way to others is none."""
        try:
            status = self.path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below the prefix, in order of key."""
        below = self._root / checked_prefix(prefix)
        folder = below if prefix.endswith("/") or not prefix else below.parent
        found = folder.rglob("*") if folder.is_dir() else ()
        for key in sorted(path.relative_to(self._root).as_posix() for path in found):
            if key.startswith(prefix) and not key.startswith(f"{TEMPORARY}/"):
                with contextlib.suppress(OSError):  # deleted since it was listed
                    status = (self._root / key).stat()
                    if stat.S_ISREG(status.st_mode):
                        yield Entry(key, status.st_size)

    def read(self, key: str) -> bytes:
        """Whole object. Raises FileNotFoundError."""
        return self.local(key).read_bytes()

    def open(self, key: str) -> pa.NativeFile:
        """Object for reads at any offset. Raises FileNotFoundError."""
        return pa.OSFile(os.fspath(self.local(key)))

    def local(self, key: str) -> Path:
        """The file itself. Raises FileNotFoundError."""
        if self.size(key) is None:
            raise FileNotFoundError(f"{self._root}/{key}")
        return self.path(key)

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        """A path on the root's own disk, so that the commit is a rename."""
        with writing(self._root):
            self.spool_folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(self.spool_folder, "") as path:
            yield path

    def commit(self, path: Path, key: str, if_absent: bool) -> bool:
        """Make the spooled file the object; False when if_absent and one stands there."""
        target = self.path(key)
        with writing(self._root):
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
        """Remove an object; no error when there is none."""
        if self.size(key) is not None:
            self.path(key).unlink(missing_ok=True)
