"""Which addresses may be connected to: public ones, and those that the operator names."""

from __future__ import annotations

import fnmatch
import ipaddress
import socket
from collections.abc import Mapping

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Python's is_global has these as public: IPv4-compatible addresses, local-use NAT64, site-local; all three lead inside
_INSIDE = [ipaddress.ip_network(network) for network in ("::/96", "64:ff9b:1::/48", "fec0::/10")]


class AddressRefused(Exception):
    """The host has an address that strangers must not make us connect to."""


def is_public(address: str) -> bool:
    """Whether an address is global unicast: not private, loopback, link-local, multicast or a tunnel to such a one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _INSIDE)


class GuardedResolver(AbstractResolver):
    """Resolves once, checks every address, and hands the connector what was checked.

    connect_to  host glob -> address:port to connect to instead; lifts the guard for those hosts and no others
    proxy       host of the operator's proxy, which may have a private address
    """

    def __init__(self, connect_to: Mapping[str, str], proxy: str | None = None) -> None:
        self._proxy = proxy
        self._connect_to = dict(connect_to)
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host. Raises AddressRefused, OSError."""
        target = self._target(host)
        if target is not None:
            address, _, target_port = target.rpartition(":")
            return [_result(host, address.strip("[]"), int(target_port))]
        found = await self._resolver.resolve(host, port, family)
        refused = [] if host == self._proxy else [entry["host"] for entry in found if not is_public(entry["host"])]
        if refused:
            raise AddressRefused(f"{host} is {refused[0]}")
        return found

    def literal_target(self, host: str) -> tuple[str, int] | None:
        """For a host that is itself an address (aiohttp asks no resolver for those): where to connect instead, if so.

        Raises AddressRefused for one that is not public and not named by connect_to.
        """
        try:
            public = is_public(host.strip("[]"))
        except ValueError:
            return None
        target = self._target(host)
        if target is not None:
            address, _, port = target.rpartition(":")
            return address.strip("[]"), int(port)
        if not public:
            raise AddressRefused(host)
        return None

    async def close(self) -> None:
        """Release the resolver."""
        await self._resolver.close()

    def _target(self, host: str) -> str | None:
        for pattern, target in self._connect_to.items():
            if fnmatch.fnmatchcase(host.lower(), pattern.lower()):
                return target
        return None


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
