"""A version as one local folder, ready for training: its files, checksums, and pictures unpacked when asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from curation.errors import BadShardError
from curation.objects import writing
from curation.publish.export import kind_of, place_of
from curation.publish.parts import File
from curation.publish.verify import read_manifest
from curation.store import Store

_CHUNK = 1 << 20
_WORKERS = 4
_PICTURES = {".jpg", ".png", ".webp"}


def lay_out(
    store: Store, recipe_name: str, version: str, folder: Path, *, kinds: tuple[str, ...] = (), images: bool = False
) -> int:
    """Copy a version into a folder; returns the bytes copied now. What lies there whole already is not copied again.

    Each file is read in pieces, checked against the manifest's sha256 and renamed into place; SHA256SUMS is for
    `sha256sum -c`. With `images`, the pictures of the tars come to images/, where the JSON records look for them.

    kinds    metadata, webdataset, pretrain, instruct, multi_image; empty: all. Reports always come
    raises   ConfigError for an unknown version, BadShardError for a file that differs from the manifest
    """
    manifest = read_manifest(store, recipe_name, version)
    reports = {"quality.json", "card.html", "croissant.json", "balance.parquet"}
    files = [File.model_validate(file) for file in manifest["files"]]
    wanted = [file for file in files if not kinds or kind_of(file.key) in reports | set(kinds)]
    with writing(folder), ThreadPoolExecutor(_WORKERS) as pool:
        folder.mkdir(parents=True, exist_ok=True)
        copied = sum(pool.map(lambda file: _copy(store, file, folder / place_of(file.key)), wanted))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        sums = "".join(f"{file.sha256}  {place_of(file.key)}\n" for file in wanted)
        (folder / "SHA256SUMS").write_text(sums)
        if images:
            tars = [folder / place_of(file.key) for file in wanted if kind_of(file.key) == "webdataset"]
            list(pool.map(lambda tar: _unpack(tar, folder / "images" / tar.stem), tars))
    return copied


def _copy(store: Store, file: File, target: Path) -> int:
    if target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(target) as path:
        digest = hashlib.sha256()
        try:
            with store.open_stream(file.key) as stream, path.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
        except FileNotFoundError:
            raise BadShardError(f"{file.key}: missing: run curation verify") from None
        if digest.hexdigest() != file.sha256:
            raise BadShardError(f"{file.key}: the sha256 differs from the manifest's: run curation verify")
    return file.size


def _unpack(tar: Path, folder: Path) -> None:
    """Pictures only, under their own names: what a name says of other folders is not believed."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as members:
            for member in members:
                name = PurePosixPath(member.name)
                content = members.extractfile(member) if member.isfile() else None
                if content is not None and name.suffix in _PICTURES:
                    with (making / name.name).open("wb") as out:
                        shutil.copyfileobj(content, out, _CHUNK)
                members.members = []  # type: ignore[attr-defined]  # else it remembers every header
        making.chmod(0o755)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextlib.contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    """A path beside the target that becomes it when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
    os.close(handle)
    path = Path(name)
    try:
        yield path
        path.chmod(0o644)
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
