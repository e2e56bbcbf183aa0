import asyncio
import socket

import pytest

from curation.web.guard import AddressRefused, GuardedResolver, is_public


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


def resolve(resolver: GuardedResolver, host: str, answers: list[str]) -> list[str]:
    class Names:
        async def resolve(self, host: str, port: int, family: int) -> list[dict]:
            return [{"hostname": host, "host": answer, "port": port} for answer in answers]

    async def ask() -> list[str]:
        resolver = made()
        resolver._resolver = Names()
        return [found["host"] for found in await resolver.resolve(host, 80, socket.AF_INET)]

    made = resolver
    return asyncio.run(ask())


def test_one_private_address_among_public_ones_is_refused() -> None:
    assert resolve(lambda: GuardedResolver({}), "a.example", ["93.184.215.14"]) == ["93.184.215.14"]
    with pytest.raises(AddressRefused, match="10\\.0\\.0\\.1"):
        resolve(lambda: GuardedResolver({}), "a.example", ["93.184.215.14", "10.0.0.1"])


def test_connect_to_lifts_the_guard_for_its_hosts_only() -> None:
    def made() -> GuardedResolver:
        return GuardedResolver({"*.test": "127.0.0.1:80", "[::1]": "[::1]:81"})

    assert resolve(made, "a.TEST", ["10.0.0.1"]) == ["127.0.0.1"]
    with pytest.raises(AddressRefused):
        resolve(made, "a.test.example", ["10.0.0.1"])
    with pytest.raises(AddressRefused):
        resolve(made, "test", ["10.0.0.1"])


def test_the_proxy_may_be_private() -> None:
    assert resolve(lambda: GuardedResolver({}, "proxy.lan"), "proxy.lan", ["10.0.0.1"]) == ["10.0.0.1"]


def test_hosts_that_are_addresses() -> None:
    async def ask(host: str) -> tuple[str, int] | None:
        return GuardedResolver({"10.0.0.7": "127.0.0.1:8099"}).literal_target(host)

    assert asyncio.run(ask("example.org")) is None
    assert asyncio.run(ask("93.184.215.14")) is None
    assert asyncio.run(ask("10.0.0.7")) == ("127.0.0.1", 8099)
    for host in ("10.0.0.8", "::1", "::ffff:10.0.0.8"):
        with pytest.raises(AddressRefused):
            asyncio.run(ask(host))
