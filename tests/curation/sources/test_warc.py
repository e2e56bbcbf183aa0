"""Records past every kind of damage, with true offsets and every loss counted."""

import gzip
import io
import random
import time
from collections import Counter
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import BadShardError, OutageError
from curation.sources.warc import read_content, read_pages, read_records

MiB = 1 << 20
BODIES = [random.Random(seed).randbytes(150).hex().encode() for seed in range(3)]


def record(content: bytes, *, kind: str = "response", length: object = None, end: str = "\r\n", url: str = "") -> bytes:
    lines = [
        *("WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url or 'http://a.example/'}"),
        *("WARC-Date: 2026-01-01T00:00:00Z", "WARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>"),
        *(
            "Content-Type: application/http; msgtype=response",
            f"Content-Length: {len(content) if length is None else length}",
        ),
    ]
    return (end.join(lines) + end * 2).encode() + content + (end * 2).encode()


def response(html: str, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/html", *headers, "", html]).encode()


PLAIN = [record(body) for body in BODIES]
PACKED = [gzip.compress(each, mtime=0) for each in PLAIN]


def read(data: bytes, limit: int = MiB) -> tuple[list[tuple[int, int]], Counter[str]]:
    tally: Counter[str] = Counter()
    records = read_records(io.BytesIO(data), "x", tally, limit)
    contents = ((each.offset, read_content(each, tally)) for each in records)
    found = [(offset, len(content.copied()) if content else 0) for offset, content in contents]
    return found, tally


@pytest.mark.parametrize("members", [PLAIN, PACKED], ids=["plain", "gzip"])
def test_whole_archives_have_true_offsets(members: list[bytes]) -> None:
    data = b"".join(members)
    found, tally = read(data)
    ends = [len(members[0]), len(members[0]) + len(members[1])]
    assert found == [(0, 300), (ends[0], 300), (ends[1], 300)]
    assert tally == {"records": 3, "bytes_read": len(data)}
    for (offset, _), member in zip(found, members, strict=True):
        assert data[offset:].startswith(member)


@pytest.mark.parametrize("members", [PLAIN, PACKED], ids=["plain", "gzip"])
def test_every_cut_shows(members: list[bytes]) -> None:
    data = b"".join(members)
    whole = {0, len(members[0]), len(members[0] + members[1]), len(data)}
    # a plain record is whole without the line ends behind it
    harmless = {end - back for end in whole for back in range(5)} if members is PLAIN else whole
    for cut in range(1, len(data)):
        try:
            found, tally = read(data[:cut])
        except BadShardError:
            assert cut < len(members[0])
            continue
        assert tally["archive_truncated"] or cut in harmless, cut
        assert len([size for _, size in found if size == 300]) >= sum(cut >= end for end in sorted(whole)[1:])


@pytest.mark.parametrize("length", [2_000_000_000, 10, 700, -5, "abc", 300_000])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_lying_lengths_cost_one_record_and_are_counted(length: object, packed: bool) -> None:
    members = [PLAIN[0], record(BODIES[1], length=length), PLAIN[2]]
    members = [gzip.compress(each) for each in members] if packed else members
    found, tally = read(b"".join(members))
    assert (0, 300) in found
    assert (len(members[0]) + len(members[1]), 300) in found
    assert tally["records_bad"] >= 1


def test_garbage_between_records_is_counted_and_passed() -> None:
    flipped = bytearray(PACKED[1])
    flipped[150:152] = b"\xff\xff"
    for junk in (b"hello world\r\n", gzip.compress(b"not a record\r\n"), bytes(flipped), b"\x1f\x8b\x08" + bytes(99)):
        found, tally = read(PACKED[0] + junk + PACKED[2])
        assert found[0] == (0, 300)
        assert found[-1] == (len(PACKED[0]) + len(junk), 300)
        assert tally["records_bad_damaged"] >= 1


def test_lines_that_end_bare_are_read() -> None:
    data = b"".join(record(body, end="\n") for body in BODIES)
    assert [size for _, size in read(data)[0]] == [300] * 3
    assert [size for _, size in read(b"".join(map(gzip.compress, [record(b, end="\n") for b in BODIES])))[0]] == [
        300
    ] * 3


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"\r\n\r\n", "bytes"),
        (b"<html>" * 1000, "<html>"),
        (b"filedesc://x.arc 0.0.0.0 20260101 text/plain 10\n", "ARC"),
        (gzip.compress(b"filedesc://x.arc 0.0.0.0 20260101 text/plain 10\n", mtime=0), "ARC"),
        (gzip.compress(b"no archive", mtime=0), "no archive"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"WARC/1.0\r\n", "WARC"),
    ],
)
def test_what_is_no_warc_is_said(data: bytes, found: str) -> None:
    with pytest.raises(BadShardError, match=f"expected a WARC, found .*{found}"):
        read(data)


def test_outage_of_the_stream_is_no_end_of_archive() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 800:
                raise OutageError("reset")
            return super().read(min(size or 0, 400))

    with pytest.raises(OutageError, match="reset"):
        list(read_records(cast(BinaryIO, Broken(b"".join(PLAIN))), "x", Counter(), MiB))


def test_memory_is_bounded_whatever_is_declared() -> None:
    class Endless(io.RawIOBase):
        """2 GiB of one record that declares as much."""

        def __init__(self) -> None:
            self.left = [record(b"", length=2 << 30), *[bytes(MiB)] * 100]

        def read(self, size: int = -1) -> bytes:
            return self.left.pop(0) if self.left else b""

    import tracemalloc

    tally: Counter[str] = Counter()
    tracemalloc.start()
    assert list(read_records(cast(BinaryIO, Endless()), "x", tally, MiB)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tally["records_bad_too_large"] == 1
    assert peak < 80 * MiB


def test_pages() -> None:
    html = "<img src=a.jpg alt='a dog'>"
    data = b"".join(
        gzip.compress(each)
        for each in (
            record(b"software: x\r\n", kind="warcinfo"),
            record(response(html), url="<http://one.example/>"),
            record(response(html).replace(b"200 OK", b"404 Not Found")),
            record(response(html).replace(b"text/html", b"text/css")),
            record(response(html).replace(b"Content-Type: text/html\r\n", b"")),
            record(response("<p>no picture")),
            record(b"\x00\xff garbage"),
            record(response("") + gzip.compress(html.encode() + bytes(5 * MiB)), url="http://bomb.example/"),
            record(response("", "Content-Encoding: gzip") + gzip.compress(html.encode() + bytes(5 * MiB))),
        )
    )
    tally: Counter[str] = Counter()
    pages = list(read_pages(io.BytesIO(data), "x", tally, max_record_bytes=MiB, max_page_bytes=MiB))
    assert [page.pictures[0].url for page in pages if page.pictures] == [
        "http://one.example/a.jpg",
        "http://a.example/a.jpg",
    ]
    assert tally["records"] == 9
    assert tally["pages_without_pictures"] >= 1
    assert tally["records_bad_too_large"] == 1


def test_a_page_of_elements_without_end_is_counted_and_costs_no_square() -> None:
    data = b"".join(
        gzip.compress(record(response("<img src=a.jpg alt='a dog'>" + each)))
        for each in ("<div>" * 200_000, "<div>kept</div>" * 50_000)
    )
    tally: Counter[str] = Counter()
    started = time.process_time()
    pages = list(read_pages(io.BytesIO(data), "x", tally, max_record_bytes=4 * MiB, max_page_bytes=4 * MiB))
    assert time.process_time() - started < 5
    assert [len(page.pictures) for page in pages] == [1]
    assert tally["records_bad_too_deep"] == tally["records_bad"] == 1


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*PLAIN, *PACKED, b"WARC/1.0\r\n", b"\r\n\r\n", b"\x1f\x8b\x08", b"(\xb5/\xfd", b"\x04\x22\x4d\x18"]
            ),
            st.binary(max_size=60),
            st.sampled_from(PLAIN + PACKED).flatmap(lambda each: st.integers(0, len(each)).map(lambda cut: each[:cut])),
        ),
        max_size=5,
    ).map(b"".join)
)
def test_hostile_archives_raise_nothing_else(data: bytes) -> None:
    try:
        for page in read_pages(io.BytesIO(data), "x", Counter(), max_record_bytes=MiB, max_page_bytes=MiB):
            assert page.pictures is not None
    except BadShardError:
        pass


@given(st.integers(0, 1500), st.integers(0, 255), st.booleans())
def test_one_bad_byte_leaves_the_other_records(at: int, value: int, packed: bool) -> None:
    members = PACKED if packed else PLAIN
    data = bytearray(b"".join(members))
    at %= len(data)
    data[at] = value
    try:
        found, _ = read(bytes(data))
    except BadShardError:
        return
    starts = [0, len(members[0]), len(members[0] + members[1])]
    hit = sum(at >= start for start in starts) - 1
    untouched = {start for i, start in enumerate(starts) if i != hit}
    assert untouched <= {offset for offset, _ in found}
