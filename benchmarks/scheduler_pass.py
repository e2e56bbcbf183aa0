"""CPU seconds of one pass of Airflow's scheduler over a block, with plugins/curation_scheduling.py and without it.

    python benchmarks/scheduler_pass.py [--shards 1000]

A run of `curate_block`'s shape on a private SQLite database: the group of 5 stages is expanded, 16 shards run its first
stage, for the others it is scheduled, 4,000 instances wait. Prints one JSON; both passes must say the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

STAGES = 5


def main() -> None:
    """Set up once, pass twice."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    shards = parser.parse_args().shards
    with tempfile.TemporaryDirectory(prefix="scheduler-pass-") as home:
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        os.environ |= {"AIRFLOW__CORE__PLUGINS_FOLDER": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))
        print(json.dumps(measured(shards), indent=1))


def measured(shards: int) -> dict[str, object]:
    """Seconds of a pass and what it found ready."""
    import curation_scheduling
    from airflow.models.dag import DagModel
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskmap import TaskMap
    from airflow.sdk import dag, task, task_group
    from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, TaskInstanceState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from sqlalchemy import delete, select

    @dag(schedule=None)
    def block() -> None:
        @task
        def plan() -> list[int]: ...

        @task_group
        def judge(shard: int) -> None:
            before = None
            for number in range(STAGES):

                @task(task_id=f"stage_{number}", trigger_rule="none_failed")
                def stage(shard: int) -> None: ...

                now = stage(shard)
                before = now if before is None else before >> now

        judge.expand(shard=plan())

    initdb()
    made = block()
    serialized = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(made))
    now = datetime.now(UTC)
    with create_session() as session:
        session.add(DagBundleModel(name="measured"))
        session.flush()
        session.add(DagModel(dag_id="block", bundle_name="measured"))
        session.flush()
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(made), bundle_name="measured", session=session)
        session.commit()
        serialized.create_dagrun(
            run_id="run", logical_date=now, data_interval=(now, now), run_after=now, run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST, state=DagRunState.RUNNING, start_date=now, session=session,
        )  # fmt: skip
        session.add(TaskMap(dag_id="block", task_id="plan", run_id="run", map_index=-1, length=shards, keys=None))
        session.execute(delete(TaskInstance))
        version = session.scalar(select(DagVersion.id))
        for one in serialized.tasks:
            for index in [-1] if one.task_id == "plan" else range(shards):
                instance = TaskInstance(one, dag_version_id=version, run_id="run", map_index=index)
                if one.task_id == "plan":
                    instance.state, instance.end_date = TaskInstanceState.SUCCESS, now
                elif one.task_id.endswith("_0"):
                    instance.state = TaskInstanceState.RUNNING if index < 16 else TaskInstanceState.SCHEDULED
                session.add(instance)

    def a_pass() -> tuple[float, list[str]]:
        with create_session() as session:
            run = session.scalar(select(DagRun))
            run.dag = serialized
            began = time.process_time()
            ready, _ = run.update_state(session=session, execute_callbacks=False)
            seconds = time.process_time() - began
            columns = TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state
            found = sorted(map(str, session.execute(select(*columns))))
            said = [*found, *sorted(map(str, ready)), str(run._state)]
            session.rollback()
        return round(seconds, 2), said

    a_pass()  # the first one also loads code
    fully, said = a_pass()
    curation_scheduling.ask_less(DagRun)
    less, also = a_pass()
    assert said == also, "the plugin changed a decision"
    return {"shards": shards, "waiting": (STAGES - 1) * shards, "all_asked_cpu_s": fully, "without_waiting_cpu_s": less}


if __name__ == "__main__":
    main()
