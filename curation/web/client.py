"""Fetch pictures from hosts that may be slow, broken or hostile: bounded in bytes, time, redirects and addresses."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from curation.verdicts import Fault
from curation.web.consent import ROBOTS_BYTES, Robots, header_refusal, tdm_refusal
from curation.web.guard import AddressRefused, GuardedResolver
from curation.web.outage import CONNECTION_FAULTS, Ledger
from curation.web.room import FIRST_SHARE, Room, Share

_HEALS = frozenset([Fault.CONNECTION_FAILED, Fault.TIMEOUT, Fault.TRUNCATED_BODY, Fault.HTTP_5XX, Fault.HTTP_429])
_HOST_FAILURES = 10  # in a row at connection level, then the host is left alone for the rest of the task
_SMALL_BYTES = 1 << 20  # tdmrep.json
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRY_AFTER_S = 20.0  # a host that asks for more gets its pictures fetched by another run


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
    memory_bytes: int
    deadline_s: float | None
    proxy: str | None


class Response(NamedTuple):
    """What came of one URL: a body, or the fault. `share` is the room that the body takes until it is released."""

    fault: Fault | None = None
    body: bytes = b""
    status: int | None = None
    final_url: str | None = None
    etag: str | None = None
    consent: str | None = None
    fetch_ms: int | None = None
    share: Share | None = None


class _Refused(Exception):
    def __init__(self, fault: Fault, status: int | None = None, consent: str | None = None, wait_s: float = 0) -> None:
        self.fault, self.status, self.consent, self.wait_s = fault, status, consent, wait_s


class _Host:
    def __init__(self, connections: int) -> None:
        self.slots = asyncio.Semaphore(connections)
        self.next_start = 0.0
        self.failures = 0
        self.robots: asyncio.Task[Robots | Fault] | None = None
        self.tdm: asyncio.Task[bytes] | None = None


class Fetcher:
    """One for a task, used within one event loop, as an async context manager."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._token = limits.agent.partition("/")[0]
        self._slots = asyncio.Semaphore(limits.connections)
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(limits.per_host))
        self._ledger = Ledger()
        self._room = Room(limits.memory_bytes)
        self._ends = time.monotonic() + limits.deadline_s if limits.deadline_s is not None else math.inf

    async def __aenter__(self) -> Fetcher:
        self._resolver = GuardedResolver(self._limits.connect_to, URL(self._limits.proxy or "").host)
        connector = aiohttp.TCPConnector(resolver=self._resolver, limit=0, ttl_dns_cache=600, use_dns_cache=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            # pictures are compressed as they are; whoever compresses them again is read all the same, see _inflated
            headers={
                "User-Agent": self._limits.agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            timeout=aiohttp.ClientTimeout(),  # ours stands still while a body waits for room, see _answer
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Response:
        """Fetch one URL, with retries for what may heal. Raises OutageError when nothing can be reached at all."""
        started = time.monotonic()
        place = self._ledger.open()
        response = Response(Fault.BAD_HTTP)
        host = url.split("/")[2] if url.count("/") >= 2 else url
        try:
            for attempt in range(1, self._limits.attempts + 1):
                try:
                    response = await self._redirected(url)
                    break
                except _Refused as err:
                    response = Response(err.fault, status=err.status, consent=err.consent)
                    if err.fault not in _HEALS or attempt == self._limits.attempts or err.wait_s > _RETRY_AFTER_S:
                        break
                    await asyncio.sleep(max(err.wait_s, random.uniform(0.2, 0.6) * 2**attempt))
        except ValueError:
            pass  # a URL, the row's or one that it redirects to, that is none
        finally:
            self._ledger.close(place, host, response.fault)
        self._ledger.check()
        return response._replace(fetch_ms=int((time.monotonic() - started) * 1000))

    def check_reached(self) -> None:
        """Raise OutageError when, now that all is done, no host was reached; for shards too small for a window."""
        self._ledger.check_all()

    async def _redirected(self, url: str) -> Response:
        current = url
        for _ in range(self._limits.max_redirects + 1):
            host = self._hosts[urlsplit(current).netloc]
            await self._check_robots(current, host)
            async with self._paced(host):
                response, location = await self._once(current, host)
            if location is None:
                return response if current == url else response._replace(final_url=current)
            current = urljoin(current, location)
            if urlsplit(current).scheme not in ("http", "https"):
                raise _Refused(Fault.BAD_HTTP, response.status)
        raise _Refused(Fault.TOO_MANY_REDIRECTS)

    async def _once(self, url: str, host: _Host) -> tuple[Response, str | None]:
        """One picture request: the response with its body, or where it redirects to."""
        share = await self._room.take(FIRST_SHARE)
        try:
            response, location = await self._picture(url, host, share)
        except BaseException:
            share.release()
            raise
        if location is not None:
            share.release()
        return response, location

    async def _picture(self, url: str, host: _Host, share: Share) -> tuple[Response, str | None]:
        async with self._answer(url, host) as (answer, clock):
            status = answer.status
            if status in _REDIRECTS and "Location" in answer.headers:
                return Response(status=status), answer.headers["Location"]
            if status >= 300 or status == 204:
                raise _Refused(_status_fault(status), status, wait_s=_retry_after(answer.headers.get("Retry-After")))
            await self._check_headers(url, host, answer)
            announced = answer.content_length or 0
            if announced <= self._limits.max_bytes:
                left = (clock.when() or 0) - self._now()
                clock.reschedule(None)
                await share.grow(announced)
                clock.reschedule(self._now() + left)
            body = await self._body(answer, self._limits.max_bytes, share)
            return Response(body=body, status=status, etag=answer.headers.get("ETag"), share=share), None

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, host: _Host) -> AsyncIterator[tuple[aiohttp.ClientResponse, asyncio.Timeout]]:
        """The response to a GET, head read, and its clock; every failure, also while its body is read, as _Refused."""
        status = None
        try:
            target = URL(url, encoded=True)
            headers = {"Host": target.host_port_subcomponent or ""}
            instead = self._resolver.literal_target(target.host or "")
            if instead is not None:
                target = target.with_host(instead[0]).with_port(instead[1])
            async with (
                asyncio.timeout(self._limits.timeout_s) as clock,
                self._session.get(target, headers=headers, allow_redirects=False, proxy=self._limits.proxy) as answer,
            ):
                host.failures = 0
                status = answer.status
                yield answer, clock
        except AddressRefused as err:
            raise _Refused(Fault.ADDRESS_REFUSED, status) from err
        except aiohttp.ClientConnectorDNSError as err:
            host.failures += 1
            raise _Refused(Fault.DNS_FAILED, status) from err
        except aiohttp.ClientSSLError as err:
            raise _Refused(Fault.TLS_FAILED, status) from err
        except TimeoutError as err:
            host.failures += 1
            raise _Refused(Fault.TIMEOUT, status) from err
        except aiohttp.ClientPayloadError as err:
            raise _Refused(Fault.TRUNCATED_BODY, status) from err
        except (aiohttp.ClientResponseError, ValueError) as err:
            raise _Refused(Fault.BAD_HTTP, status) from err
        except (aiohttp.ClientError, OSError) as err:
            if status is not None:
                raise _Refused(Fault.TRUNCATED_BODY, status) from err
            host.failures += 1
            raise _Refused(Fault.CONNECTION_FAILED) from err

    async def _body(self, answer: aiohttp.ClientResponse, limit: int, share: Share | None = None) -> bytes:
        if (answer.content_length or 0) > limit:
            raise _Refused(Fault.TOO_LARGE, answer.status)
        body = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > limit:
                raise _Refused(Fault.TOO_LARGE, answer.status)
            if share is not None:
                share.exceed(len(body))
        plain = _inflated(bytes(body), answer.headers.get("Content-Encoding", ""), limit, answer.status)
        if share is not None:
            share.exceed(len(plain))
        return plain

    async def _check_robots(self, url: str, host: _Host) -> None:
        if not self._limits.respect_robots:
            return
        if host.robots is None:
            self._check_suspended(host)
            host.robots = asyncio.create_task(self._robots(url))
        asked = host.robots
        rules = await asked
        if isinstance(rules, Fault):
            # the picture can't be had either; naming the cause lets an outage show, and a retry asks again
            if host.robots is asked:
                host.robots = None
                host.failures += rules in CONNECTION_FAULTS
            raise _Refused(rules)
        refusal = rules.refusal(url)
        if refusal:
            raise _Refused(Fault.ROBOTS_DISALLOWED, consent=refusal)

    async def _check_headers(self, url: str, host: _Host, answer: aiohttp.ClientResponse) -> None:
        limits = self._limits
        if limits.respect_headers:
            refusal = header_refusal(answer.headers.getall("X-Robots-Tag", []), limits.directives, self._token)
            if refusal:
                raise _Refused(Fault.OPT_OUT_HEADER, answer.status, refusal)
        if limits.respect_tdm:
            if host.tdm is None:
                host.tdm = asyncio.create_task(self._tdmrep(url))
            headers = {name.lower(): value for name, value in answer.headers.items()}
            refusal = tdm_refusal(headers, await host.tdm, url)
            if refusal:
                raise _Refused(Fault.OPT_OUT_TDM, answer.status, refusal)

    async def _robots(self, url: str) -> Robots | Fault:
        """The host's robots.txt, or the fault for which the host could not be asked."""
        current = urljoin(url, "/robots.txt")
        for _ in range(6):  # RFC 9309, 2.3.1.2: at least five redirects
            try:
                async with self._slots, self._answer(current, _Host(1)) as (answer, _):
                    if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                        body = b"" if answer.status != 200 else await self._head(answer, ROBOTS_BYTES)
                        return Robots(answer.status, body, self._token)
                    current = urljoin(current, answer.headers["Location"])
            except _Refused as err:
                if err.status is None:
                    return err.fault
                return Robots(err.status, b"", self._token)
            if urlsplit(current).scheme not in ("http", "https"):
                break
        return Robots(404, b"", self._token)

    async def _head(self, answer: aiohttp.ClientResponse, limit: int) -> bytes:
        """The first bytes of a body; what lies beyond the limit is not read (RFC 9309, 2.5: at least 500 KiB)."""
        body = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) >= limit:
                break
        return _inflated(bytes(body[:limit]), answer.headers.get("Content-Encoding", ""), limit, answer.status)

    async def _tdmrep(self, url: str) -> bytes:
        try:
            async with self._answer(urljoin(url, "/.well-known/tdmrep.json"), _Host(1)) as (answer, _):
                return await self._body(answer, _SMALL_BYTES) if answer.status == 200 else b""
        except _Refused:
            return b""

    def _check_suspended(self, host: _Host) -> None:
        if host.failures >= _HOST_FAILURES:
            raise _Refused(Fault.HOST_SUSPENDED)

    @contextlib.asynccontextmanager
    async def _paced(self, host: _Host) -> AsyncIterator[None]:
        async with host.slots:
            self._check_suspended(host)  # not before: thousands may have queued up while the host failed
            if self._limits.min_delay_s:
                now = time.monotonic()
                wait, host.next_start = host.next_start - now, max(now, host.next_start) + self._limits.min_delay_s
                if wait > 0:
                    await asyncio.sleep(wait)
            async with self._slots:
                if time.monotonic() > self._ends:
                    raise _Refused(Fault.DEADLINE)
                yield

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _inflated(body: bytes, encoding: str, limit: int, status: int) -> bytes:
    encoding = encoding.strip().lower()
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


def _retry_after(value: str | None) -> float:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3); 0 for none and for nonsense."""
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
