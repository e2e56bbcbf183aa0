"""Write docs/dags.md from the DAGs themselves: `python scripts/dag_docs.py`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import DAG, Param
    from airflow.sdk.types import Operator

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dags.md"


def load() -> dict[str, DAG]:
    """All DAGs of the checkout by id; raises ImportError with what is wrong in a file that doesn't load."""
    home = tempfile.mkdtemp(prefix="airflow-")  # Airflow writes its configuration there when it is imported
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["AIRFLOW_HOME"] = home
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=ROOT / "dags", collect_dags=False)
    bag.collect_dags(dag_folder=ROOT / "dags")
    for file, error in bag.import_errors.items():
        raise ImportError(f"{file}: {error}")
    return dict(sorted(bag.dags.items()))


def render() -> str:
    """The page as text."""
    lines = ["# DAGs", "", "Made by `python scripts/dag_docs.py` from `dags/`; a test keeps it up to date.", ""]
    for name, dag in load().items():
        lines += [f"## {name}", "", (dag.doc_md or "").strip(), ""]
        lines += ["### Parameters", "", "| name | default | meaning |", "| --- | --- | --- |"]
        for key in dag.params:
            param = dag.params.get_param(key)
            lines.append(f"| `{key}` | {_default(param)} | {_meaning(param)} |")
        lines += ["", "### Tasks", "", "| task | one per | queue | pool | retries | at most | after |"]
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for task in dag.topological_sort():
            timeout = task.execution_timeout
            limit = f"{timeout.total_seconds() / 3600:g} h" if timeout else "-"
            per = "shard" if task.get_closest_mapped_task_group() or task.is_mapped else "run"
            pool = "-" if task.pool == "default_pool" else task.pool
            after = ", ".join(_nearest(task)) or "-"
            name_of = task.task_id.rpartition(".")[2]
            lines.append(f"| {name_of} | {per} | {task.queue} | {pool} | {task.retries} | {limit} | {after} |")
        lines.append("")
    return "\n".join(lines)


def _meaning(param: Param) -> str:
    parts = [str(param.description or "-")]
    for key, word in (("enum", "One of"), ("examples", "Such as")):
        if key in param.schema:
            parts.append(f"{word} {', '.join(f'`{value}`' for value in param.schema[key])}.")
    return " ".join(parts).replace("|", "\\|")


def _default(param: Param) -> str:
    if param.has_value:
        return f"`{param.value}`" if param.value not in ("", {}) else "empty"
    return "none" if "null" in param.schema["type"] else "required"


def _nearest(task: Operator) -> list[str]:
    """Tasks that this one waits for, less those that another of them waits for."""
    before = {one.task_id: one.get_flat_relative_ids(upstream=True) for one in task.upstream_list}
    near = [name for name in before if not any(name in further for further in before.values())]
    return sorted(name.rpartition(".")[2] for name in near)


if __name__ == "__main__":
    PAGE.write_text(render())
