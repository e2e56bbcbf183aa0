"""An HTTP proxy that stands before an S3 server and does to its requests what networks and servers do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# what may be done to one request: "pass" it on, "reset" before it is sent on, "lose" the answer of a request that was
# carried out, "stall" without an answer, "cut" the answer after 64 bytes of its body, or answer with an HTTP status
Action = str | int
_TEXT = {403: "AccessDenied", 503: "SlowDown", 500: "InternalError"}


@dataclass
class FaultProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `server`, one request a connection."""

    server: tuple[str, int]
    fault: Callable[[str, str], Action] = lambda method, path: "pass"
    upload_bytes_per_s: float = float("inf")
    moved: int = 0  # bytes of answers
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in [self._listener, *self._open]:
            sock.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def fail(self, action: Action, times: float = float("inf"), method: str = "", path: str = "") -> None:
        """Do this to the next requests of the method whose path holds the text; then be well again."""
        left = [times]

        def fault(its_method: str, its_path: str) -> Action:
            if (method and method != its_method) or path not in its_path or left[0] <= 0:
                return "pass"
            left[0] -= 1
            return action

        self.fault = fault

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client:
            head, rest = _head(client)
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ")
            self.requests.append(f"{method} {path}")
            action = self.fault(method, path)
            if action == "reset":
                return _reset(client)
            if action == "stall":
                time.sleep(60)
                return None
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            if "expect" in headers:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = int(headers.get("content-length", 0))
            kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
            if isinstance(action, int):
                _relay(client, None, length - len(rest), float("inf"))
                body = f"<Error><Code>{_TEXT[action]}</Code><Message>said the proxy</Message></Error>".encode()
                answer = f"HTTP/1.1 {action} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                return client.sendall(answer.encode() + (b"" if method == "HEAD" else body))
            with socket.create_connection(self.server) as server:
                server.sendall("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + rest)
                _relay(client, server, length - len(rest), self.upload_bytes_per_s)
                self._answer(client, server, action)
        return None

    def _answer(self, client: socket.socket, server: socket.socket, action: Action) -> None:
        head, rest = _head(server)
        if action == "lose":
            return _reset(client)
        client.sendall(head + b"\r\n\r\n" + (rest[:64] if action == "cut" else rest))
        self.moved += len(rest)
        if action == "cut":
            time.sleep(0.1)
            return _reset(client)
        while chunk := server.recv(1 << 16):
            self.moved += len(chunk)
            client.sendall(chunk)
        return None


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _relay(source: socket.socket, target: socket.socket | None, length: int, bytes_per_s: float) -> None:
    while length > 0:
        chunk = source.recv(min(1 << 16, length))
        if not chunk:
            raise ConnectionResetError
        length -= len(chunk)
        time.sleep(len(chunk) / bytes_per_s)
        if target is not None:
            target.sendall(chunk)


def _reset(sock: socket.socket) -> None:
    """Close with RST, as a crashed server's kernel does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
