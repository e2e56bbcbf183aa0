"""libcurl within asyncio: pinned addresses, bodies that wait, TLS and HTTP/2 on real loopback servers."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pycurl
import pytest

from curation.verdicts import Fault
from curation.web.guard import Pinned
from curation.web.transfers import TransferError, Transfers, _open_pinned
from tests.curation.web.tls_web import Authority, Http1, Http2, serving

BODY = os.urandom(300_000)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def using(work: Callable[[Transfers], Awaitable[None]], ca_file: Path | None = None) -> None:
    async def scenario() -> None:
        transfers = Transfers("curation/0 (test)", 100, None, str(ca_file) if ca_file else None)
        try:
            await work(transfers)
        finally:
            transfers.close()

    asyncio.run(scenario())


async def fetched(transfers: Transfers, url: str, address: str) -> tuple[bytes, str]:
    host, _, port = address.rpartition(":")
    async with transfers.get(url, Pinned((host,), int(port))) as answer:
        assert await answer.read(1 << 20)
        return bytes(answer.body), answer.http_version


def test_requests_to_a_host_with_http2_share_one_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    connections: list[int] = []

    async def work(transfers: Transfers) -> None:
        one = (fetched(transfers, f"https://h2.test/{n}", address) for n in range(40))
        found = await asyncio.wait_for(asyncio.gather(*one), 20)
        assert found == [(BODY, "HTTP/2")] * 40

    context = authority.context("h2.test", protocols=["h2", "http/1.1"])
    with serving(lambda: Http2(BODY, connections), context) as address:
        using(work, authority.ca_file)
    assert connections == [40]


def test_a_host_without_http2_is_spoken_to_in_http1(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def work(transfers: Transfers) -> None:
        assert await fetched(transfers, "https://h1.test/x", address) == (BODY, "HTTP/1.1")

    with serving(lambda: Http1(RESPONSE), authority.context("h1.test", protocols=["http/1.1"])) as address:
        using(work, authority.ca_file)


@pytest.mark.parametrize(
    ("name", "expired", "trusted", "plain", "fault"),
    [
        ("good.test", False, True, False, None),
        ("good.test", False, False, False, Fault.TLS_FAILED),
        ("other.test", False, True, False, Fault.TLS_FAILED),
        ("good.test", True, True, False, Fault.TLS_FAILED),
        ("good.test", False, True, True, Fault.TLS_FAILED),
    ],
    ids=["good", "unknown-authority", "other-name", "expired", "no-tls-at-all"],
)
def test_certificates_are_checked(
    tmp_path: Path, name: str, expired: bool, trusted: bool, plain: bool, fault: Fault | None
) -> None:
    authority = Authority(tmp_path)
    context = None if plain else authority.context(name, protocols=["http/1.1"], expired=expired)

    async def work(transfers: Transfers) -> None:
        if fault is None:
            assert (await fetched(transfers, "https://good.test/x", address))[0] == BODY
            return
        with pytest.raises(TransferError) as caught:
            await fetched(transfers, "https://good.test/x", address)
        assert caught.value.fault is fault

    with serving(lambda: Http1(RESPONSE), context) as address:
        using(work, authority.ca_file if trusted else None)


def test_a_reset_during_the_handshake_is_no_bad_certificate() -> None:
    async def work(transfers: Transfers) -> None:
        with pytest.raises(TransferError) as caught:
            await fetched(transfers, "https://good.test/x", address)
        assert caught.value.fault is Fault.CONNECTION_FAILED

    with serving(lambda: Http1(b""), None) as address:
        using(work)


def test_only_the_pinned_address_is_connected_to() -> None:
    async def work(transfers: Transfers) -> None:
        port = int(address.rpartition(":")[2])
        url = f"http://localhost:{port}/x"
        async with transfers.get(url, Pinned(("127.0.0.1",))) as answer:
            assert await answer.read(1 << 20)
        # the system would find the server under this name; what was checked is another address, so it is not asked
        with pytest.raises(TransferError) as caught:
            async with transfers.get(f"http://ip6-localhost:{port}/x", Pinned(("127.0.0.9",))):
                pass
        assert caught.value.fault is Fault.CONNECTION_FAILED
        # libcurl reads the host for itself: whatever it makes of a URL, sockets open to what was checked only
        refusing = _open_pinned(answer, frozenset(["93.184.215.14"]))
        place = (socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", port))
        assert refusing(0, place) == pycurl.SOCKET_BAD

    with serving(lambda: Http1(RESPONSE), None) as address:
        using(work)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def work(transfers: Transfers) -> None:
        assert (await fetched(transfers, "http://a.test/x", address))[0] == BODY

    with serving(lambda: Http1(RESPONSE), None) as address:
        using(work)
