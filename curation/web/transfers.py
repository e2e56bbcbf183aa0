"""HTTP requests by libcurl within asyncio: HTTP/2 where offered, connections shared, addresses pinned, bodies paused.

Why libcurl and not aiohttp or httpx: docs/decisions/0007-http-client.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pycurl

from curation.verdicts import Fault
from curation.web.guard import Pinned

_HEAD_BYTES = 64 << 10
_BUFFER_BYTES = 64 << 10
_STREAMS = 100  # requests on one HTTP/2 connection, as most servers allow
_E_HTTP2_STREAM = 92  # pycurl has no name for it
_TLS_ERRORS = frozenset(
    [
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_SSL_ENGINE_INITFAILED,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_SHUTDOWN_FAILED,
        pycurl.E_SSL_INVALIDCERTSTATUS,
    ]
)
_NO_CONNECTION = frozenset([pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_PROXY, pycurl.E_GOT_NOTHING])
_CUT_OFF = frozenset([pycurl.E_PARTIAL_FILE, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR, pycurl.E_HTTP2, _E_HTTP2_STREAM])


class TransferError(Exception):
    """A request failed; `fault` says how."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Answer:
    """A response whose head is read; its body flows when it is asked for, and waits for the reader."""

    def __init__(self, curl: pycurl.Curl) -> None:
        loop = asyncio.get_running_loop()
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()
        self.http_version = ""
        self._curl = curl
        self._head_bytes = 0
        self._fault: Fault | None = None
        self._room = -1  # bytes of body that may be held now; -1: the body is not wanted yet
        self._dropped = 0
        self._drain = -1  # bytes of body that may be thrown away to keep the connection
        self._paused = False
        self._changed = loop.create_future()
        self._ended = False

    def header(self, name: str) -> str:
        """The first value of a header, "" for none."""
        return next((value for key, value in self.headers if key == name), "")

    def all_headers(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    @property
    def announced(self) -> int:
        """Content-Length, 0 for none or nonsense."""
        value = self.header("content-length")
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else 0

    async def head(self) -> None:
        """Wait for the head. Raises TransferError."""
        while not self._ended and not self._paused:
            await self._change()
        if self._ended and self._fault:
            raise TransferError(self._fault, "")

    async def read(self, room: int) -> bool:
        """Let the body flow until `room` bytes are held; True when it is complete. Raises TransferError."""
        self._room = room
        self._resume()
        while not self._ended and not self._paused:
            await self._change()
        if self._ended and self._fault:
            raise TransferError(self._fault, "")
        return self._ended

    async def discard(self, most: int) -> None:
        """Throw a short body away, so that the connection can be used again; of a longer one give up."""
        self._drain = most
        self._resume()
        while not self._ended and not self._paused:
            await self._change()

    async def _change(self) -> None:
        await self._changed
        self._changed = asyncio.get_running_loop().create_future()

    def _tell(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)

    def _resume(self) -> None:
        if self._paused and not self._ended:
            self._paused = False
            self._curl.pause(pycurl.PAUSE_CONT)

    def on_header(self, line: bytes) -> int | None:
        """Take a line of the head, for libcurl."""
        self._head_bytes += len(line)
        if self._head_bytes > _HEAD_BYTES:
            self._fault = Fault.BAD_HTTP
            return -1
        text = line.decode("latin-1").strip("\r\n")
        if text.startswith("HTTP/"):
            version, _, rest = text.partition(" ")
            code = rest[:3]
            self.http_version = version
            self.status = int(code) if code.isascii() and code.isdecimal() else 0
            self.headers.clear()
        elif text and self.status >= 200:
            name, _, value = text.partition(":")
            self.headers.append((name.strip().lower(), value.strip()))
        return None

    def on_body(self, data: bytes) -> int | None:
        """Take a piece of the body, for libcurl; without room for it the body stops."""
        if self._drain >= 0:
            self._dropped += len(data)
            return None if self._dropped <= self._drain else -1
        if len(self.body) + len(data) > self._room:
            self._paused = True
            self._tell()
            return int(pycurl.WRITEFUNC_PAUSE)
        self.body += data
        return None

    def finish(self, error: int, message: str) -> None:
        """Called once, when libcurl is done with the request."""
        if error and self._fault is None:
            self._fault = _fault(error, message, self.status)
        elif not error and not self.status:
            self._fault = Fault.BAD_HTTP
        self._ended = True
        self._tell()

    def refuse(self, fault: Fault) -> None:
        """Note why the connection was not made, which libcurl can only call a failure to connect."""
        self._fault = fault


class Transfers:
    """Requests in flight and the connections that they share; used within one event loop."""

    def __init__(self, agent: str, connections: int, proxy: str | None, ca_file: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._agent, self._proxy, self._ca_file = agent, proxy, ca_file or _authorities()
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[pycurl.Curl, Answer] = {}
        self._idle: list[pycurl.Curl] = []
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, _STREAMS)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)

    @contextlib.asynccontextmanager
    async def get(self, url: str, pinned: Pinned | None, *, http2: bool = True) -> AsyncIterator[Answer]:
        """The answer to a GET with its head read.

        pinned  the only addresses that may be connected to; None: the proxy's
        http2   whether HTTP/2 may be spoken: libcurl grants each of its streams 10 MB before a reader can stop it
        raises  TransferError, here and from the answer's methods
        """
        curl = self._idle.pop() if self._idle else pycurl.Curl()
        answer = Answer(curl)
        try:
            self._prepare(curl, answer, url, pinned, http2)
        except (pycurl.error, UnicodeError, ValueError) as err:
            raise TransferError(Fault.BAD_HTTP, str(err)) from err
        self._running[curl] = answer
        self._multi.add_handle(curl)
        try:
            await answer.head()
            yield answer
        finally:
            self._running.pop(curl, None)
            self._multi.remove_handle(curl)  # ends what is still under way
            curl.reset()
            self._idle.append(curl)

    def close(self) -> None:
        """Close every connection; requests in flight must have ended."""
        self._on_timer(-1)
        self._multi.close()

    def _prepare(self, curl: pycurl.Curl, answer: Answer, url: str, pinned: Pinned | None, http2: bool) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        if not host:
            raise ValueError("no host")
        curl.setopt(pycurl.URL, url.encode("ascii"))
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        curl.setopt(pycurl.PATH_AS_IS, 1)
        curl.setopt(pycurl.USERAGENT, self._agent)
        # pictures are compressed as they are; whoever compresses them again is read all the same
        curl.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
        version = pycurl.CURL_HTTP_VERSION_2TLS if http2 else pycurl.CURL_HTTP_VERSION_1_1
        curl.setopt(pycurl.HTTP_VERSION, version)
        curl.setopt(pycurl.PIPEWAIT, 1)
        curl.setopt(pycurl.BUFFERSIZE, _BUFFER_BYTES)
        curl.setopt(pycurl.CAINFO, self._ca_file)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.TIMEOUT_MS, 0)  # the caller's clock stands still while a body waits for room
        curl.setopt(pycurl.PROXY, self._proxy or "")  # "": none, not even one named by the environment
        curl.setopt(pycurl.HEADERFUNCTION, answer.on_header)
        curl.setopt(pycurl.WRITEFUNCTION, answer.on_body)
        if pinned is None:
            return
        bracketed = [f"[{address}]" if ":" in address else address for address in pinned.addresses]
        name = f"[{host}]" if ":" in host else host
        if pinned.port is None:
            # "+": forgotten after a minute, so that the cache does not grow with the hosts of a crawl
            curl.setopt(pycurl.RESOLVE, [f"+{name}:{port}:{','.join(bracketed)}"])
        else:
            curl.setopt(pycurl.CONNECT_TO, [f"{name}:{port}:{bracketed[0]}:{pinned.port}"])
        curl.setopt(pycurl.OPENSOCKETFUNCTION, _open_pinned(answer, frozenset(pinned.addresses)))

    def _on_socket(self, event: int, descriptor: int, _multi: object, _data: object) -> None:
        if event == pycurl.POLL_REMOVE:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            return
        if event & pycurl.POLL_IN:
            self._loop.add_reader(descriptor, self._act, descriptor, pycurl.CSELECT_IN)
        else:
            self._loop.remove_reader(descriptor)
        if event & pycurl.POLL_OUT:
            self._loop.add_writer(descriptor, self._act, descriptor, pycurl.CSELECT_OUT)
        else:
            self._loop.remove_writer(descriptor)

    def _on_timer(self, wait_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_ms >= 0:
            self._timer = self._loop.call_later(wait_ms / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, descriptor: int, events: int) -> None:
        self._multi.socket_action(descriptor, events)
        queued = 1
        while queued:
            queued, done, failed = self._multi.info_read()
            ended = [(curl, 0, "") for curl in done] + list(failed)
            for curl, error, message in ended:
                if curl in self._running:
                    self._running[curl].finish(error, message)


def _open_pinned(answer: Answer, allowed: frozenset[str]) -> Callable[[int, tuple[object, ...]], object]:
    """Opens sockets to the pinned addresses and no others, whatever host libcurl read from the URL."""

    def opened(_purpose: int, address: tuple[object, ...]) -> object:
        family, kind, protocol, place = address
        if not isinstance(place, tuple) or place[0] not in allowed:
            answer.refuse(Fault.ADDRESS_REFUSED)
            return pycurl.SOCKET_BAD
        try:
            made = socket.socket(family, kind, protocol)  # type: ignore[arg-type]
        except OSError:  # too many open files: libcurl reports a failure to connect
            return pycurl.SOCKET_BAD
        asyncio.get_running_loop().call_soon(made.close)  # pycurl works on a duplicate
        return made

    return opened


def _fault(error: int, message: str, status: int) -> Fault:
    if error in _TLS_ERRORS:
        cut = error == pycurl.E_SSL_CONNECT_ERROR and ("reset by peer" in message or "SYSCALL" in message)
        return Fault.CONNECTION_FAILED if cut else Fault.TLS_FAILED
    if error in _CUT_OFF:
        return Fault.TRUNCATED_BODY if status else Fault.CONNECTION_FAILED
    if error in _NO_CONNECTION:
        return Fault.CONNECTION_FAILED
    if error == pycurl.E_COULDNT_RESOLVE_HOST:
        return Fault.DNS_FAILED
    if error == pycurl.E_OPERATION_TIMEDOUT:
        return Fault.TIMEOUT
    return Fault.BAD_HTTP


def _authorities() -> str:
    import certifi

    return certifi.where()
