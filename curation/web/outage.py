"""Tell an outage from dead links: when every request of a stretch fails to connect, it is us and not the hosts."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from curation.errors import OutageError
from curation.verdicts import Fault

CONNECTION_FAULTS = frozenset([Fault.DNS_FAILED, Fault.CONNECTION_FAILED, Fault.TLS_FAILED, Fault.TIMEOUT])
_NEUTRAL = frozenset(
    [Fault.HOST_SUSPENDED, Fault.ADDRESS_REFUSED, Fault.DEADLINE, Fault.BYTE_BUDGET]
)  # no word about the network
_WINDOW = 50  # requests in a row
_WINDOW_HOSTS = 5
# Once something was reached, more hosts must fail in a row: with 40 % of all hosts dead (old URL lists), 5 of them in
# a row are common in a shard of 10,000 URLs, 30 are not (0.4 ** 30 = 1e-12)
_LATER_HOSTS = 30
_ALL, _ALL_HOSTS = 20, 3  # a shard too small for the window: every single request


class Ledger:
    """Outcomes in the order in which requests were started.

    Not in the order in which they ended: failures may be faster than pictures (refused at the start of a shard) or
    slower (timeouts at its end), and either would look like an outage.
    """

    def __init__(self) -> None:
        self._opened = 0
        self._settled = 0  # all requests before this one have ended
        self._ended: dict[int, tuple[str, Fault | None]] = {}
        self._lost: list[_Lost] = []  # since the last one that reached a host
        self._lost_hosts: set[str] = set()
        self._reached = False

    def open(self) -> int:
        """Note that a request starts; returns its place."""
        self._opened += 1
        return self._opened - 1

    def close(self, place: int, host: str, fault: Fault | None) -> None:
        """Note what came of it. Any response, also a 404, means that the host was reached."""
        self._ended[place] = (host, fault)
        while self._settled in self._ended:
            host, fault = self._ended.pop(self._settled)
            self._settled += 1
            if fault in _NEUTRAL:
                continue
            if fault is not None and fault in CONNECTION_FAULTS:
                self._lost.append(_Lost(host, fault))
                self._lost_hosts.add(host)
            else:
                self._lost.clear()
                self._lost_hosts.clear()
                self._reached = True

    def check(self) -> None:
        """Raise OutageError when a whole window of requests failed to connect."""
        enough = _LATER_HOSTS if self._reached else _WINDOW_HOSTS
        if len(self._lost) >= _WINDOW and len(self._lost_hosts) >= enough:
            raise self._outage()

    def check_all(self) -> None:
        """Raise OutageError when every request there was failed to connect, and they were not just a few."""
        if not self._reached and len(self._lost) >= _ALL and len(self._lost_hosts) >= _ALL_HOSTS:
            raise self._outage()

    def _outage(self) -> OutageError:
        kinds = Counter(lost.fault for lost in self._lost)
        return OutageError(
            f"no host can be reached: {len(self._lost)} URLs of {len(self._lost_hosts)} hosts in a row failed ("
            + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
            + "); check the network, DNS and proxy"
        )


class _Lost(NamedTuple):
    host: str
    fault: Fault
