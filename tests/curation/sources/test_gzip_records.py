"""Whole members beside the stream of them: the same records, and as much damage seen."""

import gzip
import io
import random
import zlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import BadShardError
from curation.sources import libdeflate
from curation.sources.gzip_records import GZIP, MemberReader
from curation.sources.warc import read_content, read_records

MiB = 1 << 20
Found = tuple[list[tuple[int, str, str, str, bytes | None]], Counter[str]]


def record(content: bytes, url: str, fields: bytes = b"") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http\r\n"
    return head.encode() + fields + f"Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"


RECORDS = [record(random.Random(i).randbytes(200 * i).hex().encode(), f"http://{i}.example/") for i in range(6)]
MEMBERS = [gzip.compress(each, mtime=0) for each in RECORDS]


def read(data: bytes, limit: int = MiB) -> Found:
    tally: Counter[str] = Counter()
    found = []
    try:
        for each in read_records(io.BytesIO(data), "x", tally, limit):
            content = read_content(each, tally)
            copied = content.copied() if content else None
            found.append((each.offset, each.url, each.kind, each.content_type, copied))
    except BadShardError:
        tally["refused"] = 1
    return found, tally


def streamed(data: bytes, limit: int = MiB) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libdeflate, "is_there", lambda: False)
        return read(data, limit)


def edited(data: bytes, how: str, at: int, what: int) -> bytes:
    if how == "insert":
        return data[:at] + INSERTED[what % len(INSERTED)] + data[at:]
    if how == "delete":
        return data[:at] + data[at + what :]
    if how == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << what % 8]) + data[at + 1 :]
    return data[: at + 1]


INSERTED = (
    *(GZIP, gzip.compress(b"not a record", mtime=0), bytes(9), b"WARC/1.0\r\n", record(b"plain", "http://p.example/")),
    *(gzip.compress(record(b"one", f"http://{i}.example/"), mtime=0) for i in range(6, 9)),
)
# No insertion twice: behind a member, the same without its first byte ends with the same checksum and length.
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "delete", "insert", "cut"]), st.integers(0, 4000), st.integers(0, 2000)),
    max_size=3,
    unique_by=lambda edit: edit[2] % len(INSERTED),
)


@settings(max_examples=200)
@given(EDITS, st.sampled_from([MiB, 900]))
def test_the_same_as_of_a_stream(edits: list[tuple[str, int, int]], limit: int) -> None:
    data = b"".join(MEMBERS)
    for edit in edits:
        data = edited(data, *edit)
    (found, tally), (expected, stream_tally) = read(data, limit), streamed(data, limit)
    assert found == expected
    if not edits:
        assert tally == stream_tally
    # where the stream's reader finds damage it begins anew at the record before it, and may count the same twice
    assert tally["records_bad_damaged"] or not stream_tally["records_bad_damaged"]
    assert (tally["records"], tally["archive_truncated"], tally["records_bad_too_large"]) == (
        stream_tally["records"],
        stream_tally["archive_truncated"],
        stream_tally["records_bad_too_large"],
    )


@pytest.mark.parametrize(
    "fields",
    [
        b"WARC-Target-URI: http://second.example/\r\n",
        b"warc-target-uri: http://second.example/\r\n",
        b"WARC-Type: request\r\n",
        b"Content-Length: 3\r\n",
        b"X-Folded: a\r\n b\r\n",
        b"no colon\r\n",
        b"X-Bare: a\nX-Other: b\r\n",
        "X-Letters: ä\r\n".encode(),
        b"WARC-Concurrent-To: <urn:a>\r\nWARC-Concurrent-To: <urn:b>\r\n",
        b"\r\n",
    ],
)
def test_any_head_is_read_as_of_a_stream(fields: bytes) -> None:
    data = b"".join(gzip.compress(record(b"content", f"http://{name}.example/", fields)) for name in ("a", "\u00e4"))
    assert read(data) == streamed(data)


def test_what_looks_like_a_member_inside_one_is_passed() -> None:
    stored = zlib.compressobj(0, wbits=31)
    member = stored.compress(record(b"a" + GZIP * 50 + b"b", "http://a.example/")) + stored.flush()
    data = member + MEMBERS[1]
    found, tally = read(data)
    assert [offset for offset, *_ in found] == [0, len(member)]
    assert tally == {"records": 2, "bytes_read": len(data)}


def test_a_member_of_two_records_is_left_to_the_stream() -> None:
    data = MEMBERS[0] + gzip.compress(RECORDS[1] + RECORDS[2]) + b"".join(MEMBERS)
    (found, tally), (expected, stream_tally) = read(data), streamed(data)
    # fastwarc gives the second record of a member the offset of the member or of its end
    assert [each[1:] for each in found] == [each[1:] for each in expected]
    assert tally == stream_tally
    assert tally["records"] == 9


def test_a_member_behind_one_of_its_length_is_missed_when_its_start_is_damaged() -> None:
    same_length = [gzip.compress(record(body, "http://a.example/"), mtime=0) for body in (b"one", b"two")]
    data = same_length[0] + b"\0" + same_length[1][1:]
    _, tally = read(data)
    assert tally["records"] == 1
    assert tally["records_bad_damaged"] or tally["archive_truncated"]


def test_a_member_that_is_too_long_is_not_inflated() -> None:
    whole = record(bytes(5 * MiB), "http://a.example/")
    member = gzip.compress(whole)
    [(end, found), (last, nothing)] = MemberReader(len(whole)).records(member, 7, True)
    assert found is not None
    assert found.content is not None
    assert found.content.copied() == bytes(5 * MiB)
    assert (end, last, nothing) == (7 + len(member), 7 + len(member), None)
    too_long = MemberReader(len(whole) - 1)
    assert list(too_long.records(member, 7, True)) == [(7, None)]
    assert not too_long.wants_more


def test_more_is_asked_for_where_a_member_may_go_on() -> None:
    reader = MemberReader(MiB)
    for cut in (0, 3, 30, len(MEMBERS[5]) - 1, len(MEMBERS[5])):  # whole, it may be a record's with more behind it
        assert list(reader.records(MEMBERS[5][:cut], 0, False)) == [(0, None)]
        assert reader.wants_more
    assert [end for end, _ in reader.records(MEMBERS[5] + GZIP, 0, False)] == [len(MEMBERS[5])] * 2
    # damage before another member is not looked at again with more of the archive: that would cost its square
    for other in (b"not a member", edited(MEMBERS[5], "flip", 40, 0) + MEMBERS[1]):
        assert list(reader.records(other, 0, False)) == [(0, None)]
        assert not reader.wants_more


def test_documents_without_the_mark_are_passed_over_and_counted() -> None:
    bodies = [b'{"a":1}', b'{"a":"mark"}', b"no JSON", b'{"mark"', b"{mar"]
    data = b"".join(gzip.compress(record(body, "http://a.example/")) for body in bodies)
    tally: Counter[str] = Counter()
    found = [read_content(each, tally) for each in read_records(io.BytesIO(data), "x", tally, MiB, b"mark")]
    assert len(found) == 3
    assert tally["records"] == len(bodies)


def test_libdeflate_is_found() -> None:
    assert libdeflate.is_there()
