"""plugins/curation_telemetry.py in a process of its own, as a task has it: StatsD packets and lineage that arrive."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_a_task_counts_once_and_names_its_datasets(tmp_path: Path) -> None:
    lineage = {"type": "file", "log_file_path": str(tmp_path / "events"), "append": True}
    with Statsd() as heard:
        environment = os.environ | heard.settings
        environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
        environment |= {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", TASK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = {name: value for name, value in heard.counters.items() if name.startswith("airflow.curation.")}
    assert ours == {
        "airflow.curation.shards.download": 1,
        "airflow.curation.milliseconds.download": 1500,
        "airflow.curation.samples.download.measured": 3,
        "airflow.curation.samples.download.http_404": 1,
        "airflow.curation.samples.download.text_too_short": 1,
    }
    inputs, outputs = json.loads(done.stdout.splitlines()[-1])
    assert inputs == ["s3://bucket/store/dumps/crawl/extract-01234567"]
    assert outputs == ["s3://bucket/store/dumps/crawl/download-01234567"]
