"""plugins/curation_scheduling.py on the pinned Airflow, each time in a process with a database of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = "24"  # of single passes; a quarter as many whole runs
BEGUN = """
import logging, sys
import curation_scheduling
from airflow.models.dagrun import DagRun

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
curation_scheduling.READ = {read}
curation_scheduling.begin()
for name in ("_get_ready_tis", "_are_premature_tis"):
    print(name, hasattr(getattr(DagRun, name), "__wrapped__"))
"""


def run(home: Path, *command: str, **settings: str) -> str:
    environment = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "plugins"))),
    }
    done = subprocess.run([sys.executable, *command], env=environment | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_each_pass_decides_what_airflow_decides_whatever_state_a_run_is_in(tmp_path: Path) -> None:
    told = run(tmp_path, "-W", "ignore", str(Path(__file__).with_name("waiting_shards.py")), EXAMPLES)
    assert told.endswith("the same\n")


@pytest.mark.parametrize(
    ("read", "settings", "wrapped", "said"),
    [
        ("curation_scheduling.READ", {}, True, "INFO The scheduler leaves out"),
        ("curation_scheduling.READ", {"CURATION_SHORT_PASSES": "0"}, False, "WARNING CURATION_SHORT_PASSES=0"),
        ("'of another Airflow'", {}, False, "WARNING This Airflow decides by other code"),
    ],
    ids=["the Airflow that was read", "switched off", "another Airflow"],
)
def test_only_the_airflow_that_was_read_is_asked_less(
    tmp_path: Path, read: str, settings: dict[str, str], wrapped: bool, said: str
) -> None:
    told = run(tmp_path, "-c", BEGUN.format(read=read), **settings)
    assert told.count(str(wrapped)) == 2
    assert said in told
