"""Fetch pictures from hosts that may be slow, broken or hostile: bounded in bytes, time, redirects and addresses."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import resource
import time
import zlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from curation.verdicts import Fault
from curation.web.consent import ROBOTS_BYTES, Robots, header_refusal, tdm_refusal
from curation.web.guard import AddressRefused, GuardedResolver
from curation.web.hosts import Host, Hosts, Suspended
from curation.web.outage import Ledger
from curation.web.room import FIRST_SHARE, Room, Share
from curation.web.throttle import Throttle
from curation.web.transfers import Answer, TransferError, Transfers
from curation.web.urls import canonical

_TRIED_AGAIN = frozenset([Fault.CONNECTION_FAILED, Fault.TIMEOUT, Fault.TRUNCATED_BODY, Fault.HTTP_5XX, Fault.HTTP_429])
_HELD_AGAINST_HOST = frozenset(
    [Fault.CONNECTION_FAILED, Fault.TIMEOUT, Fault.DNS_FAILED, Fault.TLS_FAILED, Fault.HTTP_5XX, Fault.HTTP_429]
)
_NOT_ASKED = frozenset([Fault.DEADLINE, Fault.BYTE_BUDGET, Fault.HOST_SUSPENDED])
_TDMREP_BYTES = 1 << 20
_DRAINED_BYTES = 64 << 10  # of the body of a 404 or a redirect: less than what a new connection costs
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRY_AFTER_S = 20.0  # a host that asks for more gets its pictures fetched by another run
_SPARE_FILES = 256  # of the process's open files, for all but connections


class Limits(NamedTuple):
    """Bounds and manners of a fetcher."""

    agent: str
    connections: int
    per_host: int
    min_delay_s: float
    timeout_s: float
    attempts: int
    max_bytes: int
    max_redirects: int
    directives: frozenset[str]
    respect_robots: bool
    respect_headers: bool
    respect_tdm: bool
    connect_to: dict[str, str]
    room_bytes: int
    deadline_s: float | None
    budget_bytes: int | None
    proxy: str | None
    ca_file: str | None


class Response(NamedTuple):
    """What came of one URL: a body, or the fault. `share` is the room that the body takes until it is released."""

    fault: Fault | None = None
    body: bytes | bytearray = b""
    status: int | None = None
    final_url: str | None = None
    etag: str | None = None
    consent: str | None = None
    fetch_ms: int | None = None
    share: Share | None = None


class _Refused(Exception):
    def __init__(self, fault: Fault, status: int | None = None, consent: str | None = None, wait_s: float = 0) -> None:
        self.fault, self.status, self.consent, self.wait_s = fault, status, consent, wait_s


class _CanNotWaitError(Exception):
    """An HTTP/2 stream would have to wait for room, and can't: what the server sends meanwhile is buffered."""


class Fetcher:
    """One for a task, used within one event loop, as an async context manager."""

    def __init__(self, limits: Limits) -> None:
        connections = min(limits.connections, _open_files())
        self._limits = limits
        self._token = limits.agent.partition("/")[0]
        self._throttle = Throttle(connections)
        self._hosts = Hosts(limits.per_host, limits.min_delay_s)
        self._ledger = Ledger()
        # a body that arrives compressed is held twice while it is inflated
        self._room = Room(limits.room_bytes, lane=2 * limits.max_bytes)
        self._ends = time.monotonic() + limits.deadline_s if limits.deadline_s is not None else math.inf
        self._received = 0

    @property
    def in_flight(self) -> tuple[int, int]:
        """Requests in flight, and how many there may be by now."""
        return self._throttle.in_flight, int(self._throttle.limit)

    async def __aenter__(self) -> Fetcher:
        self._resolver = GuardedResolver(self._limits.connect_to)
        self._transfers = Transfers(
            self._limits.agent, self._limits.connections, self._limits.proxy, self._limits.ca_file
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._transfers.close()
        self._resolver.close()

    async def fetch(self, url: str) -> Response:
        """Fetch one URL, with retries for what may heal. Raises OutageError when nothing can be reached at all."""
        return await self._tried(url, with_body=True)

    async def ask(self, url: str) -> Response:
        """Ask whether a URL may still be used: robots.txt, headers and reservations as for a fetch, but no body.

        The response's fault is a refusal with its evidence, any other failure, or None: it stands there, nothing
        refuses.
        """
        return await self._tried(url, with_body=False)

    def check_reached(self) -> None:
        """Raise OutageError when, now that all is done, no host was reached; for shards too small for a window."""
        self._ledger.check_all()

    async def _tried(self, url: str, *, with_body: bool) -> Response:
        started = time.monotonic()
        place = self._ledger.open()
        response = Response(Fault.BAD_HTTP)
        try:
            for attempt in range(1, self._limits.attempts + 1):
                try:
                    response = await self._redirected(url, with_body)
                    break
                except _Refused as err:
                    if attempt == 1 or err.fault not in _NOT_ASKED:  # what the first attempt met tells more
                        response = Response(err.fault, status=err.status, consent=err.consent)
                    if err.fault not in _TRIED_AGAIN or attempt == self._limits.attempts or err.wait_s > _RETRY_AFTER_S:
                        break
                    await asyncio.sleep(max(err.wait_s, random.uniform(0.2, 0.6) * 2**attempt))
        except ValueError:
            pass  # a URL, the row's or one that it redirects to, that is none
        finally:
            self._ledger.close(place, url.split("/")[2] if url.count("/") >= 2 else url, response.fault)
        self._ledger.check()
        return response._replace(fetch_ms=int((time.monotonic() - started) * 1000))

    async def _redirected(self, url: str, with_body: bool) -> Response:
        current = url
        for _ in range(self._limits.max_redirects + 1):
            self._check_budgets()
            with self._hosts.using(_origin(current)) as host:
                await self._check_robots(current, host)
                if self._limits.respect_tdm and self._limits.respect_robots:
                    await self._tdm(current, host)  # now, so that no picture has to wait for it half-way
                async with self._paced(host):
                    response, location = await self._once(current, host, with_body)
            if location is None:
                return response if current == url else response._replace(final_url=current)
            try:
                current = _redirect(current, location)
            except ValueError:
                raise _Refused(Fault.BAD_HTTP, response.status) from None
        raise _Refused(Fault.TOO_MANY_REDIRECTS)

    async def _once(self, url: str, host: Host, with_body: bool) -> tuple[Response, str | None]:
        """One picture request: the response with its body, or where it redirects to."""
        share = await self._room.take(FIRST_SHARE)
        try:
            try:
                response, location = await self._picture(url, host, share, with_body)
            except _CanNotWaitError:
                response, location = await self._picture(url, host, share, with_body, http2=False)
        except BaseException:  # a cancelled request gives its room back too
            share.release()
            raise
        if response.share is None:
            share.release()
        return response, location

    async def _picture(
        self, url: str, host: Host, share: Share, with_body: bool, *, http2: bool = True
    ) -> tuple[Response, str | None]:
        async with self._answer(url, host, http2=http2) as (answer, clock):
            status = answer.status
            location = answer.header("location")
            if status >= 300 or status == 204:
                await answer.discard(_DRAINED_BYTES)
                if status in _REDIRECTS and location:
                    return Response(status=status), location
                raise self._bad_status(status, answer, host)
            await self._check_headers(url, host, answer)
            etag = answer.header("etag") or None
            if not with_body:
                return Response(status=status, etag=etag), None
            body = await self._body(answer, share, clock, self._limits.max_bytes)
            return Response(body=body, status=status, etag=etag, share=share), None

    def _bad_status(self, status: int, answer: Answer, host: Host) -> _Refused:
        wait_s = _retry_after(answer.header("retry-after")) if status in (429, 503) else 0.0
        if wait_s > _RETRY_AFTER_S:
            host.leave_alone(wait_s)
        elif wait_s:
            host.rest(wait_s)
        return _Refused(_status_fault(status), status, wait_s=wait_s)

    @contextlib.asynccontextmanager
    async def _answer(
        self, url: str, host: Host, *, http2: bool = True
    ) -> AsyncIterator[tuple[Answer, asyncio.Timeout]]:
        """The answer to a GET, head read, and its clock; every failure, also while its body is read, as _Refused.

        What this tells about the host's health, and about ours, is noted.
        """
        status = None
        fault: Fault | None = None
        try:
            async with asyncio.timeout(self._limits.timeout_s) as clock:
                pinned = None
                name = urlsplit(url).hostname
                if not name:
                    raise ValueError("no host")
                if self._limits.proxy:
                    self._resolver.check_literal(name)
                else:
                    pinned = await self._resolver.pin(name)
                async with self._transfers.get(url, pinned, http2=http2) as answer:
                    status = answer.status
                    yield answer, clock
        except AddressRefused as err:
            fault = Fault.ADDRESS_REFUSED
            raise _Refused(fault, status) from err
        except TransferError as err:
            fault = err.fault
            raise _Refused(fault, status) from err
        except TimeoutError as err:
            fault = Fault.TIMEOUT
            raise _Refused(fault, status) from err
        except ValueError as err:
            fault = Fault.BAD_HTTP
            raise _Refused(fault, status) from err
        except OSError as err:
            fault = Fault.DNS_FAILED
            raise _Refused(fault, status) from err
        except _Refused as err:
            fault = err.fault
            raise
        finally:
            self._throttle.note(congested=fault is Fault.TIMEOUT and host.answered)
            if fault is not None and fault in _HELD_AGAINST_HOST:
                host.failed()
            elif status is not None:
                host.reached()

    async def _body(
        self, answer: Answer, share: Share, clock: asyncio.Timeout, limit: int, *, cut: bool = False
    ) -> bytes | bytearray:
        """The body, inflated where it came compressed; of one longer than the limit the start, or too_large."""
        if answer.announced > limit and not cut:
            raise _Refused(Fault.TOO_LARGE, answer.status)
        await self._more(answer, share, clock, min(answer.announced, limit))
        while not await answer.read(min(share.n_bytes, limit)):
            if share.n_bytes >= limit:
                if cut:
                    break
                raise _Refused(Fault.TOO_LARGE, answer.status)
            await self._more(answer, share, clock, min(2 * share.n_bytes, limit))
        self._received += len(answer.body)
        encoding = answer.header("content-encoding").lower().strip()
        if encoding in ("", "identity"):
            share.shrink(len(answer.body))
            return answer.body
        await self._waiting(clock, share.reach(len(answer.body) + limit))  # complete: nothing flows meanwhile
        plain = _inflated(answer.body, encoding, limit, answer.status)
        share.shrink(len(plain))
        return plain

    async def _more(self, answer: Answer, share: Share, clock: asyncio.Timeout, n_bytes: int) -> None:
        if answer.http_version == "HTTP/2" and not share.can_reach(n_bytes):
            raise _CanNotWaitError
        await self._waiting(clock, share.reach(n_bytes))

    async def _waiting(self, clock: asyncio.Timeout, room: object) -> None:
        """Wait for room with the clock standing still: the host is not to blame."""
        now = asyncio.get_running_loop().time
        left = (clock.when() or 0) - now()
        clock.reschedule(None)
        await room  # type: ignore[misc]
        clock.reschedule(now() + left)

    def _check_budgets(self) -> None:
        if time.monotonic() > self._ends:
            raise _Refused(Fault.DEADLINE)
        if self._limits.budget_bytes is not None and self._received >= self._limits.budget_bytes:
            raise _Refused(Fault.BYTE_BUDGET)

    async def _check_robots(self, url: str, host: Host) -> None:
        if not self._limits.respect_robots:
            return
        if host.robots is None:
            self._check_suspended(host)
            host.robots = asyncio.create_task(self._robots(url, host))
        asked = host.robots
        rules = await asyncio.shield(asked)
        if isinstance(rules, Fault):
            # the picture can't be had either; naming the cause lets an outage show, and a retry asks again
            if host.robots is asked:
                host.robots = None
            raise _Refused(rules)
        refusal = rules.refusal(url)
        if refusal:
            raise _Refused(Fault.ROBOTS_DISALLOWED, consent=refusal)

    async def _check_headers(self, url: str, host: Host, answer: Answer) -> None:
        limits = self._limits
        if limits.respect_headers:
            refusal = header_refusal(answer.all_headers("x-robots-tag"), limits.directives, self._token)
            if refusal:
                raise _Refused(Fault.OPT_OUT_HEADER, answer.status, refusal)
        if limits.respect_tdm:
            refusal = tdm_refusal(dict(reversed(answer.headers)), await self._tdm(url, host), url)
            if refusal:
                raise _Refused(Fault.OPT_OUT_TDM, answer.status, refusal)

    async def _robots(self, url: str, host: Host) -> Robots | Fault:
        """The host's robots.txt, or the fault for which the host could not be asked."""
        current = urljoin(url, "/robots.txt")
        for _ in range(6):  # RFC 9309, 2.3.1.2: at least five redirects
            try:
                async with self._throttle:
                    answer, body = await self._small(current, host, ROBOTS_BYTES)
            except _Refused as err:
                return err.fault if err.status is None else Robots(err.status, b"", self._token)
            if answer.status not in _REDIRECTS or not answer.header("location"):
                host.rules_bytes += len(body)
                return Robots(answer.status, body, self._token)
            try:
                current = _redirect(current, answer.header("location"))
            except ValueError:
                break
        return Robots(404, b"", self._token)

    async def _tdm(self, url: str, host: Host) -> bytes:
        if host.tdm is None:
            host.tdm = asyncio.create_task(self._tdmrep(url, host))
        return await asyncio.shield(host.tdm)

    async def _tdmrep(self, url: str, host: Host) -> bytes:
        # where robots.txt is not asked, a picture holds the slot and waits, since its host may be dead
        slot = self._throttle if self._limits.respect_robots else contextlib.nullcontext()
        try:
            async with slot:
                _, body = await self._small(urljoin(url, "/.well-known/tdmrep.json"), host, _TDMREP_BYTES)
        except _Refused:
            return b""
        host.rules_bytes += len(body)
        return body

    async def _small(self, url: str, host: Host, limit: int) -> tuple[Answer, bytes]:
        """A response and, of a 200, its body up to the limit (RFC 9309, 2.5: of robots.txt at least 500 KiB)."""
        share = await self._room.take(FIRST_SHARE)
        try:
            async with self._answer(url, host) as (answer, clock):
                if answer.status != 200:
                    await answer.discard(_DRAINED_BYTES)
                    return answer, b""
                return answer, bytes(await self._body(answer, share, clock, limit, cut=True))
        finally:
            share.release()

    def _check_suspended(self, host: Host) -> None:
        try:
            host.check()
        except Suspended:
            raise _Refused(Fault.HOST_SUSPENDED) from None

    @contextlib.asynccontextmanager
    async def _paced(self, host: Host) -> AsyncIterator[None]:
        try:
            async with host.turn(self._ends) as in_time:
                if not in_time:
                    raise _Refused(Fault.DEADLINE)
                async with self._throttle:
                    self._check_budgets()
                    yield
        except Suspended:
            raise _Refused(Fault.HOST_SUSPENDED) from None


def _redirect(url: str, location: str) -> str:
    """Where a Location header leads, escaped as a URL must be. Raises ValueError when to no http URL."""
    target = urljoin(url, location)
    if not target.isascii() or not target.isprintable() or " " in target:
        target = canonical(target.encode("latin-1").decode("utf-8", "replace"))
    if urlsplit(target).scheme not in ("http", "https"):
        raise ValueError(target)
    return target


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _open_files() -> int:
    """How many connections the process may hold; the soft limit is raised as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 16
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, (soft if soft != resource.RLIM_INFINITY else 1 << 20) - _SPARE_FILES)


def _inflated(body: bytes | bytearray, encoding: str, limit: int, status: int) -> bytes | bytearray:
    encoding = encoding.strip()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _Refused(Fault.BAD_HTTP, status)  # we asked for identity
    try:
        inflater = zlib.decompressobj(wbits=47 if "gzip" in encoding else 15)
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as err:
        raise _Refused(Fault.BAD_HTTP, status) from err
    if len(plain) > limit:
        raise _Refused(Fault.TOO_LARGE, status)
    if not inflater.eof:
        raise _Refused(Fault.TRUNCATED_BODY, status)
    return plain


def _status_fault(status: int) -> Fault:
    named = {401: Fault.HTTP_401, 403: Fault.HTTP_403, 404: Fault.HTTP_404, 410: Fault.HTTP_410, 429: Fault.HTTP_429}
    if status in named:
        return named[status]
    if status >= 500:
        return Fault.HTTP_5XX
    return Fault.HTTP_4XX if status >= 400 else Fault.BAD_HTTP


def _retry_after(value: str) -> float:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3); 0 for none and for nonsense."""
    if not value:
        return 0.0
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
