import asyncio
import itertools
import math
import time

import pytest

from curation.web import hosts
from curation.web.hosts import FAILURES, Host, Hosts, Suspended


def failing_host(monkeypatch: pytest.MonkeyPatch) -> tuple[Host, list[float]]:
    """A host that has just been suspended, and the clock that it goes by."""
    clock = [1000.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    host = Host(8, 0.0)
    for _ in range(FAILURES):
        host.check()
        host.failed()
    return host, clock


def test_the_breaker_opens_lets_one_try_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    host, clock = failing_host(monkeypatch)
    with pytest.raises(Suspended):
        host.check()
    clock[0] += hosts.SUSPENDED_S + 1
    host.check()  # one is let through
    with pytest.raises(Suspended):
        host.check()  # the others wait for what comes of it
    host.reached()
    host.check()
    for _ in range(FAILURES - 1):
        host.failed()
    host.check()


def test_a_host_that_fails_again_is_left_alone_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    host, clock = failing_host(monkeypatch)
    clock[0] += hosts.SUSPENDED_S + 1
    host.check()
    host.failed()
    clock[0] += hosts.SUSPENDED_S + 1
    with pytest.raises(Suspended):
        host.check()
    clock[0] += hosts.SUSPENDED_S
    host.check()


def starts(host: Host, n: int, ends: float = math.inf) -> list[float]:
    """When, in seconds from now, each of n requests gets its turn; none for those that come too late."""

    async def scenario() -> list[float]:
        begin = time.monotonic()

        async def one() -> float | None:
            async with host.turn(begin + ends) as in_time:
                return time.monotonic() - begin if in_time else None

        return [start for start in await asyncio.gather(*(one() for _ in range(n))) if start is not None]

    return asyncio.run(scenario())


def test_the_least_delay_between_requests() -> None:
    found = starts(Host(8, 0.05), 5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert min(gaps) >= 0.045


def test_retry_after_holds_for_the_whole_host() -> None:
    host = Host(8, 0.0)
    host.rest(0.2)
    assert min(starts(host, 3)) >= 0.19


def test_who_would_come_after_the_end_does_not_wait() -> None:
    began = time.monotonic()
    assert 1 <= len(starts(Host(8, 0.5), 1000, ends=2)) <= 5  # four or five, where the machine does not pause
    assert time.monotonic() - began < 60  # they would have waited 500 s


def test_idle_hosts_are_forgotten_busy_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_KEPT_HOSTS", 10)
    known = Hosts(1, 0.0)
    with known.using("http://busy") as busy:
        for n in range(100):
            with known.using(f"http://{n}"):
                pass
        assert len(known._known) <= 11
        with known.using("http://busy") as same, known.using("http://99") as kept, known.using("http://99") as again:
            assert same is busy
            assert kept is again


def test_long_rules_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_KEPT_RULES_BYTES", 1000)
    known = Hosts(1, 0.0)
    for n in range(256):
        with known.using(f"http://{n}") as host:
            host.rules_bytes = 100
    assert sum(host.rules_bytes for host in known._known.values()) <= 1000 + 64 * 100
