import asyncio
import socket
from collections.abc import Callable

import pytest

from curation.web.guard import AddressRefused, GuardedResolver, Pinned, is_public


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),  # carrier-grade NAT
        ("192.0.2.1", False),  # documentation
        ("198.18.0.1", False),  # benchmarking
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),  # metadata of a cloud, over IPv6
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("::127.0.0.1", False),  # IPv4-compatible, deprecated
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("64:ff9b::5db8:d70e", True),
        ("64:ff9b:1::7f00:1", False),  # local-use NAT64
        ("2001:0:7f00:1::", False),  # Teredo
        ("fec0::1", False),  # site-local, deprecated
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def pin(resolver_of: Callable[[], GuardedResolver], *hosts: str) -> list[Pinned]:
    async def ask() -> list[Pinned]:
        resolver = resolver_of()
        try:
            return [await resolver.pin(host) for host in hosts]
        finally:
            resolver.close()

    return asyncio.run(ask())


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make the system's resolver give these answers, one after the other; returns who was asked for."""
    asked: list[str] = []

    def answer(host: str) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr("curation.web.guard._addresses", answer)
    return asked


def test_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["93.184.215.14"], ["93.184.215.14", "10.0.0.1"])
    assert pin(lambda: GuardedResolver({}), "a.example") == [Pinned(("93.184.215.14",))]
    with pytest.raises(AddressRefused, match="10\\.0\\.0\\.1"):
        pin(lambda: GuardedResolver({}), "a.example")


def test_a_name_that_resolves_to_a_private_address_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, ["93.184.215.14"], ["169.254.169.254"])
    first = pin(lambda: GuardedResolver({}), "rebinds.example", "rebinds.example")
    assert first == [Pinned(("93.184.215.14",))] * 2
    assert len(asked) == 1  # what was checked is what is used
    monkeypatch.setattr("curation.web.guard._KEPT_S", -1.0)
    asked.clear()
    with pytest.raises(AddressRefused, match="169"):
        pin(lambda: GuardedResolver({}), "rebinds.example", "rebinds.example")


def test_several_that_wait_for_a_name_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, ["93.184.215.14"])

    async def scenario() -> None:
        resolver = GuardedResolver({})
        waiting = [asyncio.create_task(resolver.pin("a.example")) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert done[1:] == [Pinned(("93.184.215.14",))] * 49
        resolver.close()

    asyncio.run(scenario())
    assert asked == ["a.example"]


def test_connect_to_lifts_the_guard_for_its_hosts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["10.0.0.1"])

    def made() -> GuardedResolver:
        return GuardedResolver({"*.test": "127.0.0.1:80", "10.0.0.7": "127.0.0.1:8099"})

    assert pin(made, "a.TEST", "10.0.0.7") == [Pinned(("127.0.0.1",), 80), Pinned(("127.0.0.1",), 8099)]
    for host in ("a.test.example", "test"):
        with pytest.raises(AddressRefused):
            pin(made, host)


@pytest.mark.parametrize("host", ["10.0.0.8", "::1", "::ffff:10.0.0.8", "2130706433", "0x7f.1", "localhost"])
def test_every_spelling_of_a_private_address_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        pin(lambda: GuardedResolver({}), host)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "no such name", "nowhere.invalid"])
def test_names_that_are_none_do_not_resolve(host: str) -> None:
    with pytest.raises(socket.gaierror):
        pin(lambda: GuardedResolver({}), host)


def test_behind_a_proxy_literal_addresses_are_still_refused() -> None:
    async def scenario() -> None:
        resolver = GuardedResolver({"10.0.0.7": "127.0.0.1:8099"})
        for host in ("example.org", "93.184.215.14", "10.0.0.7"):
            resolver.check_literal(host)
        for host in ("10.0.0.8", "::1", "[::1]", "::ffff:10.0.0.8"):
            with pytest.raises(AddressRefused):
                resolver.check_literal(host)
        resolver.close()

    asyncio.run(scenario())
