"""ARC records, and members of zstd behind a dictionary: true offsets, every damage counted."""

import gzip
import io
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import BadShardError
from curation.sources.arc import is_arc, read_records
from curation.sources.candidates import Picture
from curation.sources.members import Members
from curation.sources.warc import read_content, read_pages
from curation.sources.warc import read_records as read_warc_records

MiB = 1 << 20
HTML = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html lang=da><img src=h.jpg alt='En brun hund'>"
)
FILEDESC = (
    "filedesc://x.arc 0.0.0.0 20110922131213 text/plain 77\n1 0 InternetArchive\n"
    "URL IP-address Archive-date Content-type Archive-length\n\n\n"
)


def record(url: str, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return f"{url} 80.71.133.121 20110922131214 text/html {size}\n".encode() + content + b"\n"


RECORDS = [
    FILEDESC.encode(),
    record("http://a.example/1.html", HTML.encode()),
    record("dns:a.example", b"20110922\na.example. IN A 1.2.3.4\n"),
    record("http://a.example/with a space", HTML.encode()),
]


def read(data: bytes) -> tuple[list[tuple[str, int, int]], Counter[str]]:
    tally: Counter[str] = Counter()
    found = read_records(Members(io.BytesIO(data)), tally, MiB)
    return [(each.url, each.offset, len(each.content)) for each in found], tally


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_records_and_pages(packed: bool) -> None:
    members = [gzip.compress(each) for each in RECORDS] if packed else RECORDS
    data = b"".join(members)
    found, tally = read(data)
    starts = [len(b"".join(members[:i])) for i in range(4)]
    assert [offset for _, offset, _ in found] == starts
    assert [url for url, _, _ in found[1:]] == [
        "http://a.example/1.html",
        "dns:a.example",
        "http://a.example/with a space",
    ]
    assert [size for _, _, size in found][1] == len(HTML)
    assert tally == {"records": 4, "bytes_read": len(data)}
    tally = Counter()
    pages = list(read_pages(io.BytesIO(data), "x.arc", tally, max_record_bytes=MiB, max_page_bytes=MiB))
    assert [(page.url, page.language, page.offset) for page in pages] == [
        ("http://a.example/1.html", "da", starts[1]),
        ("http://a.example/with a space", "da", starts[3]),
    ]
    assert pages[0].pictures[0] == Picture("http://a.example/h.jpg", {"alt": "En brun hund"})


def test_version_2_and_what_is_no_arc() -> None:
    line = b"http://a.example/ 1.2.3.4 20110922131214 text/html 200 sum - 123 x.arc 5\nhello\n"
    assert read(FILEDESC.encode() + line)[0][1][2] == 5
    assert is_arc(line)
    for other in (b"", b"WARC/1.0\r\nWARC-Type: response\r\n", b"<html>", b"\x1f\x8b\x08junk", b"PK\x03\x04"):
        assert not is_arc(other)


def test_damage_is_counted_and_passed() -> None:
    longer = record("http://a.example/2", HTML.encode(), length=len(HTML) - 9)
    found, tally = read(RECORDS[0] + longer + RECORDS[3])
    assert found[-1][0] == "http://a.example/with a space"
    assert tally["records_bad_damaged"] == 1
    large = record("http://a.example/2", b"", length=2 * MiB + 1) + bytes(2 * MiB)
    found, tally = read(RECORDS[0] + large + RECORDS[1])
    assert [url for url, _, _ in found[1:]] == ["http://a.example/1.html"]
    assert tally["records_bad_too_large"] == 1
    found, tally = read(b"".join(RECORDS)[:-30])
    assert tally["archive_truncated"] == 1
    packed = [gzip.compress(each) for each in RECORDS]
    broken = bytearray(packed[1])
    broken[40:44] = b"\xff\xff\xff\xff"
    found, tally = read(packed[0] + bytes(broken) + packed[3])
    assert found[-1][1:] == (len(packed[0] + packed[1]), len(HTML))
    assert tally["records_bad_damaged"] >= 1
    found, tally = read(b"".join(packed)[:-9])
    assert tally["archive_truncated"] == 1


def warc_record(body: bytes, i: int) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{i}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


@pytest.mark.parametrize("packed_dictionary", [False, True], ids=["raw", "packed"])
def test_zstd_frames_behind_a_dictionary(packed_dictionary: bool) -> None:
    chance = random.Random(0)
    bodies = [HTML.encode() + chance.randbytes(50).hex().encode() for _ in range(200)]
    records = [warc_record(body, i) for i, body in enumerate(bodies)]
    dictionary = zstandard.train_dictionary(4096, records)
    content = zstandard.compress(dictionary.as_bytes()) if packed_dictionary else dictionary.as_bytes()
    front = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    frames = [zstandard.ZstdCompressor(dict_data=dictionary).compress(each) for each in records]
    tally: Counter[str] = Counter()
    data = front + b"".join(frames)
    found = [
        (each.offset, content.copied() if (content := read_content(each, Counter())) else None)
        for each in read_warc_records(io.BytesIO(data), "x.warc.zst", tally, MiB)
    ]
    assert [body for _, body in found] == bodies
    assert [offset for offset, _ in found] == [len(front + b"".join(frames[:i])) for i in range(200)]
    assert tally == {"records": 200, "bytes_read": len(data)}
    tally = Counter()
    list(read_warc_records(io.BytesIO(data[:-20]), "x.warc.zst", tally, MiB))
    assert tally["archive_truncated"] == 1


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd", "one-zstd-frame"])
def test_forms_of_a_warc(form: str) -> None:
    records = [warc_record(HTML.encode() + bytes([65 + i]), i) for i in range(20)]
    compress = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}.get(form)
    data = b"".join(map(compress, records)) if compress else zstandard.compress(b"".join(records))
    tally: Counter[str] = Counter()
    pages = list(read_pages(io.BytesIO(data), "x", tally, max_record_bytes=MiB, max_page_bytes=MiB))
    assert [page.url for page in pages] == [f"http://a.example/{i}" for i in range(20)]
    assert not tally["records_bad"]
    if compress:
        assert pages[7].offset == len(b"".join(map(compress, records[:7])))


@given(
    st.lists(
        st.one_of(
            st.sampled_from([*RECORDS, *map(gzip.compress, RECORDS), b"\n", b"\x1f\x8b\x08"]), st.binary(max_size=40)
        )
    ).map(b"".join)
)
def test_hostile_archives_raise_nothing_else(data: bytes) -> None:
    read(data)
    with suppress(BadShardError):
        list(read_pages(io.BytesIO(data), "x", Counter(), max_record_bytes=MiB, max_page_bytes=MiB))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x5d\x2a\x4d\x18", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"]))
def test_members_of_anything_come_to_an_end(data: bytes, magic: bytes) -> None:
    members = Members(io.BytesIO(magic + data))
    while members.read():
        pass
    assert members.bytes_read >= len(magic + data)


@pytest.mark.shared
def test_real_arcs(shared: Path) -> None:
    pictures = 0
    tally: Counter[str] = Counter()
    for path in sorted((shared / "data" / "warc" / "files").iterdir()):
        if path.name.lower().endswith((".arc", ".arc.gz")):
            with path.open("rb") as stream:
                pages = read_pages(stream, path.name, tally, max_record_bytes=64 * MiB, max_page_bytes=16 * MiB)
                pictures += sum(len(page.pictures) for page in pages)
    assert tally["records"] > 1000
    assert pictures > 500
