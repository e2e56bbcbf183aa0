"""The fetcher on real loopback servers: memory, HTTP/2, budgets, and what adapts."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from curation.stages.download import Download
from curation.verdicts import Fault
from curation.web.client import Fetcher, Limits
from curation.web.room import FIRST_SHARE
from tests.curation.web.tls_web import Authority, Either, Http1, serving


def using(work: Callable[[Fetcher], Awaitable[None]], address: str, **changes: object) -> None:
    stage = Download()
    plain = {name: getattr(stage, name) for name in Limits._fields if hasattr(stage, name)}
    plain |= {"agent": "curation/0", "directives": frozenset(stage.directives), "room_bytes": 64 << 20, "attempts": 1}
    plain |= {"connect_to": {"*.test": address}, "respect_robots": False, "respect_tdm": False} | changes

    async def scenario() -> None:
        async with Fetcher(Limits(**plain)) as fetcher:
            await work(fetcher)

    asyncio.run(scenario())


def test_an_http2_stream_without_room_is_asked_for_again_where_it_can_wait(tmp_path: Path) -> None:
    authority, asked = Authority(tmp_path), dict[str, int]()
    body = os.urandom(1 << 20)

    async def work(fetcher: Fetcher) -> None:
        async def one(n: int) -> None:
            response = await fetcher.fetch(f"https://big.test/{n}.jpg")
            assert response.fault is None
            assert bytes(response.body) == body
            await asyncio.sleep(0.3)  # as long as a slow decoder takes
            response.share.release()

        await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(12))), 30)

    context = authority.context("big.test", protocols=["h2", "http/1.1"])
    with serving(lambda: Either(body, asked), context) as address:
        room = {"room_bytes": 5 << 20, "max_bytes": 1 << 20}
        using(work, address, ca_file=str(authority.ca_file), **room)
    assert 0 < asked["http/1.1"] < 12


def test_waiting_for_room_is_no_timeout() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 20) + bytes(1 << 20)

    async def work(fetcher: Fetcher) -> None:
        async def one(n: int) -> None:
            response = await fetcher.fetch(f"http://h{n}.test/x")
            assert response.fault is None
            await asyncio.sleep(2.2)
            response.share.release()

        await asyncio.gather(*(one(n) for n in range(8)))

    with serving(lambda: Http1(answer), None) as address:
        using(work, address, room_bytes=4 << 20, max_bytes=1 << 20, timeout_s=2.0)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MEASURE = """
import asyncio, resource, sys
sys.path.insert(0, sys.argv[2])
from tests.curation.web import test_client
print(test_client.measured(sys.argv[1]))
"""


def measured(address: str) -> int:
    """Peak growth, in bytes, of a process that fetches 60 bodies of 4 MB at once in a room of 24 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def work(fetcher: Fetcher) -> None:
        async def one(n: int) -> None:
            response = await fetcher.fetch(f"http://h{n}.test/x")
            assert response.fault is None
            assert len(response.body) == 4 << 20
            await asyncio.sleep(0.02)
            response.share.release()

        await asyncio.gather(*(one(n) for n in range(60)))

    room = {"room_bytes": 24 << 20, "max_bytes": 4 << 20, "connections": 64, "timeout_s": 30.0}
    using(work, address, **room)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


def test_bodies_of_unknown_length_wait_for_room() -> None:
    body = CHUNKED + b"%x\r\n" % (4 << 20) + bytes(4 << 20) + b"\r\n0\r\n\r\n"
    with serving(lambda: Http1(body), None) as address:
        root = str(Path(__file__).resolve().parents[3])
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, address, root], capture_output=True, text=True, timeout=60, cwd=root
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 << 20, f"{int(done.stdout) >> 20} MiB"  # all at once: 240 MiB


def test_the_byte_budget_ends_the_task() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)

    async def work(fetcher: Fetcher) -> None:
        faults = [(await fetcher.fetch(f"http://a.test/{n}")).fault for n in range(10)]
        assert faults == [None] * 4 + [Fault.BYTE_BUDGET] * 6

    with serving(lambda: Http1(answer), None) as address:
        using(work, address, budget_bytes=3500)


def test_a_deadline_ends_waiting_for_a_slow_host_at_once() -> None:
    async def work(fetcher: Fetcher) -> None:
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(fetcher.fetch(f"http://a.test/{n}") for n in range(200)))
        assert asyncio.get_running_loop().time() - began < 10
        assert {response.fault for response in found} == {Fault.HTTP_404, Fault.DEADLINE}

    with serving(lambda: Http1(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), None) as address:
        using(work, address, deadline_s=1.5, min_delay_s=0.1)


class Narrow(Http1):
    """A line that carries forty answers a second, whoever asks: what comes on top waits for ever longer."""

    free_at = 0.0

    def data_received(self, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        Narrow.free_at = max(Narrow.free_at, now) + 0.025
        asyncio.get_running_loop().call_later(Narrow.free_at - now, self.transport.write, self.response)


def arrived_on_a_narrow_line() -> tuple[int, int]:
    """How many of 320 requests get through, and how many may be in flight at the end."""
    Narrow.free_at = 0.0
    answer = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
    told = []

    async def work(fetcher: Fetcher) -> None:
        found = await asyncio.gather(*(fetcher.fetch(f"http://h{n % 5}.test/{n}") for n in range(320)))
        told.append((sum(response.fault is Fault.HTTP_404 for response in found), fetcher.in_flight[1]))

    with serving(lambda: Narrow(answer), None) as address:
        using(work, address, timeout_s=0.5, per_host=100)
    return told[0]


def test_a_full_line_is_not_made_fuller(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 requests in flight nearly all would take longer than the limit; with fewer more get through."""
    monkeypatch.setattr("curation.web.hosts.FAILURES", 10_000)
    adapted, limit = arrived_on_a_narrow_line()
    monkeypatch.setattr("curation.web.throttle._CONGESTED", 2.0)
    fixed, _ = arrived_on_a_narrow_line()
    assert limit < 20
    assert adapted > 2 * fixed


def test_the_fetcher_keeps_within_the_open_files_of_the_process() -> None:
    async def work(fetcher: Fetcher) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert fetcher._throttle._most <= soft

    using(work, "127.0.0.1:1", connections=8192, room_bytes=8192 * FIRST_SHARE * 2 + (64 << 20))
