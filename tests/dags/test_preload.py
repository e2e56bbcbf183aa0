"""plugins/airflow_local_settings.py, as Airflow's components import it."""

import os
import subprocess
import sys
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
COMPONENT = """
import importlib, sys
sys.argv[:] = ["airflow", "api-server"]
import airflow_local_settings
assert "curation" not in sys.modules
sys.argv[:] = ["airflow", "celery", "worker", "-q", "default"]
importlib.reload(airflow_local_settings)
assert {"curation.runner", "curation.publish.version", "pandas", "lexicalrichness"} <= sys.modules.keys()
assert "torch" not in sys.modules
import threading
assert threading.active_count() == 1, "only the thread that forks would go on"
"""


def test_those_that_fork_tasks_load_what_tasks_need_and_others_nothing() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(PLUGINS), str(PLUGINS.parent)))}
    done = subprocess.run([sys.executable, "-c", COMPONENT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
