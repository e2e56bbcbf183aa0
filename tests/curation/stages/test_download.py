"""The download stage against a hostile web on loopback: raw sockets, real bytes."""

import hashlib
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pyarrow as pa
import pytest
from PIL import Image

from curation.errors import OutageError
from curation.schema import schema
from curation.stages.download import Download
from tests.curation.stages.hostile_web import CAT, Web


def batch_of(urls: list[str], **columns: list) -> pa.RecordBatch:
    """What enters the stage: URLs, and where nothing else is said no page that refuses and nothing expected."""
    names = Download.consumes.names
    values = {name: columns.get(name, [None] * len(urls)) for name in names} | {"url": urls}
    return pa.RecordBatch.from_pydict(values, schema=schema(*names))


class Client:
    def __init__(self, web: Web, address: str) -> None:
        self.web, self.address = web, address

    def rows(self, *urls: str, **settings: object) -> list[dict]:
        (table,) = self.tables([list(urls)], **settings)
        return table.to_pylist()

    def tables(self, batches: list[list[str]], **settings: object) -> list[pa.RecordBatch]:
        stage = Download(**{"connect_to": {"*.test": self.address}, "timeout_s": 0.6, "attempts": 1} | settings)
        tally: Counter[str] = Counter()
        made = (batch_of(urls) for urls in batches)
        tables = list(stage(made, tally))
        assert all(table.schema.equals(stage.produces) for table in tables)
        return tables

    def row(self, path: str, **settings: object) -> dict:
        return self.rows(f"http://a.test{path}", **settings)[0]


@pytest.fixture
def web() -> Iterator[Client]:
    made = Web()
    with made.running() as address:
        yield Client(made, address)


def test_a_picture_is_measured(web: Client) -> None:
    row = web.row("/cat.jpg")
    assert (row["fault"], row["http_status"], row["etag"], row["final_url"]) == (None, 200, '"v1"', None)
    assert (row["original_width"], row["original_height"], row["min_side"]) == (451, 300, 300)
    assert (row["width"], row["height"], row["original_format"], row["image_format"]) == (385, 256, "jpeg", "jpeg")
    assert row["sha256"] == hashlib.sha256(CAT).hexdigest()
    assert row["body_bytes"] == len(CAT)
    assert row["aspect"] == pytest.approx(451 / 300)
    with Image.open(io.BytesIO(row["image"])) as kept:
        assert kept.size == (385, 256)


def test_a_redirect_is_followed_and_kept(web: Client) -> None:
    row = web.row("/hop")
    assert (row["fault"], row["final_url"]) == (None, "http://b.test/cat.jpg")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/loop", "too_many_redirects"),
        ("/to-metadata", "address_refused"),
        ("/to-loopback", "address_refused"),
        ("/to-loopback6", "address_refused"),
        ("/to-mapped", "address_refused"),
        ("/to-decimal", "address_refused"),
        ("/to-file", "bad_http"),
        ("/to-nowhere", "bad_http"),
        ("/401", "http_401"),
        ("/403", "http_403"),
        ("/404", "http_404"),
        ("/410", "http_410"),
        ("/418", "http_4xx"),
        ("/500", "http_5xx"),
        ("/much-later", "http_429"),
        ("/reset", "truncated_body"),
        ("/short", "truncated_body"),
        ("/announced", "too_large"),
        ("/slow-body", "timeout"),
        ("/slow-head", "timeout"),
        ("/long-head", "bad_http"),
        ("/garbage", "bad_http"),
        ("/bomb", "too_large"),
        ("/zipped", None),
        ("/zipped-short", "truncated_body"),
        ("/html.jpg", "not_an_image"),
        ("/svg", "not_an_image"),
        ("/empty", "not_an_image"),
        ("/huge.png", "image_too_large"),
        ("/cut.jpg", "bad_image"),
        ("/cut.png", "bad_image"),
        ("/long.gif", None),
        ("/noai", "opt_out_header"),
        ("/noai-us", "opt_out_header"),
        ("/noai-other", None),
        ("/tdm", "opt_out_tdm"),
    ],
)
def test_each_failure_has_its_name(web: Client, path: str, fault: str | None) -> None:
    row = web.row(path)
    assert row["fault"] == fault
    assert (row["image"] is None) == (fault is not None)


def test_a_body_longer_than_announced_is_no_picture(web: Client) -> None:
    assert web.row("/understated")["fault"] in ("bad_image", "bad_http")  # by what the client has read when it notices


def test_urls_that_are_none_cost_a_row(web: Client) -> None:
    rows = web.rows(
        "http://[::1", "no url", "http://", "http://a.test:99999/", "http://a b.test/", "http://a.test/cat.jpg"
    )
    assert [row["fault"] for row in rows[-1:]] == [None]
    assert all(row["fault"] for row in rows[:-1])


def test_literal_addresses_are_refused_unless_named(web: Client) -> None:
    url = f"http://{web.address}/cat.jpg"
    assert web.rows(url)[0]["fault"] == "address_refused"
    assert web.rows(url, connect_to={"127.0.0.1": web.address})[0]["fault"] is None


@pytest.mark.parametrize("path", ["/heals", "/later"])
def test_what_may_heal_is_asked_again(web: Client, path: str) -> None:
    assert web.row(path, attempts=2)["fault"] is None


def test_what_does_not_heal_is_asked_once(web: Client) -> None:
    web.row("/404", attempts=3)
    web.row("/much-later", attempts=3)
    assert web.web.asked["a.test/404"] == web.web.asked["a.test/much-later"] == 1


@pytest.mark.parametrize(
    ("url", "fault", "evidence"),
    [
        ("http://closed.test/cat.jpg", "robots_disallowed", "robots.txt: /cat.jpg"),
        ("http://closed.test/open/cat", None, None),
        ("http://named.test/cat.jpg", "robots_disallowed", "robots.txt: /cat.jpg"),
        ("http://broken.test/cat.jpg", "robots_disallowed", "robots.txt unreachable"),
        ("http://moved.test/cat.jpg", "robots_disallowed", "robots.txt: /cat.jpg"),
        ("http://marked.test/cat.jpg", "robots_disallowed", "robots.txt: /cat.jpg"),
        ("http://reserved.test/cat.jpg", None, None),
        ("http://reserved.test/private/cat", "opt_out_tdm", "tdmrep.json: /private/"),
    ],
)
def test_refusals_are_respected_with_their_evidence(web: Client, url: str, fault: str, evidence: str) -> None:
    (row,) = web.rows(url)
    assert (row["fault"], row["consent"]) == (fault, evidence)


def test_each_refusal_can_be_switched_off(web: Client) -> None:
    rows = web.rows(
        "http://closed.test/cat.jpg",
        "http://a.test/noai",
        "http://a.test/tdm",
        respect_robots=False,
        respect_headers=False,
        respect_tdm=False,
    )
    assert [row["fault"] for row in rows] == [None] * 3


def test_robots_is_asked_once_a_host(web: Client) -> None:
    web.rows(*(f"http://a.test/404?{n}" for n in range(30)), "http://c.test/404")
    assert web.web.asked["a.test/robots.txt"] == web.web.asked["c.test/robots.txt"] == 1


def test_order_and_length_are_kept(web: Client) -> None:
    paths = ["/cat.jpg", "/404", "/png", "/slow-body", "/html.jpg"]
    batches = [[f"http://h{n}.test{path}" for path in paths[n % 5 :] + paths[: n % 3]] for n in range(9)]
    tables = web.tables([*batches, []])
    faults = {"/cat.jpg": None, "/404": "http_404", "/png": None, "/slow-body": "timeout", "/html.jpg": "not_an_image"}
    for urls, table in zip([*batches, []], tables, strict=True):
        assert [row["fault"] for row in table.to_pylist()] == [faults["/" + url.split("/")[3]] for url in urls]


def test_connections_are_bounded(web: Client) -> None:
    web.web.delay_s = 0.02
    web.rows(*(f"http://h{n}.test/404" for n in range(40)), connections=4, timeout_s=5.0)
    assert web.web.most <= 4 + 1  # the server may learn late of a close


def refused_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize("respect_robots", [True, False])
def test_an_outage_is_not_a_verdict(web: Client, respect_robots: bool) -> None:
    urls = [f"http://h{n % 5}.test/{n}" for n in range(25)]
    with pytest.raises(OutageError, match=r"25 URLs of 5 hosts .*25 connection_failed"):
        web.rows(*urls, connect_to={"*.test": refused_port()}, respect_robots=respect_robots)


def test_a_long_outage_is_seen_before_the_end(web: Client) -> None:
    asked = []

    def batches() -> Iterator[pa.RecordBatch]:
        for n in range(100):
            asked.append(n)
            yield batch_of([f"http://h{n}-{i}.test/" for i in range(600)])

    stage = Download(connect_to={"*.test": refused_port()}, attempts=1)
    with pytest.raises(OutageError):
        list(stage(batches(), Counter()))
    assert len(asked) < 50


def test_dead_hosts_among_living_ones_are_no_outage(web: Client) -> None:
    dead = {f"dead{n}.test": refused_port() for n in range(8)}
    urls = [f"http://dead{n % 8}.test/{n}" for n in range(60)] + ["http://a.test/cat.jpg"] * 5
    rows = web.rows(*urls[60:], *urls[:60], connect_to={**dead, "a.test": web.address})
    assert {row["fault"] for row in rows[:5]} == {None}
    assert {row["fault"] for row in rows[5:]} <= {"connection_failed", "host_suspended"}


def test_a_host_that_always_fails_is_left_alone(web: Client) -> None:
    rows = web.rows(
        "http://a.test/cat.jpg",
        *(f"http://dead.test/{n}" for n in range(40)),
        connect_to={"dead.test": refused_port(), "a.test": web.address},
        per_host=1,
        respect_robots=False,
    )
    faults = Counter(row["fault"] for row in rows)
    assert faults == {None: 1, "connection_failed": 10, "host_suspended": 30}


def test_stopping_early_leaves_nothing_running(web: Client) -> None:
    before = threading.active_count()
    stage = Download(connect_to={"*.test": web.address}, timeout_s=0.5, attempts=1)

    def batches() -> Iterator[pa.RecordBatch]:
        yield batch_of(["http://a.test/slow-body"] * 3 + ["http://a.test/cat.jpg"])
        time.sleep(0.2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        list(stage(batches(), Counter()))
    assert threading.active_count() == before
    assert not [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_a_deadline_ends_the_shard(web: Client) -> None:
    web.web.delay_s = 0.1
    rows = web.rows(*(f"http://a.test/404?{n}" for n in range(30)), per_host=1, deadline_s=0.5)
    faults = Counter(row["fault"] for row in rows)
    assert set(faults) == {"http_404", "deadline"}
    assert faults["deadline"] > 10


def test_a_proxy_is_asked_for_the_whole_url(web: Client) -> None:
    (row,) = web.rows(
        "http://a.test/cat.jpg", connect_to={}, proxy=f"http://{web.address}", respect_robots=False, respect_tdm=False
    )
    assert row["http_status"] == 404
    assert web.web.asked["a.testhttp://a.test/cat.jpg"] == 1
