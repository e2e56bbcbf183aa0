"""Which addresses may be connected to: public ones, and those that the operator names."""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Python's is_global has these as public: IPv4-compatible addresses, local-use NAT64, site-local; all three lead inside
_INSIDE = [ipaddress.ip_network(network) for network in ("::/96", "64:ff9b:1::/48", "fec0::/10")]
_LOOKUPS = 64  # at once; asyncio's own pool has six threads on two cores, and dead names take seconds each
_KEPT_S = 600.0
_KEPT_NAMES = 20_000
_TRIED_ADDRESSES = 4


class AddressRefused(Exception):
    """The host has an address that strangers must not make us connect to."""


class Pinned(NamedTuple):
    """Where a host is reached: checked addresses, and the port where it is not the URL's own."""

    addresses: tuple[str, ...]
    port: int | None = None


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


class GuardedResolver:
    """Resolves a name, checks every address, and keeps the answer for ten minutes; used within one event loop.

    connect_to  host glob -> address:port to connect to instead; lifts the guard for those hosts and no others
    """

    def __init__(self, connect_to: Mapping[str, str]) -> None:
        self._connect_to = dict(connect_to)
        self._pool = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="dns")
        self._known: OrderedDict[str, tuple[float, Pinned]] = OrderedDict()
        self._asked: dict[str, asyncio.Task[Pinned]] = {}

    async def pin(self, host: str) -> Pinned:
        """Addresses of a host, every one checked. Raises AddressRefused, OSError (socket.gaierror: no such name)."""
        target = self._target(host)
        if target is not None:
            address, _, port = target.rpartition(":")
            return Pinned((address.strip("[]"),), int(port))
        known = self._known.get(host)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        if host not in self._asked:
            self._asked[host] = asyncio.create_task(self._resolved(host))
            self._asked[host].add_done_callback(lambda _: self._asked.pop(host, None))
        # shielded: of several requests that wait for a name one may run out of time
        return await asyncio.shield(self._asked[host])

    async def _resolved(self, host: str) -> Pinned:
        found = await asyncio.get_running_loop().run_in_executor(self._pool, _addresses, host)
        refused = [address for address in found if not is_public(address)]
        if refused:
            raise AddressRefused(f"{host} is {refused[0]}")
        pinned = Pinned(tuple(found[:_TRIED_ADDRESSES]))
        self._known[host] = (time.monotonic() + _KEPT_S, pinned)
        self._known.move_to_end(host)
        if len(self._known) > _KEPT_NAMES:
            self._known.popitem(last=False)
        return pinned

    def check_literal(self, host: str) -> None:
        """For requests that a proxy resolves: raise AddressRefused for a host that is itself a private address."""
        try:
            public = is_public(host.strip("[]"))
        except ValueError:
            return
        if not public and self._target(host) is None:
            raise AddressRefused(host)

    def close(self) -> None:
        """Let go of look-ups that are under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _target(self, host: str) -> str | None:
        for pattern, target in self._connect_to.items():
            # brackets of an IPv6 address are no set of characters
            if host.lower() == pattern.lower() or fnmatch.fnmatchcase(host.lower(), pattern.lower()):
                return target
        return None


def _addresses(host: str) -> list[str]:
    """Addresses in the system's order of preference. Raises OSError."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except UnicodeError as err:  # a label of more than 63 characters
        raise socket.gaierror(socket.EAI_NONAME, str(err)) from err
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
