"""What is known of each host: its pace, its health, and what its robots.txt and tdmrep.json say."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator

from curation.verdicts import Fault
from curation.web.consent import Robots

FAILURES = 10  # in a row, then the host is left alone for a while
SUSPENDED_S = 60.0  # at first; twice as long each time that the host is tried and fails again
_LONGEST_S = 3600.0
_KEPT_HOSTS = 4096  # idle ones; a page's pictures stand together in a crawl, so an evicted host seldom comes back
_KEPT_RULES_BYTES = 4 << 20  # as sent; parsed they take about 20 times as much


class Suspended(Exception):
    """The host failed too often, or asked to be left alone: no request is made."""


class Host:
    """One host: circuit breaker, pace, and its rules once asked for."""

    def __init__(self, connections: int, min_delay_s: float) -> None:
        self.robots: asyncio.Task[Robots | Fault] | None = None
        self.tdm: asyncio.Task[bytes] | None = None
        self.answered = False
        self.in_use = 0
        self.rules_bytes = 0  # of robots.txt and tdmrep.json
        self._slots = asyncio.Semaphore(connections)
        self._min_delay_s = min_delay_s
        self._next_start = 0.0
        self._failures = 0
        self._suspended_until = 0.0
        self._suspension_s = SUSPENDED_S

    def failed(self) -> None:
        """Note a failure to connect, a timeout, a 5xx or a 429."""
        self._failures += 1
        if self._failures >= FAILURES:
            self.leave_alone(self._suspension_s)
            self._suspension_s = min(2 * self._suspension_s, _LONGEST_S)

    def reached(self) -> None:
        """Note a response that is no sign of trouble: whatever was held against the host is forgotten."""
        self.answered = True
        self._failures, self._suspended_until, self._suspension_s = 0, 0.0, SUSPENDED_S

    def rest(self, seconds: float) -> None:
        """Start nothing for so long: Retry-After is meant for all requests, not for the one that it answered."""
        self._next_start = max(self._next_start, time.monotonic() + seconds)

    def leave_alone(self, seconds: float) -> None:
        """Refuse requests for so long."""
        self._suspended_until = max(self._suspended_until, time.monotonic() + seconds)

    def check(self) -> None:
        """Raise Suspended while the host is left alone; when that is over, let one request through to try it."""
        if not self._suspended_until:
            return
        now = time.monotonic()
        if now < self._suspended_until:
            raise Suspended
        self._suspended_until = now + self._suspension_s

    @contextlib.asynccontextmanager
    async def turn(self, ends: float) -> AsyncIterator[bool]:
        """Wait for a turn by the host's pace; yields False, at once, where it would come after `ends`."""
        async with self._slots:
            self.check()  # not before: thousands may have queued up while the host failed
            now = time.monotonic()
            start = max(now, self._next_start)
            if start > ends:
                yield False
                return
            self._next_start = start + self._min_delay_s
            if start > now:
                await asyncio.sleep(start - now)
            yield True


class Hosts:
    """Hosts by scheme, name and port; of those not in use the latest few thousand are remembered."""

    def __init__(self, connections: int, min_delay_s: float) -> None:
        self._settings = connections, min_delay_s
        self._known: OrderedDict[str, Host] = OrderedDict()

    @contextlib.contextmanager
    def using(self, origin: str) -> Iterator[Host]:
        """The host, which is not forgotten meanwhile."""
        host = self._known.get(origin)
        if host is None:
            host = self._known[origin] = Host(*self._settings)
        self._known.move_to_end(origin)
        host.in_use += 1
        self._forget()
        try:
            yield host
        finally:
            host.in_use -= 1

    def _forget(self) -> None:
        if len(self._known) <= _KEPT_HOSTS and len(self._known) % 64:
            return
        rules = sum(host.rules_bytes for host in self._known.values())
        for origin, host in list(self._known.items()):
            if len(self._known) <= _KEPT_HOSTS and rules <= _KEPT_RULES_BYTES:
                return
            if not host.in_use:
                rules -= host.rules_bytes
                del self._known[origin]
