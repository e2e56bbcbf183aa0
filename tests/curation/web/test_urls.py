"""The canonical form: hand-computed cases, and its laws on hostile input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.web import urls
from curation.web.urls import Base, canonical, hostname, sample_id

PIECES = st.sampled_from(
    [
        *"aZ9/.%?#&=@:\\ \t\n\x00é日\ud800[]",
        "..",
        "%2e",
        "%2F",
        "%zz",
        "data:",
        "http:",
        "https://",
        "//",
        "a.b",
        "xn--",
        ":80",
        ":443",
    ]
)
HOSTILE = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("http://a.example/b.jpg", "http://a.example/b.jpg"),
        ("HTTP://User@A.Example:80/B.jpg#top", "http://User@a.example/B.jpg"),
        ("https://a.example:443", "https://a.example/"),
        ("https://a.example:8443/", "https://a.example:8443/"),
        ("http://a.example./x", "http://a.example/x"),
        ("  http://a.example/a\n b.jpg ", "http://a.example/a%20b.jpg"),
        ("http://bücher.example/ü.jpg?ü=ü", "http://xn--bcher-kva.example/%C3%BC.jpg?%C3%BC=%C3%BC"),
        ("http://a.example/%7euser/%c3%bc%2F.jpg", "http://a.example/~user/%C3%BC%2F.jpg"),
        ("http://a.example/100%.jpg", "http://a.example/100%25.jpg"),
        ("http://a.example/a/./b/../c.jpg", "http://a.example/a/c.jpg"),
        ("http://a.example/../../c.jpg", "http://a.example/c.jpg"),
        ("http://a.example/.hidden.jpg", "http://a.example/.hidden.jpg"),
        ("http:\\\\a.example\\b\\c.jpg", "http://a.example/b/c.jpg"),
        ("http://a.example?q=1&b=%2f..", "http://a.example/?q=1&b=%2f.."),
        ("http://[2001:DB8::1]:80/a", "http://[2001:db8::1]/a"),
        ("data:image/png;base64,AA==", "data:image/png;base64,AA=="),
        ("no scheme", "no scheme"),
        ("HTTP:::", "http://::/"),
        ("http://:80\\0", "http://:80/0"),
        ("http://×", "http://%c3%97/"),
    ],
)
def test_canonical(found: str, expected: str) -> None:
    assert canonical(found) == expected


@given(HOSTILE)
def test_canonical_is_idempotent_and_encodable(url: str) -> None:
    once = canonical(url)
    assert canonical(once) == once
    once.encode()


@given(st.tuples(st.sampled_from(["http://", "https://", "HTTP://"]), HOSTILE).map("".join))
def test_canonical_http_is_idempotent_and_ascii(url: str) -> None:
    once = canonical(url)
    assert canonical(once) == once
    assert not hostname(once) or once.isascii()
    assert "#" not in once


@given(
    st.from_regex(urls._CANONICAL, fullmatch=True).filter(lambda url: "/." not in url),
    st.one_of(st.just(""), HOSTILE.map("#".__add__)),
)
def test_fast_way_agrees_with_slow_way(url: str, fragment: str) -> None:
    # a blank in front sends it the slow way
    assert canonical(" " + url + fragment) == canonical(url + fragment) == url


@given(HOSTILE)
def test_query_is_kept_but_for_what_cannot_be_sent(text: str) -> None:
    query = "".join(c for c in text if c.isascii() and c.isprintable() and c not in " #\"'<>")
    assert canonical(f"http://a.example/?{query}") == f"http://a.example/?{query}"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("c.jpg", "https://a.example/dir/c.jpg"),
        ("/c.jpg", "https://a.example/c.jpg"),
        ("//b.example/c.jpg", "https://b.example/c.jpg"),
        ("../c.jpg", "https://a.example/c.jpg"),
        ("?x=1", "https://a.example/dir/page.html?x=1"),
        ("#top", ""),
        ("", ""),
        (" \n", ""),
        ("https:c.jpg", "https://a.example/dir/c.jpg"),
        ("HTTP://B.example", "http://b.example/"),
        ("data:image/gif;base64,R0", "data:image/gif;base64,R0"),
        ("javascript:void(0)", "javascript:void(0)"),
        ("\\c.jpg", "https://a.example/c.jpg"),
        ("a b.jpg", "https://a.example/dir/a%20b.jpg"),
    ],
)
def test_join(link: str, expected: str) -> None:
    assert Base("https://a.example/dir/page.html?q=/no/").join(link) == expected


@given(
    st.sampled_from(["https://a.example/dir/page.html?q=/no/", "http://b.example", "http://x:1/a/b/", ""]),
    st.one_of(HOSTILE, st.text(st.sampled_from("/.?#:ab%20\\@&=-_~ é"), max_size=12)),
)
def test_join_in_one_step_agrees_with_the_long_way(base: str, link: str) -> None:
    # a line end within sends it the long way
    assert Base(base).join(link) == Base(base).join(f"{link}\n")


@given(HOSTILE, HOSTILE)
def test_join_never_raises(base: str, link: str) -> None:
    Base(base).join(link).encode()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.example/x", "a.example"),
        ("http://a.example:8080/x", "a.example"),
        ("http://localhost:1/x", "localhost"),
        ("http://[::1]:8/x", "[::1]"),
        ("http://127.0.0.1/x", "127.0.0.1"),
        ("http://user:pw@a.example/x", ""),
        ("http://a.example:99999/x", ""),
        ("http://intranet/x", ""),
        ("http:///x", ""),
        ("http://a..example/x", ""),
        ("data:x", ""),
    ],
)
def test_hostname(url: str, expected: str) -> None:
    assert hostname(url) == expected


def test_sample_id_is_a_fixed_function_of_both_parts() -> None:
    assert sample_id("http://a.example/", "dog") == sample_id("http://a.example/", "dog")
    assert len({sample_id("a", "b"), sample_id("ab", ""), sample_id("", "ab"), sample_id("a", "c")}) == 4
    assert len(sample_id("a", "b")) == 32
