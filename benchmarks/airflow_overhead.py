"""What Airflow itself costs: blocks of shards whose stages do nothing, by executor and database.

    python benchmarks/airflow_overhead.py [--database postgresql] [--executor celery] [--shards 1000] [--seconds 150]

Generates a DAG with mapped groups of no-op tasks (curate_block has the shape --stages 9 --barriers 1 4), runs it
on a private Airflow and prints one JSON: seconds a task, the scheduler's lag, how much deeper than wide the block went,
the database's growth, and how long the API took to answer meanwhile. A run that is longer than --seconds is ended and
told by what it had done; standard error has a line a minute. Without --database it is SQLite; celery needs PostgreSQL
and has two workers. The scheduler is set as the fleet's files set it, the tasks leave counts as those of a stage do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import ADMIN, AirflowServer
from curation.demo.fleet import Fleet
from curation.demo.statsd import Statsd
from curation.errors import OutageError

DAG = """
from airflow.sdk import dag, task, task_group

BARRIERS = {barriers}

@dag(schedule=None, catchup=False, max_active_tasks=1024)
def {name}():
    @task
    def plan():
        return list(range({shards}))

    def nothing(stage, shard):
        @task(task_id=f"stage_{{stage}}", map_index_template="{{{{ task.op_kwargs.shard }}}}")
        def here(shard):
            return dict(rows=60000, measured=20000, dropped={{"too_small": 40000}}, faults={{}}, seconds=9.5)
        return here(shard=shard)

    def group_of(first, last):
        @task_group(group_id=f"from_{{first}}")
        def stages(shard):
            chain = [nothing(stage, shard) for stage in range(first, last)]
            for one, following in zip(chain, chain[1:]):
                one >> following
        return stages

    @task
    def barrier():
        pass

    shards = plan()
    before = None
    for first, last in zip([0, *BARRIERS], [*BARRIERS, {stages}]):
        group = group_of(first, last).expand(shard=shards)
        if before is not None:
            before >> barrier.override(task_id=f"barrier_{{first}}")() >> group
        before = group

{name}()
"""
NAME = "no_op_block"
RUN = "measured"


class Browser(AirflowClient):
    """Asks for what the grid of the UI asks for while a run goes on."""

    def grid(self) -> float:
        """Seconds until the summary of all the run's task instances was there."""
        return self._timed(f"/ui/grid/ti_summaries/{NAME}?run_ids={RUN}")

    def page(self) -> float:
        """Seconds until a page of the run's task instances was there."""
        return self._timed(f"/api/v2/dags/{NAME}/dagRuns/{RUN}/taskInstances?limit=50")

    def _timed(self, place: str) -> float:
        asked = time.monotonic()
        request = urllib.request.Request(f"{self._url}{place}")
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            answer.read()
        return time.monotonic() - asked


def timed(asked: Callable[[], float], answers: list[float]) -> int:
    """Note how long an answer took; returns 1 when there was none."""
    try:
        answers.append(asked())
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


class LocalOnPostgres(Fleet):
    """The fleet's PostgreSQL under a LocalExecutor, without broker, S3 and workers."""

    def start(self) -> None:
        """Start PostgreSQL, then Airflow's components."""
        self.start_database()
        AirflowServer.start(self)

    @property
    def store_environment(self) -> dict[str, str]:
        """No store: the tasks do nothing."""
        return {}

    def _environment(self, port: int) -> dict[str, str]:
        slots = self._settings["AIRFLOW__CORE__PARALLELISM"]
        local = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor", "AIRFLOW__CORE__PARALLELISM": slots}
        return super()._environment(port) | local


def server(folder: Path, database: str, executor: str, settings: Mapping[str, str]) -> AirflowServer:
    """The Airflow that is asked for."""
    root = Path(__file__).resolve().parents[1]
    if executor == "celery":
        return Fleet(folder / "home", root, settings, concurrency={"gpu": 2})
    kind = LocalOnPostgres if database == "postgresql" else AirflowServer
    return kind(folder / "home", root, settings)


def database_bytes(url: str) -> int:
    """Size of the whole database."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
        return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    with create_engine(url).connect() as connection:
        return int(connection.execute(text("select pg_database_size(current_database())")).scalar_one())


def instances(url: str) -> list[dict[str, Any]]:
    """Task instances of the run with their times [s]."""
    query = text(
        "select task_id, map_index, state, scheduled_dttm, queued_dttm, start_date, end_date from task_instance "
        "where dag_id = :dag and run_id = :run"
    )
    with create_engine(url).connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(query, {"dag": NAME, "run": RUN})]
    for row in rows:
        for name in ("scheduled_dttm", "queued_dttm", "start_date", "end_date"):
            value = row[name]
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            row[name] = value.timestamp() if value else None
    return rows


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    if not values:
        return {}
    ordered = sorted(values)
    found = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]
    return dict(zip(("median", "p95", "max"), (round(value, 3) for value in found), strict=True))


def measured(rows: list[dict[str, Any]], stages: int) -> dict[str, Any]:
    """Rates and lags of a run from its task instances."""
    done = {(row["task_id"], row["map_index"]): row for row in rows if row["state"] == "success" and row["end_date"]}
    steps = [row for row in done.values() if row["map_index"] >= 0]
    if not steps:
        return {"tasks_done": 0}
    first, last = min(row["start_date"] for row in steps), max(row["end_date"] for row in steps)
    lags = []
    for (task, index), row in done.items():
        group, _, stage = task.rpartition("stage_")
        before = done.get((f"{group}stage_{int(stage) - 1}", index)) if index >= 0 else None
        if before is not None:
            lags.append(row["scheduled_dttm"] - before["end_date"])
    whole = [row["end_date"] for row in steps if row["task_id"].endswith(f".stage_{stages - 1}")]
    opened = [row["start_date"] for row in steps if row["task_id"].endswith(".stage_0")]
    return {
        "tasks_done": len(steps),
        "seconds": round(last - first, 1),
        "seconds_a_task": round((last - first) / len(steps), 3),
        "tasks_a_minute": round(60 * len(steps) / (last - first)),
        "task_runs_s": spread([row["end_date"] - row["start_date"] for row in steps]),
        "scheduled_after_its_upstream_s": spread(lags),
        "started_after_queued_s": spread([row["start_date"] - row["queued_dttm"] for row in steps]),
        "shards_whole": len(whole),
        "shards_whole_before_the_last_began": sum(end < max(opened) for end in whole),
    }


def main() -> None:
    """Run once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--executor", choices=("local", "celery"), default="local")
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--stages", type=int, choices=range(1, 10), default=8)
    parser.add_argument("--barriers", type=int, nargs="*", default=[], help="stages before which all shards meet")
    parser.add_argument("--parallelism", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--every", type=float, default=2, help="seconds between looks by the API")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="airflow-overhead-") as name:
        folder = Path(name)
        (folder / "dags").mkdir()
        (folder / "dags" / f"{NAME}.py").write_text(
            DAG.format(name=NAME, shards=options.shards, stages=options.stages, barriers=options.barriers)
        )
        heard = Statsd()
        settings = {"AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"), **heard.settings}
        settings |= {
            "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "0",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "180",
        }
        if options.executor == "local":
            settings["AIRFLOW__CORE__PARALLELISM"] = str(options.parallelism)
        with heard, server(folder, options.database, options.executor, settings) as airflow:
            airflow.start()
            client = Browser(airflow.url, ADMIN, airflow.password)
            client.wait_until_healthy(NAME, airflow.check, patience_s=900)
            url = airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
            before = database_bytes(url)
            client.trigger(NAME, RUN, {})
            began, state = time.monotonic(), "queued"
            answers: list[float] = []
            pages: list[float] = []
            told, unanswered = began, 0
            while state not in ("success", "failed") and time.monotonic() - began < options.seconds:
                time.sleep(options.every)
                unanswered += timed(client.grid, answers) + timed(client.page, pages)
                with contextlib.suppress(OutageError):
                    state = client.run_state(NAME, RUN)
                airflow.check()
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    states = Counter(row["state"] or "waiting" for row in instances(url))
                    loops = heard.timings["airflow.scheduler.scheduler_loop_duration"][-1:]
                    print(round(told - began), dict(states), loops, answers[-1:], file=sys.stderr, flush=True)
            rows = instances(url)
            found = {
                "executor": options.executor,
                "database": options.database if options.executor == "local" else "postgresql",
                "shards": options.shards,
                "stages": options.stages,
                "parallelism": options.parallelism if options.executor == "local" else 4,
                "state": state,
                "task_instances": len(rows),
                **measured(rows, options.stages),
                "scheduler_loop_s": spread(
                    [ms / 1000 for ms in heard.timings["airflow.scheduler.scheduler_loop_duration"]]
                ),
                "database_grew_bytes": database_bytes(url) - before,
                "grid_answers_s": spread(answers),
                "page_answers_s": spread(pages),
                "unanswered": unanswered,
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
