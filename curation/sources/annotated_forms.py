"""The forms of annotated sets: each a reader of records, and where a file makes several shards a count."""

from __future__ import annotations

import gzip
import itertools
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import ijson
import msgspec
import pyarrow as pa

from curation.errors import BadShardError
from curation.sources import url_table
from curation.sources.annotated import AnnotatedShard, Form, Reader, Record, plain
from curation.sources.conversations import Conversation, turns_of

MAX_GROUP_BYTES = 256 << 20
"""Of pictures in a Parquet row group, which is read whole."""
_MAX_TEXT_BYTES = 1 << 20  # of a text or JSON member; a longer one is no caption
_MAX_LINE_BYTES = 16 << 20
_MAX_PICTURES = 64  # of a record
_PICTURES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic"])
_TEXTS = ("txt", "caption", "cap")
_IMAGE_NAMES = ("image", "image_path", "file_name", "filename", "img", "path", "image_url", "url")
_TEXT_NAMES = ("caption", "text", "alt_text", "description")
_ITEM_NAMES = ("id", "key", "image_id", "uid")
_LICENCE_NAMES = ("licence", "license")
_MARK = re.compile(r"\s*<image>\s*")
_DAMAGE = (pa.ArrowException, OSError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ijson.JSONError)


@contextmanager
def _told(shard: AnnotatedShard, expected: str) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, UnicodeDecodeError) as error:
        what = error.args[0] if error.args else error  # ijson tells in bytes or in text
        what = what.decode(errors="replace") if isinstance(what, bytes) else what
        raise BadShardError(
            f"{shard.path}: expected {expected}, whole, found: {' '.join(str(what).split())}"
        ) from error


def _count_coco(stream: BinaryIO, shard: AnnotatedShard) -> int:
    with _told(shard, "COCO captions (an object with images and annotations)"):
        count = sum(1 for _ in ijson.items(plain(stream), "images.item"))
        if not count or not any(True for _ in ijson.items(plain(stream), "annotations.item.caption")):
            raise BadShardError(
                f"{shard.path}: expected COCO captions, found no images or no annotations with a caption: "
                "name the set's form, or take the captions' file"
            )
        return count


def _read_coco(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Record]:
    """Captions picture by picture: those of one picture stay in one shard, where it is fetched once."""
    with _told(shard, "COCO captions"):
        licences = {
            each.get("id"): str(each.get("url") or each.get("name") or "")
            for each in ijson.items(plain(stream), "licenses.item", use_float=True)
            if isinstance(each, dict) and isinstance(each.get("id"), int)
        }
        pictures: dict[Any, tuple[str, str]] = {}
        entries = ijson.items(plain(stream), "images.item", use_float=True)
        for each in itertools.islice(entries, shard.wanted.start, shard.wanted.stop):
            if not isinstance(each, dict) or not isinstance(each.get("id"), int | str):
                tally["records_bad"] += 1
                continue
            web = "" if shard.annotated.images else each.get("coco_url")
            picture = web or each.get("file_name") or each.get("coco_url")
            if isinstance(picture, str) and picture:
                licence = each.get("license")
                pictures[each["id"]] = picture, licences.get(licence, "") if isinstance(licence, int) else ""
            else:
                tally["records_without_picture"] += 1
        captions: dict[Any, list[tuple[int, str, str]]] = {}
        for number, each in enumerate(ijson.items(plain(stream), "annotations.item", use_float=True)):
            text, of = (each.get("caption"), each.get("image_id")) if isinstance(each, dict) else (None, None)
            if not isinstance(text, str) or not isinstance(of, int | str):
                tally["records_bad"] += shard.first == 0  # told once, not by every shard
            elif of in pictures:
                captions.setdefault(of, []).append((number, text, str(each.get("id", number))))
    for of, (picture, licence) in pictures.items():
        for number, text, item in captions.get(of, ()):
            tally["records"] += 1
            yield Record(number, picture, text, item, licence, {})


def _objects(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Any]:
    """Objects of a JSON array, or a line each; None for a line that is none."""
    text = plain(stream)
    first = text.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    text = plain(stream)
    if first == b"[":
        yield from ijson.items(text, "item", use_float=True)
        return
    while line := text.readline(_MAX_LINE_BYTES):
        if line.strip():
            try:
                yield msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield None


def _count_llava(stream: BinaryIO, shard: AnnotatedShard) -> int:
    with _told(shard, "LLaVA's records (a JSON array, or one object a line)"):
        good = bad = 0
        for each in _objects(stream, shard, Counter()):
            good, bad = good + isinstance(each, dict), bad + (not isinstance(each, dict))
        if not good:
            raise BadShardError(f"{shard.path}: expected records, a JSON array or one a line, found none")
        return good + bad


def _read_llava(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Record]:
    with _told(shard, "LLaVA's records"):
        wanted = itertools.islice(enumerate(_objects(stream, shard, tally)), shard.wanted.start, shard.wanted.stop)
        for number, each in wanted:
            tally["records"] += 1
            if not isinstance(each, dict) or (text := _said(each)) is None:
                tally["records_bad"] += 1
                continue
            pictures = _pictures(each)
            if not pictures:  # text alone
                tally["records_without_picture"] += 1
                continue
            turns = turns_of(each.get("conversations"), len(pictures))
            if len(pictures) > 1 and turns is None:  # what is said of all of them is said of none
                tally["records_bad"] += 1
                continue
            item, licence = str(each.get("id", number)), _licence(each)
            for at, picture in enumerate(pictures):
                told = Conversation(turns, number, at, len(pictures)) if turns else None
                yield Record(number, picture, text, item, licence, {}, told)


def _pictures(record: dict[str, Any]) -> list[str]:
    """Pictures of a record, in order; none where one of them is no path, or there are more than a record may have."""
    found = record.get("image") or record.get("images")
    listed = found if isinstance(found, list) else [found]
    good = [picture for picture in listed if isinstance(picture, str) and picture]
    return good if len(good) == len(listed) <= _MAX_PICTURES else []


def _said(record: dict[str, Any]) -> str | None:
    """What the model is meant to say of the picture: all answers, one after the other; or the caption."""
    turns = record.get("conversations")
    if turns is None:
        caption = next((record[name] for name in _TEXT_NAMES if name in record), None)
        return caption if isinstance(caption, str) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    answers = [turn.get("value") for turn in turns if turn.get("from") in ("gpt", "assistant")]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        return None
    return _MARK.sub(" ", " ".join(str(answer) for answer in answers)).strip()


def _licence(record: dict[str, Any]) -> str:
    return next((str(record[name]) for name in _LICENCE_NAMES if isinstance(record.get(name), str)), "")


def _count_table(stream: BinaryIO, shard: AnnotatedShard) -> int:
    with _told(shard, "a table of pictures and texts (Parquet, CSV or TSV)"):
        table = url_table.open_table(stream)
        inside = table.bytes_column(_columns(table.names, shard)["image"])
        if inside and (size := table.largest_group(inside)) > MAX_GROUP_BYTES:
            raise BadShardError(
                f"{shard.path}: a row group holds {size >> 20} MiB of pictures, at most {MAX_GROUP_BYTES >> 20} may be "
                "read at once: write it with smaller row groups"
            )
        return table.count()


def _read_table(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Record]:
    with _told(shard, "a table of pictures and texts"):
        table = url_table.open_table(stream)
        named = _columns(table.names, shard)
        inside = table.bytes_column(named["image"])
        read = {role: name for role, name in named.items() if role != "image" or not inside}
        for first, batch in table.batches(list(dict.fromkeys(read.values())), shard.wanted):
            cells = {role: url_table.strings(batch.column(name), table.encoding) for role, name in read.items()}
            tally["records"] += batch.num_rows
            for at in range(batch.num_rows):
                number = first + at
                picture = cells["image"][at] if not inside else f"{shard.path.rpartition('/')[2]}/{number}"
                if not picture:
                    tally["records_without_picture"] += 1
                    continue
                place = {"parquet": shard.path, "row": number, "column": inside} if inside else {}
                item = cells["item"][at] if "item" in cells else str(number)
                licence = cells["licence"][at] if "licence" in cells else ""
                yield Record(number, picture, cells["text"][at], item, licence, place)
        tally["records_bad"] += table.bad_lines


def _columns(names: Sequence[str], shard: AnnotatedShard) -> dict[str, str]:
    """Column by role: image and text, item and licence where there are such."""
    lower = {name.lower(): name for name in reversed(names)}
    one = shard.annotated
    named: dict[str, str] = {}
    for role, choice, known in (
        ("image", one.image_column, _IMAGE_NAMES),
        ("text", one.text_column, _TEXT_NAMES),
        ("item", "", _ITEM_NAMES),
        ("licence", "", _LICENCE_NAMES),
    ):
        found = choice if choice in names else next((lower[name] for name in known if name in lower and not choice), "")
        if found:
            named[role] = found
        elif role in ("image", "text"):
            raise BadShardError(
                f"{shard.path}: expected a column {choice or ' or '.join(known)}, found {', '.join(names)[:300]}; "
                f"name it: {role}_column of the set"
            )
    return named


def _read_tar(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Record]:
    """Samples of a WebDataset tar: members that share a name up to its first dot. A picture is read where it lies."""
    with _told(shard, "a tar that is not compressed"):
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for number, (key, members) in enumerate(itertools.groupby(_members(tar, tally), lambda one: one[0])):
                tally["records"] += 1
                yield from _sample(tar, shard, number, key, [(suffix, member) for _, suffix, member in members], tally)


def _members(tar: tarfile.TarFile, tally: Counter[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # else every header of the tar stays in memory
        folder, slash, name = member.name.rpartition("/")
        key, dot, suffix = name.partition(".")
        if member.isfile() and not member.issparse() and key and dot:
            yield f"{folder}{slash}{key}", suffix.lower(), member
        elif not member.isdir():
            tally["records_bad"] += 1


def _sample(
    tar: tarfile.TarFile,
    shard: AnnotatedShard,
    number: int,
    key: str,
    members: list[tuple[str, tarfile.TarInfo]],
    tally: Counter[str],
) -> Iterator[Record]:
    by_suffix = dict(reversed(members))
    said: dict[str, Any] = {}
    if "json" in by_suffix:
        try:
            said = msgspec.json.decode(_content(tar, by_suffix["json"]), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            tally["records_bad"] += 1
    texts = [_content(tar, by_suffix[name]).decode(errors="replace") for name in _TEXTS if name in by_suffix]
    text = next((one for one in texts if one.strip()), None) or _said(said)
    picture = next(((suffix, one) for suffix, one in members if suffix in _PICTURES), None)
    if picture is None:
        tally["records_without_picture"] += 1
    elif text is None:
        tally["records_bad"] += 1
    else:
        suffix, member = picture
        name = f"{key}.{suffix}"
        # a name that leads out is refused with the others, though nothing is ever unpacked
        place = {"tar": shard.path, "path": name, "at": member.offset_data, "bytes": member.size}
        path = f"{shard.path.rpartition('/')[2]}/{name}"
        yield Record(number, path, text, str(said.get("id", key)), _licence(said), place)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.size <= _MAX_TEXT_BYTES else None
    return file.read() if file else b""


COUNTS: dict[Form, Callable[[BinaryIO, AnnotatedShard], int]] = {
    "coco": _count_coco,
    "llava": _count_llava,
    "table": _count_table,
}
"""Number of the records of a file, of pictures for COCO; by form. A tar is one shard."""

READERS: dict[Form, Reader] = {
    "coco": _read_coco,
    "llava": _read_llava,
    "table": _read_table,
    "webdataset": _read_tar,
}
