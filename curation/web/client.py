"""Fetch pictures from hosts that may be slow, broken or hostile: bounded in bytes, time, redirects and addresses."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from curation.errors import OutageError
from curation.verdicts import Fault
from curation.web.consent import Robots, header_refusal, tdm_refusal
from curation.web.guard import AddressRefused, GuardedResolver, check_literal

_HEALS = frozenset([Fault.CONNECTION_FAILED, Fault.TIMEOUT, Fault.TRUNCATED_BODY, Fault.HTTP_5XX, Fault.HTTP_429])
_CONNECTION = frozenset([Fault.DNS_FAILED, Fault.CONNECTION_FAILED, Fault.TLS_FAILED, Fault.TIMEOUT])
_HOST_FAILURES = 10  # in a row at connection level, then the host is left alone for the rest of the task
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


class Response(NamedTuple):
    """What came of one URL: a body, or the fault."""

    fault: Fault | None = None
    body: bytes = b""
    status: int | None = None
    final_url: str | None = None
    etag: str | None = None
    consent: str | None = None
    fetch_ms: int | None = None


class _Refused(Exception):
    def __init__(self, fault: Fault, status: int | None = None, consent: str | None = None, wait_s: float = 0) -> None:
        self.fault, self.status, self.consent, self.wait_s = fault, status, consent, wait_s


class _Host:
    def __init__(self, connections: int) -> None:
        self.slots = asyncio.Semaphore(connections)
        self.next_start = 0.0
        self.failures = 0
        self.robots: asyncio.Task[Robots] | None = None
        self.tdm: asyncio.Task[bytes] | None = None


class Fetcher:
    """One for a task, used within one event loop, as an async context manager."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._token = limits.agent.partition("/")[0]
        self._slots = asyncio.Semaphore(limits.connections)
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(limits.per_host))
        self._seen: Counter[str] = Counter()
        self._failed_hosts: set[str] = set()

    async def __aenter__(self) -> Fetcher:
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(self._limits.connect_to), limit=0, ttl_dns_cache=600, use_dns_cache=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": self._limits.agent, "Accept": "image/*,*/*;q=0.5"},
            timeout=aiohttp.ClientTimeout(total=self._limits.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Response:
        """Fetch one URL, with retries for what may heal. Raises OutageError when nothing can be reached at all."""
        started = time.monotonic()
        for attempt in range(1, self._limits.attempts + 1):
            try:
                response = await self._redirected(url)
                break
            except _Refused as err:
                response = Response(err.fault, status=err.status, consent=err.consent)
                if err.fault not in _HEALS or attempt == self._limits.attempts or err.wait_s > _RETRY_AFTER_S:
                    break
                await asyncio.sleep(max(err.wait_s, random.uniform(0.2, 0.6) * 2**attempt))
        self._watch(urlsplit(url).netloc, response.fault)
        return response._replace(fetch_ms=int((time.monotonic() - started) * 1000))

    def _watch(self, host: str, fault: Fault | None) -> None:
        """An outage is no verdict: when every host fails to connect, stop instead of calling all URLs dead."""
        if fault is Fault.HOST_SUSPENDED:
            return
        lost = fault in _CONNECTION
        self._seen["lost" if lost else "reached"] += 1
        if lost:
            self._seen[fault or ""] += 1
            self._failed_hosts.add(host)
        if self._seen["reached"] == 0 and self._seen["lost"] >= 20 and len(self._failed_hosts) >= 3:
            kinds = ", ".join(f"{n} {kind}" for kind, n in self._seen.most_common() if kind not in ("lost", "reached"))
            raise OutageError(
                f"no host could be reached: {self._seen['lost']} URLs of {len(self._failed_hosts)} hosts failed "
                f"({kinds}); check the network, DNS and proxy"
            )

    async def _redirected(self, url: str) -> Response:
        current = url
        for _ in range(self._limits.max_redirects + 1):
            host = self._hosts[urlsplit(current).netloc]
            if host.failures >= _HOST_FAILURES:
                raise _Refused(Fault.HOST_SUSPENDED)
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
        try:
            check_literal(urlsplit(url).hostname or "")
            async with self._session.get(URL(url, encoded=True), allow_redirects=False) as answer:
                host.failures = 0
                status = answer.status
                if status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    return Response(status=status), answer.headers["Location"]
                if status >= 300 or status == 204:
                    raise _Refused(
                        _status_fault(status), status, wait_s=_retry_after(answer.headers.get("Retry-After"))
                    )
                await self._check_headers(url, host, answer)
                body = await self._body(answer)
                return Response(body=body, status=status, etag=answer.headers.get("ETag")), None
        except AddressRefused as err:
            raise _Refused(Fault.ADDRESS_REFUSED) from err
        except aiohttp.ClientConnectorDNSError as err:
            host.failures += 1
            raise _Refused(Fault.DNS_FAILED) from err
        except aiohttp.ClientSSLError as err:
            raise _Refused(Fault.TLS_FAILED) from err
        except TimeoutError as err:
            host.failures += 1
            raise _Refused(Fault.TIMEOUT) from err
        except aiohttp.ClientPayloadError as err:
            raise _Refused(Fault.TRUNCATED_BODY) from err
        except aiohttp.ClientResponseError as err:
            raise _Refused(Fault.BAD_HTTP) from err
        except (aiohttp.ClientError, OSError) as err:
            host.failures += 1
            raise _Refused(Fault.CONNECTION_FAILED) from err
        except ValueError as err:
            raise _Refused(Fault.BAD_HTTP) from err

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        limit = self._limits.max_bytes
        if (answer.content_length or 0) > limit:
            raise _Refused(Fault.TOO_LARGE, answer.status)
        body = bytearray()
        try:
            async for chunk in answer.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > limit:
                    raise _Refused(Fault.TOO_LARGE, answer.status)
        except (aiohttp.ClientConnectionError, ConnectionError) as err:
            raise _Refused(Fault.TRUNCATED_BODY, answer.status) from err
        return _inflated(bytes(body), answer.headers.get("Content-Encoding", ""), limit)

    async def _check_robots(self, url: str, host: _Host) -> None:
        if not self._limits.respect_robots:
            return
        if host.robots is None:
            host.robots = asyncio.create_task(self._robots(url))
        refusal = (await host.robots).refusal(url)
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
                host.tdm = asyncio.create_task(self._small(urljoin(url, "/.well-known/tdmrep.json")))
            headers = {name.lower(): value for name, value in answer.headers.items()}
            refusal = tdm_refusal(headers, await host.tdm, url)
            if refusal:
                raise _Refused(Fault.OPT_OUT_TDM, answer.status, refusal)

    async def _robots(self, url: str) -> Robots:
        current = urljoin(url, "/robots.txt")
        host = _Host(1)
        for _ in range(6):  # RFC 9309, 2.3.1.2: at least five redirects
            try:
                response, location = await self._once(current, host)
            except _Refused as err:
                if err.fault in (Fault.TOO_LARGE, Fault.BAD_HTTP):
                    return Robots(404, b"", self._token)
                return Robots(err.status, b"", self._token)
            if location is None:
                return Robots(response.status, response.body, self._token)
            current = urljoin(current, location)
        return Robots(404, b"", self._token)

    async def _small(self, url: str) -> bytes:
        try:
            response, location = await self._once_plain(url)
        except _Refused:
            return b""
        return b"" if location else response.body

    async def _once_plain(self, url: str) -> tuple[Response, str | None]:
        fetcher_limits = self._limits
        host = _Host(1)
        host.tdm = asyncio.create_task(_nothing())
        self._limits = fetcher_limits
        return await self._once(url, host)

    @contextlib.asynccontextmanager
    async def _paced(self, host: _Host) -> AsyncIterator[None]:
        async with host.slots:
            if self._limits.min_delay_s:
                now = time.monotonic()
                wait, host.next_start = host.next_start - now, max(now, host.next_start) + self._limits.min_delay_s
                if wait > 0:
                    await asyncio.sleep(wait)
            async with self._slots:
                yield


async def _nothing() -> bytes:
    return b""


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    import zlib

    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        inflater = zlib.decompressobj(wbits=47 if "gzip" in encoding.lower() else 15)
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as err:
        raise _Refused(Fault.BAD_HTTP) from err
    if len(plain) > limit:
        raise _Refused(Fault.TOO_LARGE)
    return plain


def _status_fault(status: int) -> Fault:
    named = {401: Fault.HTTP_401, 403: Fault.HTTP_403, 404: Fault.HTTP_404, 410: Fault.HTTP_410, 429: Fault.HTTP_429}
    if status in named:
        return named[status]
    if status >= 500:
        return Fault.HTTP_5XX
    return Fault.HTTP_4XX if status >= 400 else Fault.BAD_HTTP


def _retry_after(value: str | None) -> float:
    return float(value) if value and value.isdigit() else 0.0
