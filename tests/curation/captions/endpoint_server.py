"""A real HTTP server that speaks chat completions and batches, and misbehaves where a test asks for it."""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None = "A red square.", finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}
    return {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 90, "completion_tokens": 10}}


class EndpointServer(ThreadingHTTPServer):
    """behaviours: what the next chat requests meet, in order; then `usual`. asked: requests by picture digest."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0, delay_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.behaviours: deque[Any] = deque()
        self.usual: Any = completion()
        self.delay_s = delay_s
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls_needed = 1
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EndpointServer

    def log_message(self, format: str, *args: Any) -> None: ...

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            self.chat(json.loads(body))
        elif self.path.endswith("/files"):
            content = body.split(b"jsonl", 1)[1].split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
            name = f"file-{len(self.server.files)}"
            self.server.files[name] = content
            self.answer(200, json.dumps({"id": name}).encode())
        elif self.path.endswith("/batches"):
            asked = json.loads(body)
            name = f"batch-{len(self.server.batches)}"
            lines = [json.loads(line) for line in self.server.files[asked["input_file_id"]].splitlines()]
            rows = []
            for line in lines:
                self.count(line["body"])
                behaviour = self.server.behaviours.popleft() if self.server.behaviours else self.server.usual
                status = behaviour if isinstance(behaviour, int) else 200
                payload = {"error": "no"} if isinstance(behaviour, int) else behaviour
                rows.append({"custom_id": line["custom_id"], "response": {"status_code": status, "body": payload}})
            self.server.files[f"out-{name}"] = "\n".join(map(json.dumps, rows)).encode() + b"\n{half a li"
            batch = {"id": name, "metadata": asked["metadata"], "output_file_id": f"out-{name}", "polls": 0}
            self.server.batches[name] = batch
            self.answer(200, json.dumps(batch | {"status": "validating"}).encode())

    def do_GET(self) -> None:
        if match := re.search(r"/files/([\w-]+)/content", self.path):
            self.answer(200, self.server.files[match[1]])
        elif match := re.search(r"/batches/([\w-]+)", self.path):
            batch = self.server.batches[match[1]]
            batch["polls"] += 1
            done = batch["polls"] > self.server.polls_needed
            self.answer(200, json.dumps(batch | {"status": "completed" if done else "in_progress"}).encode())
        else:
            listed = [batch | {"status": "in_progress"} for batch in self.server.batches.values()]
            self.answer(200, json.dumps({"data": listed, "has_more": False}).encode())

    def count(self, body: dict[str, Any]) -> None:
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        with self.server.lock:
            self.server.asked[hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest()] += 1
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.times.append(time.monotonic())

    def chat(self, body: dict[str, Any]) -> None:
        self.count(body)
        time.sleep(self.server.delay_s)
        with self.server.lock:
            behaviour = self.server.behaviours.popleft() if self.server.behaviours else self.server.usual
        match behaviour:
            case dict():
                self.answer(200, json.dumps(behaviour).encode())
            case bytes():
                self.answer(200, behaviour)
            case int():
                self.answer(behaviour, b'{"error": {"message": "no"}}')
            case (status, body_bytes, headers):
                self.answer(status, body_bytes, **headers)
            case "hang":
                time.sleep(5)
            case "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                for _ in range(50):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
            case "reset":
                self.connection.close()
            case "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                self.close_connection = True


if __name__ == "__main__":
    server = EndpointServer(delay_s=float(sys.argv[1]))
    print(server.url, flush=True)
    server.serve_forever()
