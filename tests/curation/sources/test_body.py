"""Encodings of bodies: as they should be, as archivers leave them, and as attackers make them."""

import gzip
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.sources.body import decode_body

HTML = b"<html><img src=a.jpg alt='a dog'></html>" * 50


def chunked(body: bytes, size: int = 100) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("body", "transfer", "coding"),
    [
        (HTML, "", ""),
        (chunked(HTML), "chunked", ""),
        (gzip.compress(HTML), "", "gzip"),
        (zlib.compress(HTML), "", "deflate"),
        (raw_deflate(HTML), "", "deflate"),
        (brotli.compress(HTML), "", "br"),
        (chunked(gzip.compress(HTML)), "Chunked", "GZIP"),
        (gzip.compress(gzip.compress(HTML)), "", "gzip, gzip"),
        # stored decoded under the headers of the encoded body
        (HTML, "chunked", "gzip"),
        (HTML, "", "deflate"),
        (HTML, "", "br"),
        (HTML, "", "zstd"),
        (HTML, "", "something"),
    ],
    ids=range(13),  # the bodies hold the time of their packing: as names they would differ between test workers
)
def test_decoded(body: bytes, transfer: str, coding: str) -> None:
    assert decode_body(body, transfer, coding, 1 << 20) == HTML


def test_cut_body_gives_its_beginning() -> None:
    packed = gzip.compress(bytes(range(256)) * 200, 0)
    found = decode_body(packed[: len(packed) // 2], "", "gzip", 1 << 20)
    assert found is not None
    assert 20_000 < len(found) < 30_000
    assert decode_body(chunked(HTML)[:150], "chunked", "", 1 << 20) == HTML[:140]


def test_bomb_is_refused() -> None:
    assert decode_body(gzip.compress(bytes(50 << 20)), "", "gzip", 1 << 20) is None
    assert decode_body(brotli.compress(bytes(50 << 20)), "", "br", 1 << 20) is None


@given(
    st.binary(max_size=200), st.sampled_from(["", "chunked"]), st.sampled_from(["gzip", "br", "deflate", "zstd", "x"])
)
def test_hostile_bodies_never_raise(body: bytes, transfer: str, coding: str) -> None:
    decode_body(body, transfer, coding, 1000)
