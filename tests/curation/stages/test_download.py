"""The download stage against a hostile web on loopback: raw sockets, real bytes."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from curation.errors import OutageError
from curation.schema import schema
from curation.stages.download import Download
from tests.curation.stages.hostile_web import CAT, SITE, Web, response


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
        stage = Download(**{"connect_to": {"*.test": self.address}, "timeout_s": 9.0, "attempts": 1} | settings)
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
        ("/chunked", None),
        ("/chunked-short", "truncated_body"),
        ("/slow-body", "timeout"),
        ("/slow-head", "timeout"),
        ("/drip-body", "timeout"),
        ("/drip-head", "timeout"),
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
    row = web.row(path, timeout_s=2.0 if fault == "timeout" else 9.0)
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
    tables = web.tables([*batches, []], timeout_s=2.0)
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


def test_a_long_outage_is_seen_before_the_end(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.stages.download._AHEAD_ROWS", 600)
    asked = []

    def batches() -> Iterator[pa.RecordBatch]:
        for n in range(100):
            asked.append(n)
            yield batch_of([f"http://h{n}-{i}.test/" for i in range(60)])

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
    before, children = threading.active_count(), set(psutil.Process().children())
    stage = Download(connect_to={"*.test": web.address}, timeout_s=0.5, attempts=1)

    def batches() -> Iterator[pa.RecordBatch]:
        yield batch_of(["http://a.test/slow-body"] * 3 + ["http://a.test/cat.jpg"])
        time.sleep(0.2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        list(stage(batches(), Counter()))
    assert threading.active_count() == before
    left = set(psutil.Process().children()) - children
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


def test_a_deadline_ends_the_shard(web: Client) -> None:
    web.web.delay_s = 0.2
    rows = web.rows(*(f"http://a.test/404?{n}" for n in range(30)), per_host=1, deadline_s=2.0)
    faults = Counter(row["fault"] for row in rows)
    assert set(faults) == {"http_404", "deadline"}
    assert faults["deadline"] > 10


def test_a_proxy_is_asked_for_the_whole_url(web: Client) -> None:
    (row,) = web.rows(
        "http://a.test/cat.jpg", connect_to={}, proxy=f"http://{web.address}", respect_robots=False, respect_tdm=False
    )
    assert row["http_status"] == 404
    assert web.web.asked["a.testhttp://a.test/cat.jpg"] == 1


def entering(web: Client, urls: list[str], columns: dict[str, list], **settings: object) -> list[dict]:
    stage = Download(**{"connect_to": {"*.test": web.address}, "timeout_s": 9.0, "attempts": 1} | settings)
    (table,) = stage(iter([batch_of(urls, **columns)]), Counter())
    return table.to_pylist()


def test_a_page_that_refuses_keeps_its_pictures(web: Client) -> None:
    urls, pages = ["http://a.test/cat.jpg", "http://a.test/png", "http://a.test/404"], [True, False, None]
    rows = entering(web, urls, {"page_opt_out": pages})
    assert [row["fault"] for row in rows] == ["opt_out_meta", None, "http_404"]
    assert rows[0]["consent"] == "the page's meta robots"
    assert "a.test/cat.jpg" not in web.web.asked
    rows = entering(web, urls, {"page_opt_out": pages}, respect_page=False)
    assert rows[0]["fault"] is None


def test_a_picture_is_compared_with_the_one_expected(web: Client) -> None:
    first = web.row("/cat.jpg")
    near = f"{int(first['phash'], 16) ^ 0b111:016x}"
    expected = {
        "expected_sha256": [first["sha256"].upper(), "0" * 64, None, "0" * 64],
        "expected_phash": [None, near, first["phash"], None],
    }
    rows = entering(web, [*["http://a.test/cat.jpg"] * 3, "http://a.test/404"], expected)
    assert [row["identity"] for row in rows] == ["same", "changed", None, None]
    assert [row["phash_distance"] for row in rows] == [None, 3, 0, None]


def test_bytes_under_many_urls_of_a_host_are_counted(web: Client) -> None:
    urls = [f"http://a.test/cat.jpg?{n}" for n in range(6)] + ["http://a.test/cat.jpg?0", "http://a.test/png"]
    tables = web.tables([urls, ["http://b.test/cat.jpg", "http://a.test/cat.jpg?9", "http://a.test/404"]])
    found = [[row["same_on_host"] for row in table.to_pylist()] for table in tables]
    assert found == [[7] * 7 + [1], [1, 7, None]]  # also where the last of them comes in a later batch


def test_a_url_that_stands_there_twice_is_fetched_once(web: Client) -> None:
    rows = web.rows(*["http://a.test/cat.jpg"] * 5)
    assert web.web.asked["a.test/cat.jpg"] == 1
    assert len({row["sha256"] for row in rows}) == 1
    assert all(row["image"] == rows[0]["image"] for row in rows)


def test_exif_fields_are_kept_where_asked_for(web: Client) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8298], exif[0x0112] = "Camera Works", "\xa9 A. Photographer", 6
    exif.get_ifd(0x8769)[0x9003] = "2019:05:04 03:02:01"
    out = io.BytesIO()
    Image.open(io.BytesIO(CAT)).save(out, "JPEG", exif=exif)
    SITE["/exif"] = response(out.getvalue())
    row = web.row("/exif", exif_fields=["Make", "DateTimeOriginal", "Artist"])
    assert json.loads(row["exif"]) == {"Make": "Camera Works", "DateTimeOriginal": "2019:05:04 03:02:01"}
    assert (row["original_width"], row["original_height"]) == (300, 451)
    assert web.row("/exif")["exif"] is None


def test_a_later_recheck_asks_by_the_same_rules_and_fetches_no_body(web: Client) -> None:
    urls = ["http://a.test/cat.jpg", "http://a.test/noai", "http://a.test/tdm", "http://a.test/404"]
    urls += ["http://closed.test/cat.jpg", "http://reserved.test/private/cat"]
    stage = Download(connect_to={"*.test": web.address}, timeout_s=9.0, attempts=1)
    assert list(stage.recheck(urls)) == [
        (urls[0], None, None),
        (urls[1], "opt_out_header", "X-Robots-Tag: noarchive, NoAI"),
        (urls[2], "opt_out_tdm", "tdm-reservation: 1"),
        (urls[3], "http_404", None),
        (urls[4], "robots_disallowed", "robots.txt: /cat.jpg"),
        (urls[5], "opt_out_tdm", "tdmrep.json: /private/"),
    ]


def test_retry_after_holds_for_the_whole_host(web: Client) -> None:
    began = time.monotonic()
    rows = web.rows("http://a.test/later", "http://a.test/cat.jpg", attempts=2, per_host=1, timeout_s=5.0)
    assert {row["fault"] for row in rows} == {None}
    assert time.monotonic() - began >= 1.0


def test_names_that_do_not_resolve(web: Client) -> None:
    rows = web.rows("http://nowhere.invalid/x", "http://a.test/cat.jpg")
    assert [row["fault"] for row in rows] == ["dns_failed", None]


def test_a_name_that_resolves_to_a_private_address(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["10.0.0.1"], ["169.254.169.254"], ["127.0.0.1"]])
    monkeypatch.setattr("curation.web.guard._addresses", lambda host: next(answers))
    rows = web.rows(*(f"http://rebinds{n}.example/x" for n in range(3)))
    assert {row["fault"] for row in rows} == {"address_refused"}
    assert web.web.asked == Counter()


def test_settings_that_do_not_fit_in_memory_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"memory_bytes: .* give at least \d+"):
        Download(memory_bytes=512 << 20)
    with pytest.raises(ValidationError) as caught:
        Download(connections=8192)
    least = int(str(caught.value).partition("at least ")[2].partition(",")[0])
    assert Download(connections=8192, memory_bytes=least)._plan().decoders == 1


def test_a_task_that_is_killed_leaves_nothing_and_is_done_again(web: Client, tmp_path: Path) -> None:
    web.web.delay_s = 0.3
    script = f"""
import sys
from collections import Counter
from pathlib import Path
from curation.stages.download import Download
from curation.store import Store
from tests.curation.stages.test_download import batch_of
stage = Download(connect_to={{"*.test": "{web.address}"}}, per_host=2)
urls = [f"http://a.test/cat.jpg?{{n}}" for n in range(20)]
with Store(sys.argv[1]).write_table("dumps/d/download-x/00000.parquet", stage.produces) as writer:
    for table in stage(iter([batch_of(urls[:10]), batch_of(urls[10:])]), Counter()):
        writer.write(table)
"""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    while web.web.asked.total() < 8:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive  # decoders end with their parent, however it ends
    assert list(tmp_path.rglob("*.parquet")) == []
    web.web.delay_s = 0.0
    subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=True, timeout=60)
    (table,) = tmp_path.rglob("*.parquet")
    assert pq.read_table(table)["fault"].null_count == 20
