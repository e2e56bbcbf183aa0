import http.client
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.demo_crawl.server import DemoServer
from curation.demo_crawl.site import Resource, Site

BODY = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("server")
    site = Site()
    site.put("http://a.test/plain.jpg", Resource(BODY, headers={"X-Robots-Tag": "noai"}))
    site.put("http://a.test/gone.jpg", Resource(b"gone", "text/plain", 410))
    site.put("http://a.test/loop.jpg", Resource(b"", status=302, headers={"Location": "/loop.jpg"}))
    for fault in ("stall", "stall-body", "drip", "reset", "refuse", "short", "long", "heal", "delay"):
        site.put(f"http://a.test/{fault}.jpg", Resource(BODY, fault=fault))
    site.write(folder / "site")
    with DemoServer(folder, stall_s=2.0) as server:
        yield server.port


def get(port: int, path: str, host: str = "a.test", timeout: float = 10) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_files_are_served_by_host_with_their_headers(port: int) -> None:
    response, body = get(port, "/plain.jpg?size=2")
    assert (response.status, body, response.headers["X-Robots-Tag"]) == (200, BODY, "noai")
    assert get(port, "/plain.jpg", host="b.test")[0].status == 404
    assert get(port, "/nothing.jpg")[0].status == 404
    assert get(port, "/gone.jpg")[0].status == 410


def test_redirect_loop(port: int) -> None:
    response, _ = get(port, "/loop.jpg")
    assert (response.status, response.headers["Location"]) == (302, "/loop.jpg")


def test_heal_fails_once(port: int) -> None:
    assert [get(port, "/heal.jpg")[0].status for _ in range(3)] == [503, 200, 200]


def test_delay_is_late_and_whole(port: int) -> None:
    started = time.monotonic()
    assert get(port, "/delay.jpg")[1] == BODY
    assert time.monotonic() - started > 1


@pytest.mark.parametrize("path", ["/stall.jpg", "/stall-body.jpg"])
def test_stalls_exceed_the_time_limit(port: int, path: str) -> None:
    with pytest.raises(TimeoutError):
        get(port, path, timeout=0.5)


def test_drip_sends_little(port: int) -> None:
    with pytest.raises(http.client.IncompleteRead) as found:
        get(port, "/drip.jpg")
    assert len(found.value.partial) <= 2


def test_reset_in_the_body_and_before_it(port: int) -> None:
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        get(port, "/reset.jpg")
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        get(port, "/refuse.jpg")


def test_lying_lengths(port: int) -> None:
    with pytest.raises(http.client.IncompleteRead):
        get(port, "/short.jpg")
    assert get(port, "/long.jpg")[1] == BODY[: len(BODY) // 3]
