"""The demo's web server: every host on one loopback port, with all the misbehaviour that the site asks for.

Faults (the Host header and the path decide):
  stall        headers never come                      stall-body   half of the body, then nothing
  drip         one byte a second                       delay        1.5 s late, then all is well
  reset        half of the body, then a TCP reset      refuse       the connection ends without an answer
  short        Content-Length larger than the body     long         Content-Length smaller than the body
  heal         503 for the first request, then well
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

STALL_S = 30.0
"""How long a stalled answer holds its connection: longer than any sensible time limit."""

_DATE = "Thu, 15 Jan 2026 12:00:00 GMT"  # fixed: the crawl of the site must be the same bytes each time


class DemoServer:
    """Serves a demo crawl's `site` folder on 127.0.0.1; port 0 asks the system for a free one."""

    def __init__(self, folder: Path, port: int = 0, *, stall_s: float = STALL_S) -> None:
        self._server = _Server(folder / "site", port, stall_s)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> DemoServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="demo-web")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve in the foreground until interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, site: Path, port: int, stall_s: float) -> None:
        self.site, self.stall_s = site, stall_s
        self.answers: dict[str, dict[str, Any]] = json.loads((site / "responses.json").read_text("utf-8"))
        self.asked: set[str] = set()
        self.stopping = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up in the middle are the point of this server, not news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60
    disable_nagle_algorithm = True  # header and body are two writes: without it each answer waits 40 ms for an ACK

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").partition(":")[0].lower()
        address = host + urlsplit(self.path).path
        answer = self.server.answers.get(address)
        if answer is None:
            self._send(404, {"Content-Type": "text/plain"}, b"not found\n")
            return
        body = (self.server.site / answer["body"]).read_bytes() if answer["body"] else b""
        headers = {"Content-Type": answer["content_type"], **answer["headers"]}
        fault = answer["fault"]
        if fault == "":
            self._send(answer["status"], headers, body)
        elif fault == "delay":
            self.server.stopping.wait(min(1.5, self.server.stall_s))
            self._send(200, headers, body)
        elif fault == "heal":
            first = address not in self.server.asked
            self.server.asked.add(address)
            if first:
                self._send(503, {"Content-Type": "text/plain", "Retry-After": "1"}, b"busy\n")
            else:
                self._send(200, headers, body)
        else:
            self._misbehave(fault, headers, body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the demo's progress display owns the terminal."""

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Server", "curation-demo")
        self.send_header("Date", _DATE)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _misbehave(self, fault: str, headers: dict[str, str], body: bytes) -> None:
        """Answer as no good server would, then close the connection."""
        self.close_connection = True
        half = body[: len(body) // 2]
        if fault == "stall":
            self.server.stopping.wait(self.server.stall_s)
        elif fault == "stall-body":
            self._send(200, headers, half, len(body))
            self.wfile.flush()
            self.server.stopping.wait(self.server.stall_s)
        elif fault == "drip":
            self._send(200, headers, b"", len(body))
            for at in range(int(self.server.stall_s)):
                self.wfile.write(body[at : at + 1])
                self.wfile.flush()
                if self.server.stopping.wait(1.0):
                    return
        elif fault == "reset":
            self._send(200, headers, half, len(body))
            self.wfile.flush()
            self._reset()
        elif fault == "refuse":
            self._reset()
        elif fault == "short":
            self._send(200, headers, body, len(body) * 2)
        elif fault == "long":
            self._send(200, headers, body, len(body) // 3)
        else:
            raise AssertionError(f"unknown fault {fault!r}")

    def _reset(self) -> None:
        # closing with linger 0 sends RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def main() -> None:
    """Serve a demo crawl in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m curation.demo_crawl.server", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that build_demo_crawl made")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    if not (options.folder / "site").is_dir():
        parser.error(f"{options.folder}: no demo crawl there; build one: curation demo-crawl {options.folder}")
    try:
        server = DemoServer(options.folder, options.port)
    except OSError as problem:
        parser.error(f"--port {options.port}: {problem.strerror}; give another, or 0 for a free one")
    print(f"serving *.test of {options.folder} on 127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
