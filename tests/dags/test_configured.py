"""CURATION_PARAMS: what the DAGs that run by the clock work on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, runpy, sys
from curation_dags import SCHEDULED, configured

os.environ["CURATION_PARAMS"] = json.dumps({
    "nightly_refresh": {"recipe": "laion-400m", "blocks": 10}, "refresh_blocklists": {"sources": ["https://host.example/list"]},
})
found = {}
for name in SCHEDULED:
    dag = runpy.run_path(f"{sys.argv[1]}/{name}.py")[name]()
    found[name] = {key: dag.params[key] for key in dag.params}
said = []
field = {"blocks": {"default": 2, "type": "integer", "minimum": 1}}
for text in ('{"nightly_refresh": {"block": 1}}', '{"nightly": {}}', '{"nightly_refresh": {"blocks": "ten"}}',
             '{"nightly_refresh": {"blocks": 0}}', '{"nightly_refresh": 3}', '[1]', '{'):
    os.environ["CURATION_PARAMS"] = text
    try:
        said.append(str(configured("nightly_refresh", field)))
    except ValueError as error:
        said.append(str(error))
os.environ["CURATION_PARAMS"] = ""  # as docker-compose.yaml hands it on when .env has none
found["unset"] = configured("nightly_refresh", field)
print("\\n" + json.dumps([found, said]))
"""


def test_runs_by_the_clock_take_what_the_environment_says_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "dags")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found, said = json.loads(done.stdout.splitlines()[-1])
    assert found["nightly_refresh"] == {"recipe": "laion-400m", "overrides": {}, "dumps": 1, "blocks": 10}
    assert found["refresh_blocklists"]["sources"] == ["https://host.example/list"]
    assert found["refresh_blocklists"]["name"] == "default"
    assert found["unset"]["blocks"]["default"] == 2
    assert all(line.startswith("CURATION_PARAMS: ") for line in said), said
    assert "nightly_refresh has no block, but blocks" in said[0]
    assert "nightly is none of nightly_refresh" in said[1]
    assert "'ten' is not of type 'integer'" in said[2]
    assert "0 is less than the minimum" in said[3]
