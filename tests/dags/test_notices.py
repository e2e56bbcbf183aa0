"""Notices go to a real server; what a run looks like to them is what Airflow hands over."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SEND = """
import asyncio
from curation_notices import Notice, watched
run = {"dag_id": "curate_block", "run_id": "r1", "conf": {"dump": "CC-MAIN-2026-05", "source": "", "overrides": {}}}
Notice()({"dag_run": run, "reason": "task_failure"})
late = watched(hours=72)["deadline"].callback
assert late.path == "curation_notices.Notice"
asyncio.run(Notice(**late.kwargs).async_notify({"dag_run": run}))
"""


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    found: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()


def send(home: Path, addresses: str) -> str:
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "CURATION_NOTIFY": addresses, "PYTHONPATH": str(PLUGINS)}
    done = subprocess.run([sys.executable, "-c", SEND], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_failure_and_a_missed_deadline_reach_every_address(
    tmp_path: Path, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    hook, found = posted
    told = send(tmp_path, f"{hook}/one nonsense://secret {hook}/broken")
    assert [one["title"] for one in found] == ["curation: curate_block failed"] * 2 + [
        "curation: curate_block is not through after 72 h"
    ] * 2
    assert "run: r1\ndump: CC-MAIN-2026-05\nreason: task_failure\n" in found[0]["message"]
    assert "source" not in found[0]["message"]
    assert "address 2 of CURATION_NOTIFY is none that Apprise knows" in told
    assert "secret" not in told.replace("nonsense", "")
    assert "not all addresses of CURATION_NOTIFY took the message" in told


def test_nobody_is_told_when_nobody_is_named(tmp_path: Path) -> None:
    assert "nobody is told: CURATION_NOTIFY is empty" in send(tmp_path, "")
