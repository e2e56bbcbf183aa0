"""Serve the demo's web over loopback: the Host header chooses the site, the routes choose the trouble."""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

STALL_S = 30


class DemoServer:
    """Serves FOLDER/site on 127.0.0.1; a context manager. port 0 asks the system for a free one."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        routes = json.loads((folder / "site" / "routes.json").read_text())
        table = {(route["host"], route["path"]): route for route in routes}
        handler = type("Handler", (_Handler,), {"routes": table, "folder": folder / "site", "asked": Counter()})
        self._server = _Server(("127.0.0.1", port), handler)
        self.port: int = self._server.server_address[1]

    def serve_forever(self) -> None:
        """Serve until the process ends."""
        self._server.serve_forever()

    def __enter__(self) -> DemoServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up on a stalled answer are what the demo is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    routes: dict[tuple[str, str], dict[str, Any]]
    folder: Path
    asked: Counter[tuple[str, str]]

    def do_GET(self) -> None:
        key = (self.headers.get("Host", "").partition(":")[0].lower(), self.path.partition("?")[0])
        route = self.routes.get(key)
        if route is None:
            self._answer(404, b"not here", {"Content-Type": "text/plain"})
            return
        self.asked[key] += 1
        body = (self.folder / route["file"]).read_bytes()
        headers = {"Content-Type": route["content_type"], **route["headers"]}
        behaviour = route["behaviour"]
        if behaviour == "stall":
            time.sleep(STALL_S)
        if behaviour == "heals" and self.asked[key] == 1:
            self._answer(503, b"later", {"Retry-After": "1"})
        elif behaviour in ("reset", "short"):
            self._answer(200, body, headers, send=len(body) // 2)
            if behaviour == "reset":
                linger = struct.pack("ii", 1, 0)  # close with RST
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        else:
            self._answer(route["status"], body, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], send: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if send is None else body[:send])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the terminal for the demo."""


def main() -> None:
    """`python -m curation.demo_crawl.server FOLDER --port N`."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--port", type=int, default=8099)
    options = arguments.parse_args()
    server = DemoServer(options.folder, options.port)
    print(f"serving {options.folder} on 127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
