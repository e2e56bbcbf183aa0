"""Airflow's verdicts on random runs, asked in full and asked less; run by test_scheduling_plugin.py.

Whatever state a run is in, a pass of the scheduler must make the same task instances ready, set the same states, add
the same rows and judge the run the same way with plugins/curation_scheduling.py as without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskmap import TaskMap
from airflow.sdk import DAG, dag, setup, task, task_group, teardown
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, State, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
import curation_scheduling

WIDTH = 3
ASKED_FULLY = {name: getattr(DagRun, name) for name in ("_get_ready_tis", "_are_premature_tis")}
numbers = count()


def chained(rule: str, depth: int = 3) -> Any:
    """A mapped group of a chain."""

    @task_group(group_id=f"chain_{rule}_{depth}")
    def group(shard: int, block: Any = None) -> None:
        before = None
        for number in range(depth):

            @task(task_id=f"stage_{number}", trigger_rule=rule)
            def stage(shard: int, block: Any) -> None: ...

            now = stage(shard, block)
            if before is not None:
                before >> now
            before = now

    return group


@dag(schedule=None)
def like_a_block() -> None:
    """curate_block's shape: a mapped task, and two groups behind barriers, whose results each of their stages takes."""

    @task
    def plan() -> list[int]: ...
    @task
    def extract(shard: int) -> None: ...
    @task
    def match_pairs(shards: Any) -> dict[str, str]: ...
    @task(trigger_rule="none_failed")
    def match(shards: Any) -> dict[str, str]: ...
    @task(trigger_rule="none_failed")
    def publish() -> None: ...

    shards = plan()
    extracted, paired, matched = extract.expand(shard=shards), match_pairs(shards), match(shards)
    measured = chained("none_failed").partial(block=paired).expand(shard=shards)
    judged = chained("none_failed", 2).partial(block=matched).expand(shard=shards)
    extracted >> paired
    measured >> matched >> judged >> publish()


@dag(schedule=None)
def with_setups() -> None:
    """A group with a setup, a teardown, a diamond and other rules."""

    @task
    def plan() -> list[int]: ...

    @task_group
    def group(shard: int) -> None:
        @setup
        def begin() -> None: ...
        @teardown
        def end() -> None: ...
        @task
        def left() -> None: ...
        @task(trigger_rule="all_done")
        def right() -> None: ...
        @task
        def both() -> None: ...

        first, last = begin(), both()
        first >> [left(), right()] >> last >> end().as_teardown(setups=first)

    group.expand(shard=plan())


@dag(schedule=None)
def with_rules() -> None:
    """A group with a group inside, rules that need a failure or a success, and a task that looks at earlier runs."""

    @task
    def plan() -> list[int]: ...

    @task_group
    def group(shard: int) -> None:
        @task(depends_on_past=True)
        def one() -> None: ...
        @task(trigger_rule="none_failed_min_one_success")
        def three() -> None: ...
        @task(trigger_rule="one_failed")
        def alarm() -> None: ...
        @task_group
        def nested() -> None:
            @task(trigger_rule="all_done")
            def two() -> None: ...
            @task
            def after_two() -> None: ...

            two() >> after_two()

        begin = one()
        begin >> nested() >> three()
        begin >> alarm()

    group.expand(shard=plan())


@dag(schedule=None)
def with_others_before() -> None:
    """Groups whose later stages also wait for a mapped task outside or for a branch; one's width is in the code."""

    @task
    def plan() -> list[int]: ...
    @task.branch
    def choose() -> str: ...
    @task
    def mapped_outside(shard: int) -> None: ...

    def group_of(name: str, before: Any) -> Any:
        @task_group(group_id=name)
        def group(shard: int) -> None:
            @task
            def one() -> None: ...
            @task
            def two() -> None: ...

            last = two()
            [one(), before] >> last

        return group

    shards = plan()
    group_of("after_mapped", mapped_outside.expand(shard=shards)).expand(shard=shards)
    group_of("after_branch", choose()).expand(shard=[7, 8, 9])


DAGS = (like_a_block(), with_setups(), with_rules(), with_others_before())


def saved(one: DAG) -> Any:
    """The DAG as the scheduler has it."""
    with create_session() as session:
        if session.get(DagBundleModel, "tests") is None:
            session.add(DagBundleModel(name="tests"))
            session.flush()
        session.add(DagModel(dag_id=one.dag_id, bundle_name="tests"))
        session.flush()
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(one), bundle_name="tests", session=session)
    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(one))


@contextmanager
def asking(less: bool) -> Iterator[None]:
    """With or without the plugin."""
    for name, method in ASKED_FULLY.items():
        setattr(DagRun, name, curation_scheduling.asking_less(method) if less else method)
    try:
        yield
    finally:
        for name, method in ASKED_FULLY.items():
            setattr(DagRun, name, method)


def rows(run_id: str, session: Any) -> dict[tuple[str, int], Any]:
    found = select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state).where(
        TaskInstance.run_id == run_id
    )
    return {(name, index): state for name, index, state in session.execute(found)}


def a_pass(serialized: Any, run_id: str, less: bool, session: Any) -> tuple[Any, ...]:
    """What one pass says and does; the scheduler's own method on the run as the database has it."""
    session.expire_all()
    run = session.scalar(select(DagRun).where(DagRun.run_id == run_id))
    run.dag = serialized
    with asking(less):
        ready, _ = run.update_state(session=session, execute_callbacks=False)
    session.flush()
    return sorted((one.task_id, one.map_index) for one in ready), rows(run_id, session), run.state


def made(serialized: Any, session: Any) -> str:
    """A new run."""
    now = datetime.now(UTC)
    run_id = f"run_{next(numbers)}"
    serialized.create_dagrun(
        run_id=run_id, logical_date=now, data_interval=(now, now), run_after=now, run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.TEST, state=DagRunState.RUNNING, start_date=now, session=session,
    )  # fmt: skip
    session.flush()
    return run_id


def width(dag_id: str, run_id: str, length: int) -> TaskMap:
    """What the task `plan` tells of its result: how many instances what is mapped over it has."""
    return TaskMap(dag_id=dag_id, task_id="plan", run_id=run_id, map_index=-1, length=length, keys=None)


def compared(serialized: Any, run_id: str, session: Any) -> tuple[Any, ...]:
    """Verdict of a pass, the same asked in full and asked less; what it did is done once."""
    session.commit()
    fully = a_pass(serialized, run_id, False, session)
    session.rollback()
    less = a_pass(serialized, run_id, True, session)
    assert less == fully, (less, fully)
    session.commit()
    return less


ENDS = [TaskInstanceState.SUCCESS] * 6 + [None] * 3  # None: it goes on
ENDS += [TaskInstanceState.FAILED, TaskInstanceState.SKIPPED, TaskInstanceState.UP_FOR_RETRY]
WIDTHS = [WIDTH, WIDTH, WIDTH, 0]
EVERY = [None, *TaskInstanceState]
# what is usual comes often, so that whole chains of it come up
STATES = st.sampled_from([None] * 8 + [TaskInstanceState.SUCCESS] * 8 + [TaskInstanceState.RUNNING] * 2 + EVERY)


def rare_states(serialized: Any) -> None:
    """What random states seldom meet: a stage before without a row, or a failed row left from before the expansion."""
    done = {("plan", -1), *(("extract", index) for index in range(WIDTH)), ("match_pairs", -1)}
    first, second = (f"chain_none_failed_3.stage_{number}" for number in range(2))
    running, failed = TaskInstanceState.RUNNING, TaskInstanceState.FAILED
    for before, found in ({(first, 1): running}, (second, 0)), ({(first, 0): running, (first, -1): failed}, None):
        with create_session() as session:
            run_id = made(serialized, session)
            version = session.scalar(select(DagVersion.id).where(DagVersion.dag_id == serialized.dag_id))
            session.add(width(serialized.dag_id, run_id, WIDTH))
            session.execute(delete(TaskInstance).where(TaskInstance.run_id == run_id))
            states = dict.fromkeys(done, TaskInstanceState.SUCCESS) | before | {(second, 0): None, (second, 1): None}
            for (name, index), state in states.items():
                one = TaskInstance(serialized.get_task(name), dag_version_id=version, run_id=run_id, map_index=index)
                one.state = state
                session.add(one)
            session.flush()
            ready, after, _ = compared(serialized, run_id, session)
            assert found in ready if found else after[second, 0] == TaskInstanceState.UPSTREAM_FAILED, (ready, after)


@settings(deadline=None, max_examples=int(sys.argv[1]), suppress_health_check=list(HealthCheck))
@given(st.data())
def any_state(data: st.DataObject) -> None:
    """Any states whatever, rows that are absent or left over, and a plan that has told its width or hasn't."""
    serialized = data.draw(st.sampled_from(SERIALIZED))
    with create_session() as session:
        run_id = made(serialized, session)
        version = session.scalar(select(DagVersion.id).where(DagVersion.dag_id == serialized.dag_id))
        told = data.draw(st.sampled_from([None, 0, *[WIDTH] * 6, WIDTH + 1]))
        if told is not None:
            session.add(
                TaskMap(dag_id=serialized.dag_id, task_id="plan", run_id=run_id, map_index=-1, length=told, keys=None)
            )
        session.execute(delete(TaskInstance).where(TaskInstance.run_id == run_id))
        for one in serialized.tasks:
            indexes = [-1]
            if one.get_needs_expansion() and data.draw(st.integers(0, 9)):
                indexes = [*range(WIDTH)]
                if not data.draw(st.integers(0, 3)):
                    indexes = data.draw(st.lists(st.integers(-1, WIDTH), unique=True, max_size=WIDTH))
            usual = data.draw(st.sampled_from([None, TaskInstanceState.SUCCESS, "any", "any"]))
            for index in indexes:
                instance = TaskInstance(one, dag_version_id=version, run_id=run_id, map_index=index)
                instance.state = data.draw(STATES) if usual == "any" else usual
                instance.end_date = datetime.now(UTC)  # of the try before, where it is to be tried again
                session.add(instance)
        session.flush()
        for _ in range(3):  # an effect of the first passes, such as a failure passed on, is met by the next
            compared(serialized, run_id, session)


def moved(run_id: str, ready: list[tuple[str, int]], data: st.DataObject | None, session: Any) -> None:
    """What is ready runs; of what runs and has ended some goes on, as drawn; without data all ends well."""
    success = TaskInstanceState.SUCCESS
    for one in session.scalars(select(TaskInstance).where(TaskInstance.run_id == run_id)).all():
        ends = success if data is None else data.draw(st.sampled_from(ENDS))
        if (one.task_id, one.map_index) in ready or one.state == TaskInstanceState.UP_FOR_RETRY:
            one.state = TaskInstanceState.RUNNING
        elif one.state == TaskInstanceState.RUNNING and ends is not None:
            one.state, one.end_date = ends, datetime.now(UTC)
            if one.task_id == "plan" and ends == success and not session.get(TaskMap, (one.dag_id, "plan", run_id, -1)):
                session.add(width(one.dag_id, run_id, WIDTH if data is None else data.draw(st.sampled_from(WIDTHS))))
        elif data is not None and ends is None and one.state in State.finished and one.task_id != "plan":
            one.state = None if not data.draw(st.integers(0, 20)) else one.state  # now and then one is cleared


@settings(deadline=None, max_examples=int(sys.argv[1]) // 4, suppress_health_check=list(HealthCheck))
@given(st.data())
def whole_run(data: st.DataObject) -> None:
    """From the start to the end: some of what runs ends, well or badly, now and then something is cleared."""
    serialized = data.draw(st.sampled_from(SERIALIZED))
    with create_session() as session:
        session.execute(delete(DagRun))  # what looks back sees no earlier run
        run_id = made(serialized, session)
        for number in range(60):
            ready, _, state = compared(serialized, run_id, session)
            if state != DagRunState.RUNNING:
                return
            moved(run_id, ready, data if number < 15 else None, session)  # from then on all goes well, to an end
        raise AssertionError(f"{run_id} of {serialized.dag_id} never ended: {rows(run_id, session)}")


if __name__ == "__main__":
    initdb()
    assert curation_scheduling.known() == curation_scheduling.READ, curation_scheduling.known()
    SERIALIZED = [saved(one) for one in DAGS]
    rare_states(SERIALIZED[0])
    any_state()
    whole_run()
    print("the same")
