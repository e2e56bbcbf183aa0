"""plugins/curation_telemetry.py in a process of its own, as a task has it: what StatsD, OTLP, lineage servers get."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

from curation.demo.statsd import Statsd

ROOT = Path(__file__).resolve().parents[2]
TASK = """
import json
from types import SimpleNamespace
from airflow.sdk.listener import get_listener_manager
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from airflow.sdk.lineage import get_hook_lineage_collector
from curation import telemetry
from curation.receipt import Receipt

stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
task = SimpleNamespace(task=SimpleNamespace(queue="default"))
(hook,) = [one for one in get_listener_manager().pm.get_plugins() if hasattr(one, "GpuWatch")]
for attempt in (1, 2):
    hook.on_task_instance_running(previous_state=None, task_instance=task)
common = dict(object_id="", stage_version=1, recipe="demo", dump="crawl", shard=0, fingerprint="0123456789abcdef")
extract = Receipt(stage="extract", rows=5, measured=5, **common)
faults, dropped = {"http_404": 1}, {"text_too_short": 1}
download = Receipt(stage="download", rows=5, measured=3, faults=faults, dropped=dropped, seconds=1.5, **common)
telemetry.tell(telemetry.Made("s3://bucket/store", download, extract))
hook.on_task_instance_success(previous_state=None, task_instance=task)
found = get_hook_lineage_collector().collected_assets
print(json.dumps([[one.asset.uri for one in found.inputs], [one.asset.uri for one in found.outputs]]))
"""
COUNTED = {
    "airflow.curation.shards.download": 1,
    "airflow.curation.milliseconds.download": 1500,
    "airflow.curation.samples.download.measured": 3,
    "airflow.curation.samples.download.http_404": 1,
    "airflow.curation.samples.download.text_too_short": 1,
}
DAG = """
from airflow.sdk import dag, task

@dag(schedule=None)
def told():
    @task
    def download():
        from curation import telemetry
        from curation.receipt import Receipt

        common = dict(object_id="", stage_version=1, recipe="demo", dump="crawl", shard=0, rows=5, measured=5)
        extract, made = (Receipt(stage=name, fingerprint="0" * 16, **common) for name in ("extract", "download"))
        telemetry.tell(telemetry.Made("s3://bucket/store", made, extract))

    download()

found = told()
"""
RUN = """
import os, runpy
from airflow.utils.db import initdb

initdb()
run = runpy.run_path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"] + "/told.py")["found"].test()
print("\\n" + run.state)
"""


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted: path, content type and body."""

    got: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.got.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("R", (Receiver,), {"got": []})
    found = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def in_task(home: Path, script: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
    environment |= {
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(ROOT),
        "no_proxy": "127.0.0.1",
    } | settings
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_an_otlp_server_gets_each_count_with_its_dump_and_recipe(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    settings = {"AIRFLOW__METRICS__OTEL_ON": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    in_task(tmp_path, TASK, settings)
    counted: Counter[str] = Counter()
    for path, kind, body in server.RequestHandlerClass.got:  # type: ignore[attr-defined]
        assert (path, kind) == ("/v1/metrics", "application/x-protobuf")
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                if metric.name.startswith("airflow.curation."):
                    (point,) = metric.sum.data_points
                    assert metric.sum.is_monotonic
                    labels = {each.key: each.value.string_value for each in point.attributes}
                    assert labels == {"dump": "crawl", "recipe": "demo"}
                    counted[metric.name] = point.as_int or int(point.as_double)  # since the process began
    assert counted == COUNTED


def test_a_lineage_server_gets_the_datasets_of_a_run(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    lineage = {"type": "http", "url": f"http://127.0.0.1:{server.server_port}"}
    settings = {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage)}
    settings["AIRFLOW__CORE__DAGS_FOLDER"] = str(tmp_path / "dags")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "told.py").write_text(DAG)
    done = in_task(tmp_path, RUN, settings)
    assert "success" in done.stdout.splitlines(), done.stdout
    got = server.RequestHandlerClass.got  # type: ignore[attr-defined]
    events: list[dict[str, Any]] = [json.loads(body) for _, _, body in got]
    ended = [one for one in events if one["eventType"] == "COMPLETE" and one["job"]["name"] == "told.download"]
    assert ended, events
    assert [f"{one['namespace']}/{one['name']}" for one in ended[-1]["inputs"]] == [
        "s3://bucket/store/dumps/crawl/extract-00000000"
    ]
    assert [f"{one['namespace']}/{one['name']}" for one in ended[-1]["outputs"]] == [
        "s3://bucket/store/dumps/crawl/download-00000000"
    ]


def test_a_task_counts_once_and_names_its_datasets(tmp_path: Path) -> None:
    lineage = {"type": "file", "log_file_path": str(tmp_path / "events"), "append": True}
    with Statsd() as heard:
        done = in_task(tmp_path, TASK, heard.settings | {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage)})
    ours = {name: value for name, value in heard.counters.items() if name.startswith("airflow.curation.")}
    assert ours == COUNTED
    inputs, outputs = json.loads(done.stdout.splitlines()[-1])
    assert inputs == ["s3://bucket/store/dumps/crawl/extract-01234567"]
    assert outputs == ["s3://bucket/store/dumps/crawl/download-01234567"]
