"""The compiled reading of a WAT's texts and addresses beside what it stands for: JSON's, and the join of a link."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.sources.wat import _ENDED_METAS, _ENDED_NAMES, _in_front
from curation.sources.wat_kernel import JOIN, LANES, UNSURE, cut, url_kind
from curation.web.urls import Base

BASES = (
    *("https://a.example/dir/page.html?q=/no/", "http://b.example", "http://x:1/a/b/", "https://a.example/%20/", ""),
    *("https://localhost/a/", "https://a.example/./a", "https://a.example/é/b"),
)
PIECES = ("http://", "https://", "//", "/", ".", "..", "?", "#", ":", "a", "b.example", "-", "%20", "&", ";", "&amp;")
LINKS = st.lists(st.sampled_from((*PIECES, "data:", "@", "é", " ", "'", "|", "^", "~", "C", "\\", "\t")), max_size=9)


@settings(max_examples=500)
@given(st.sampled_from(BASES), LINKS.map("".join))
def test_an_address_of_a_kind_is_what_join_gives(base: str, link: str) -> None:
    data = np.frombuffer(link.encode(), np.uint8)
    kind, end = url_kind(data, 0, len(data))
    prefix = _in_front(Base(base)).get(str(kind))
    if prefix is not None:
        assert prefix + data[:end].tobytes().decode() == Base(base).join(link.replace("&amp;", "&"))


@pytest.mark.parametrize(
    ("link", "is_joined"),
    [
        ("https://a.example/b.jpg?x=%20#top", False),
        ("/a.jpg", False),
        ("a/b.jpg", False),
        ("//b.example/a.jpg", False),
        ("data:image/gif;base64,AA==", False),
        ("https://a.example", True),
        ("../a.jpg", True),
        ("a.jpg#top", True),
        ("mailto:a", True),
        ("a.jpg?x&amp;y", True),
    ],
)
def test_most_addresses_are_not_joined(link: str, is_joined: bool) -> None:
    assert (url_kind(np.frombuffer(link.encode(), np.uint8), 0, len(link))[0] == JOIN) == is_joined


def cut_out(document: bytes) -> tuple[list[str] | None, int, int]:
    out = np.zeros(len(document) + LANES, np.uint8)
    data = np.frombuffer(document, np.uint8)
    metas = document.find(b'"Metas":') + 8
    size, _, wordless, n_images = cut(data, 0, len(data), metas, _ENDED_METAS, _ENDED_NAMES, 3, out)
    return None if size == UNSURE else out[:size].tobytes().decode().split("\0"), wordless, n_images


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.booleans(), st.integers(0, 40))
def test_any_text_is_read_as_json_reads_it(text: str, as_ascii: bool, shift: int) -> None:
    document = {"x": "x" * shift, "Metas": [{"name": "og:title", "content": f"b{text}"}, {}, {"content": text}]}
    document["Links"] = [{"path": "IMG@/src", "url": "a.jpg", "alt": f"a{text}", "class": text, "title": text}]
    fields, _, n_images = cut_out(json.dumps(document, ensure_ascii=as_ascii, separators=(",", ":")).encode())
    assert fields == ["4", "a.jpg", f"a{text}", text, "og:title", f"b{text}", ""]
    assert n_images == 1


@pytest.mark.parametrize(
    "text", ["\\u0000", "\\ud800", "\\udc00\\ud800", "\\ud800\\u0041", "\\x", "\\u12g4", "\\u", "\x01"]
)
def test_a_text_that_json_has_not_is_not_read(text: str) -> None:
    assert cut_out(f'{{"Metas":[],"Links":[{{"path":"IMG@/src","url":"a","alt":"{text}"}}]}}'.encode())[0] is None


@given(st.binary(max_size=60), st.integers(0, 120))
def test_damage_is_never_read_past(damage: bytes, at: int) -> None:
    whole = b'{"Metas":[{"name":"robots","content":"noai"}],"Links":[{"path":"IMG@/src","url":"a","alt":"b"}]}'
    with suppress(UnicodeDecodeError):
        cut_out(whole[:at] + damage)
