"""A pass of the scheduler asks only about shards that can go on.

Airflow 3.3 evaluates in every pass all dependencies of every waiting instance of a mapped group: several queries and a
walk over all finished instances each, tens of seconds a pass at 1,000 shards. An instance whose own stage before is not
finished neither starts nor changes its state, whatever the answers are, so it is left out of the question. Everything
else is asked and decided by Airflow as ever. `CURATION_SHORT_PASSES=0` for the scheduler switches this off.
docs/decisions/0037-waiting-shards.md
"""

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import wraps
from hashlib import sha256
from inspect import getsource
from typing import Any, NamedTuple

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

READ = "fd5cf3a0"
"""Digest of Airflow's code that was read for this: another one means that it is to be read again."""
PATIENT_RULES = frozenset({"all_success", "all_done", "none_failed"})
"""Under these a task neither starts nor changes its state while an upstream is unfinished and all others succeeded."""


class Chain(NamedTuple):
    """What a task waits for: upstreams of which it waits for the instance of its own map index, and all others."""

    own: frozenset[str]
    others: frozenset[str]


def chain(task: Any) -> Chain:
    """Upstreams of a task of a mapped group; none where more than they could change the state of an instance."""
    from airflow.serialization.definitions.baseoperator import DEFAULT_OPERATOR_DEPS

    group = task.get_closest_mapped_task_group()
    if (
        group is None
        or task.is_mapped
        or task.is_teardown
        or task.trigger_rule not in PATIENT_RULES
        or not task.deps <= DEFAULT_OPERATOR_DEPS
        or any(True for _ in task.get_upstreams_only_setups())
        or any(before.inherits_from_skipmixin for before in task.upstream_list)
    ):
        return Chain(frozenset(), frozenset())
    own = {
        before.task_id
        for before in task.upstream_list
        if before.get_closest_mapped_task_group() is group and not before.is_mapped
    }
    others = task.upstream_task_ids | {before.task_id for before in group.iter_mapped_dependencies()}
    return Chain(frozenset(own), frozenset(others - own))


def worth_asking(
    instances: Iterable[Any], finished: Iterable[Any], unfinished: Collection[tuple[str, int]]
) -> list[Any]:
    """Those task instances of a run that do not surely wait for an unfinished one of their own mapped group.

    finished    the run's finished task instances, as Airflow is going to count them
    unfinished  task and map index of all others that exist
    """
    states = {(one.task_id, one.map_index): one.state for one in finished}
    of_task: defaultdict[str, set[str]] = defaultdict(set)
    for (task_id, _), state in states.items():
        of_task[task_id].add(state)
    chains: dict[str, Chain] = {}

    def waits(one: Any) -> bool:
        if one.map_index < 0 or one.state is not None:
            return False
        if one.task_id not in chains:
            chains[one.task_id] = chain(one.task)
        own, others = chains[one.task_id]
        before = [(task_id, one.map_index) for task_id in own]
        return (
            any(key not in states for key in before)
            and all(states[key] == "success" if key in states else key in unfinished for key in before)
            and all((task_id, -1) not in states for task_id in own)  # counts for every index
            and all(of_task[task_id] == {"success"} for task_id in others)
        )

    return [one for one in instances if not waits(one)]


def asking_less(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same question of a DAG run without those that surely wait."""

    @wraps(method)
    def asked(self: Any, instances: Sequence[Any], finished_tis: list[Any], session: Any) -> Any:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.state import State
        from sqlalchemy import select

        if all(one.map_index < 0 for one in instances):
            return method(self, instances, finished_tis, session)
        exist = select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state).where(
            TaskInstance.dag_id == self.dag_id, TaskInstance.run_id == self.run_id
        )
        unfinished = {(task, index) for task, index, state in session.execute(exist) if state in State.unfinished}
        return method(self, worth_asking(instances, finished_tis, unfinished), finished_tis, session)

    return asked


def known() -> str:
    """Digest of the code of the installed Airflow that this relies on."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance, _get_relevant_map_indexes
    from airflow.ti_deps.deps.mapped_task_upstream_dep import MappedTaskUpstreamDep
    from airflow.ti_deps.deps.not_in_retry_period_dep import NotInRetryPeriodDep
    from airflow.ti_deps.deps.not_previously_skipped_dep import NotPreviouslySkippedDep
    from airflow.ti_deps.deps.prev_dagrun_dep import PrevDagrunDep
    from airflow.ti_deps.deps.trigger_rule_dep import TriggerRuleDep

    deps = MappedTaskUpstreamDep, NotInRetryPeriodDep, NotPreviouslySkippedDep, PrevDagrunDep, TriggerRuleDep
    asking = DagRun._get_ready_tis, DagRun._are_premature_tis, DagRun.task_instance_scheduling_decisions
    answering = TaskInstance.are_dependencies_met, TaskInstance.get_failed_dep_statuses, _get_relevant_map_indexes
    return sha256("".join(map(getsource, (*deps, *asking, *answering))).encode()).hexdigest()[:8]


def ask_less(run_class: Any) -> None:
    """Have a class of DAG runs ask only what is worth asking."""
    for name in ("_get_ready_tis", "_are_premature_tis"):
        setattr(run_class, name, asking_less(getattr(run_class, name)))


def begin() -> None:
    """Have this process's DAG runs ask less, where Airflow's code is the one that was read."""
    log = logging.getLogger(__name__)
    if os.environ.get("CURATION_SHORT_PASSES") == "0":
        log.warning("CURATION_SHORT_PASSES=0: the scheduler asks about every waiting shard in every pass")
    elif (found := known()) != READ:
        log.warning(
            "This Airflow decides by other code (%s) than curation knows (%s): the scheduler asks about every "
            "waiting shard in every pass, tens of seconds at 1,000 shards. Use the Airflow of requirements.lock.",
            found,
            READ,
        )
    else:
        from airflow.models.dagrun import DagRun

        ask_less(DagRun)
        log.info("The scheduler leaves out of its passes those shards that wait for their own stage before")


class AtStart:
    """Told of each component and task that starts."""

    @hookimpl
    def on_starting(self, component: Any) -> None:
        """Only the scheduler asks; its tasks, forked from it, have no job and need nothing."""
        if type(component).__name__ == "Job" and "scheduler" in sys.argv:
            begin()


class CurationSchedulingPlugin(AirflowPlugin):
    """Short passes over blocks of many shards."""

    name = "curation_scheduling"
    listeners = [AtStart()]  # noqa: RUF012  Airflow's form
