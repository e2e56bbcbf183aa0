"""What every DAG of the checkout keeps to, derived from the files: there is no list to forget."""

import ast
import json
import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "dags").glob("*.py"))
HEAVY = ("torch", "pandas", "pyarrow", "numpy", "transformers", "cv2")
FIELDS = ("Reads:", "Writes:", "Rerun:", "Cost:")
IDS = [path.stem for path in FILES]

every_file = pytest.mark.parametrize("path", FILES, ids=IDS)
every_dag = pytest.mark.parametrize("name", IDS)


@cache
def loaded() -> dict[str, Any]:
    """The page and every DAG, loaded in a process of its own: Airflow's import leaves marks on warnings and logging."""
    script = """
import json, runpy, sys
page = runpy.run_path(sys.argv[1])
dags = {}
for name, dag in page["load"]().items():
    dags[name] = {
        "told": bool(dag.on_failure_callback and dag.deadline),
        "doc": dag.doc_md, "tags": sorted(dag.tags), "catchup": dag.catchup, "file": dag.fileloc,
        "params": {key: dict(param.schema, description=param.description, empty=param.value == "")
                   for key in dag.params for param in [dag.params.get_param(key)]},
        "tasks": {task.task_id: {
            "owner": task.owner, "queue": task.queue, "pool": task.pool, "retries": task.retries,
            "policy": task.has_retry_policy, "backoff": task.retry_exponential_backoff,
            "timeout_s": task.execution_timeout and task.execution_timeout.total_seconds(),
            "asks": hasattr(task, "response_timeout"),
            "label": task.map_index_template, "mapped": bool(task.get_closest_mapped_task_group()) or task.is_mapped,
            "rule": str(getattr(task.trigger_rule, "value", task.trigger_rule)),
        } for task in dag.tasks},
    }
print("\\n" + json.dumps({"page": page["render"](), "dags": dags}))
"""
    command = [sys.executable, "-c", script, str(ROOT / "scripts" / "dag_docs.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def tasks(name: str) -> dict[str, Any]:
    found: dict[str, Any] = loaded()["dags"][name]["tasks"]
    return found


def test_parsing_is_light(tmp_path: Path) -> None:
    script = """
import runpy, sys
for path in sys.argv[2:]:
    runpy.run_path(path)
    print("\\n" + path, *[name for name in sys.argv[1].split() if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, " ".join(HEAVY), *map(str, FILES)],
        capture_output=True,
        text=True,
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "plugins")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(str(ROOT))]  # Airflow warns between
    assert told == [[str(path)] for path in FILES], "imported while parsing"


@every_file
def test_module_level_imports_are_light(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        else:
            continue
        for name in names:
            light = name.startswith(("airflow.sdk", "airflow.providers.standard", "curation_"))
            light = light or name.split(".")[0] in sys.stdlib_module_names
            assert light, f"{path.name} imports {name} at module level"


@every_file
def test_file_dag_and_function_share_a_name(path: Path) -> None:
    assert path.stem in loaded()["dags"]
    functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert path.stem in functions


@every_dag
def test_the_docstring_is_the_page_with_its_four_fields(name: str) -> None:
    doc = loaded()["dags"][name]["doc"]
    assert [field for field in FIELDS if f"\n{field}" not in doc] == []
    assert doc.strip() == ast.get_docstring(ast.parse((ROOT / "dags" / f"{name}.py").read_text()))


@every_dag
def test_tags_and_owner(name: str) -> None:
    assert loaded()["dags"][name]["tags"]
    assert {task["owner"] for task in tasks(name).values()} == {"curation"}
    assert not loaded()["dags"][name]["catchup"]


@every_dag
def test_every_task_has_a_timeout_and_retries_only_what_heals(name: str) -> None:
    for task, settings in tasks(name).items():
        assert settings["timeout_s"] or settings["asks"], task  # a question waits for a person, and holds no worker
        assert settings["retries"], task
        assert settings["policy"], task
        assert settings["backoff"], task


def test_what_heals_is_retried_and_a_wrong_setting_is_not(tmp_path: Path) -> None:
    script = """
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowTaskTimeout, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from curation.errors import BadShardError, ConfigError, OutageError
from curation_dags import DEFAULT_ARGS

away = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "timed out"}))
errors = [OutageError("s3"), AirflowTaskTimeout(), away, BadShardError("shard"), ConfigError("field")]
found = [DEFAULT_ARGS["retry_policy"].evaluate(error, 1, 3).action.value for error in errors]
print("\\n" + " ".join(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].split() == ["default", "default", "default", "fail", "fail"]


@every_dag
def test_somebody_is_told_of_a_run_that_fails_or_is_late(name: str) -> None:
    assert loaded()["dags"][name]["told"]


@every_dag
def test_mapped_tasks_are_labelled(name: str) -> None:
    assert [task for task, settings in tasks(name).items() if settings["mapped"] and not settings["label"]] == []


@every_dag
def test_the_form_explains_each_parameter(name: str) -> None:
    for key, schema in loaded()["dags"][name]["params"].items():
        assert schema.get("title"), key
        assert schema.get("description"), key
        assert "type" in schema or "enum" in schema, key
        assert not schema["empty"], f"{key}: the form asks for a text where it is empty; null may be left out"


def test_curate_block_sends_gpu_work_to_the_gpu_queue_and_takes_its_pools() -> None:
    found = tasks("curate_block")
    assert {task for task, one in found.items() if one["queue"] == "gpu"} == {"measure.score", "judge.caption"}
    assert {task: one["pool"] for task, one in found.items() if one["pool"] != "default_pool"} == {
        "measure.download": "download",
        "match_pairs": "index",
        "match": "index",
    }


def test_bootstrap_captions_asks_for_every_setting_and_sends_its_models_work_to_the_gpu_queue() -> None:
    from curation.captions.bootstrap import STEPS, Bootstrap

    asked = Bootstrap.model_json_schema()["properties"]
    form = loaded()["dags"]["bootstrap_captions"]["params"]
    assert set(form) == set(asked)
    assert form["rounds"]["maximum"] == asked["rounds"]["maximum"]
    gpu = [task for task, one in tasks("bootstrap_captions").items() if one["queue"] == "gpu"]
    rounds = form["rounds"]["maximum"] + 1
    assert len(gpu) == len(STEPS) * rounds - 1  # nothing to clean in the first one


def test_curate_block_has_a_task_for_every_stage_and_offers_every_recipe() -> None:
    from curation.recipe import STAGE_ORDER, recipe_names

    found = {task.rpartition(".")[2] for task in tasks("curate_block")}
    assert set(STAGE_ORDER) < found
    assert loaded()["dags"]["curate_block"]["params"]["recipe"]["enum"] == recipe_names()


def test_the_live_table_of_the_demo_shows_every_task() -> None:
    from curation.demo.watch import ONCE, TASKS

    found = tasks("curate_block")
    assert set(TASKS) == set(found)
    assert {task for task, one in found.items() if not one["mapped"]} == ONCE


def test_a_stage_that_the_recipe_leaves_out_stops_nobody() -> None:
    rules = {task: one["rule"] for task, one in tasks("curate_block").items() if one["mapped"] or task == "match"}
    assert rules.pop("export_selected") == "all_success"  # is left out together with select
    assert set(rules.values()) == {"none_failed"}, rules
    assert tasks("curate_block")["publish"]["rule"] == "none_failed"


def test_page_of_dags_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "dag_docs.py"))["PAGE"]
    assert page.read_text() == loaded()["page"], "run: make docs"
