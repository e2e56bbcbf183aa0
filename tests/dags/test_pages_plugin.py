"""plugins/curation_pages.py as a component of Airflow loads it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

ROOT = Path(__file__).resolve().parents[2]
LOADED = """
import sys, threading
import curation_pages

sys.argv[:] = ["airflow", "scheduler"]
curation_pages.CurationPages.on_load()
assert "pyarrow" not in sys.modules, "a task or a scheduler shows no pages"
sys.argv[:] = ["airflow", "api-server"]
curation_pages.CurationPages.on_load()
(begun,) = [one for one in threading.enumerate() if one.name == "curation-warm-up"]
begun.join()
loaded = set(sys.modules)
"""
ASKED = """
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

app = curation_pages.app
for route in app.routes:
    for one in getattr(getattr(route, "dependant", None), "dependencies", []):
        if one.call is not get_user and one.call.__qualname__.startswith("requires_"):
            app.dependency_overrides[one.call] = lambda: None
client = TestClient(app)
for place, status in {"/": 200, "/takedown": 200, "/dumps/none/demo/samples": 404}.items():
    assert client.get(place).status_code == status, place
late = {name.partition(".")[0] for name in set(sys.modules) - loaded}
assert not late & {"curation", "pandas", "pyarrow", "numpy", "jinja2", "yaml", "pydantic"}, late
"""

ANSWERED = """
from types import SimpleNamespace
from curation_web import answered
from curation.ui.counting import Counted

dump = SimpleNamespace(dump="d", recipe=SimpleNamespace(name="r"))
waits, told = (
    answered("leakage", dump=dump, here="/", counted=Counted(value, 0, 1)).headers
    for value in (None, {})
)
assert waits["refresh"] == "1" and "refresh" not in told
"""


def test_the_api_server_loads_what_pages_need_before_anyone_looks(tmp_path: Path) -> None:
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "CURATION_STORE": str(tmp_path / "store"),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins"))),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADED + ASKED + ANSWERED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
