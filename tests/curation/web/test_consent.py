import pytest

from curation.web.consent import ROBOTS_BYTES, Robots, header_refusal, tdm_refusal

DIRECTIVES = frozenset(["noai", "noimageai", "noindex", "none"])


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("noai", True),
        ("NOAI", True),
        ("noarchive, noimageai", True),
        ("curation: noai", True),
        ("Curation: nofollow, none", True),
        ("*: noai", True),
        ("googlebot: noindex", False),
        ("nofollow", False),
        ("noaiplease", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 GMT", False),
        ("noai, unavailable_after: 25 Jun 2030 15:00:00 GMT", True),
        ("googlebot: noindex, curation: noai", True),
        ("curation: nofollow, otherbot: noai", False),
        ("max-image-preview: none", False),
        ("max-snippet: 20, noai", True),
        ("", False),
        (":", False),
    ],
)
def test_header(value: str, refused: bool) -> None:
    found = header_refusal([value], DIRECTIVES, "curation")
    assert found == (f"X-Robots-Tag: {value}" if refused else None)


def test_any_of_several_headers_refuses() -> None:
    assert header_refusal(["nofollow", "otherbot: noai", "noai"], DIRECTIVES, "curation") == "X-Robots-Tag: noai"


def test_robots_status() -> None:
    closed = b"User-agent: *\nDisallow: /"
    for status, refused in ((200, True), (404, False), (403, False), (500, True), (503, True), (None, True)):
        assert (Robots(status, closed, "curation").refusal("http://a.test/x") is not None) is refused


def test_robots_rules() -> None:
    rules = b"User-agent: *\nDisallow: /private\nAllow: /private/open\nDisallow: /*.gif$\n"
    robots = Robots(200, rules, "curation")
    allowed = {
        path: robots.refusal(f"http://a.test{path}") is None
        for path in ("/a.jpg", "/private/a.jpg", "/private/open/a.jpg", "/b.gif", "/b.gif?x=1")
    }
    assert list(allowed.values()) == [True, False, True, False, True]  # longest match wins
    assert Robots(200, b"User-agent: Curation\nDisallow: /\n", "curation").refusal("http://a.test/x")
    assert Robots(200, b"User-agent: other\nDisallow: /\n", "curation").refusal("http://a.test/x") is None


def test_robots_that_are_none() -> None:
    for body in (b"", b"<html>not found</html>", bytes(range(256)) * 4, b"\xef\xbb\xbfUser-agent: *\nAllow: /"):
        assert Robots(200, body, "curation").refusal("http://a.test/x") is None
    late = b"#" * ROBOTS_BYTES + b"\nUser-agent: *\nDisallow: /"
    assert Robots(200, late, "curation").refusal("http://a.test/x") is None


@pytest.mark.parametrize(
    ("headers", "wellknown", "refusal"),
    [
        ({"tdm-reservation": "1"}, b"", "tdm-reservation: 1"),
        ({"tdm-reservation": "0"}, b'[{"location": "/", "tdm-reservation": 1}]', None),  # the header comes first
        ({}, b'[{"location": "/", "tdm-reservation": 1}]', "tdmrep.json: /"),
        ({}, b'[{"location": "/img/*", "tdm-reservation": 1}]', "tdmrep.json: /img/*"),
        ({}, b'[{"location": "/img/a", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}]', None),
        ({}, b'[{"location": "/other", "tdm-reservation": 1}]', None),
        ({}, b'[{"location": "/img/a.jpg$", "tdm-reservation": 1}]', "tdmrep.json: /img/a.jpg$"),
        ({}, b'{"location": "/"}', None),
        ({}, b"[1, null, {}]", None),
        ({}, b"<html>", None),
        ({}, b"\xff\xfe\x00", None),
        ({}, b"[" * 100_000, None),
    ],
)
def test_tdm(headers: dict[str, str], wellknown: bytes, refusal: str | None) -> None:
    assert tdm_refusal(headers, wellknown, "http://a.test/img/a.jpg") == refusal
