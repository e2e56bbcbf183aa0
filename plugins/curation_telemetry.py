"""Metrics and lineage of every task: what curation.telemetry tells goes to Airflow's StatsD or OpenTelemetry and hooks.

Which server, and whether at all, is Airflow's own setting: `AIRFLOW__METRICS__STATSD_ON`, `AIRFLOW__METRICS__OTEL_ON`,
`AIRFLOW__OPENLINEAGE__TRANSPORT`. docs/observability.md names the metrics.
"""

import socket
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.lineage import get_hook_lineage_collector
from airflow.sdk.observability.stats import gauge, incr, normalize_name_for_stats

GPU_EVERY_S = 10.0


def emit(made: Any) -> None:
    """Count what a receipt tells, and name its datasets to the task's lineage."""
    from curation.telemetry import counts

    tags = {"dump": made.receipt.dump, "recipe": made.receipt.recipe}
    for name, value in counts(made):
        incr(f"curation.{name}", value, tags=tags)
    collector = get_hook_lineage_collector()
    for place in made.inputs:
        collector.add_input_asset(made, uri=uri(place))
    collector.add_output_asset(made, uri=uri(made.output))


def uri(place: str) -> str:
    """Name of a place of the store for the whole world: s3:// as it is, a folder as file://."""
    return place if "://" in place else Path(place).absolute().as_uri()


class GpuWatch:
    """Tells how busy the GPUs are as long as a task of the queue gpu runs."""

    def __init__(self) -> None:
        self._end = Event()

    def begin(self) -> None:
        """Look every ten seconds, until `finish` or the end of the process."""
        self._end.clear()
        Thread(target=self._watch, name="gpu-watch", daemon=True).start()

    def finish(self) -> None:
        """Look no more."""
        self._end.set()

    def _watch(self) -> None:
        from curation.models.gpu import gpus

        host = normalize_name_for_stats(socket.gethostname().partition(".")[0], log_warning=False)
        while found := gpus():
            for gpu in found:
                gauge(f"curation.gpu_busy_percent.{host}.{gpu.number}", gpu.busy)
                gauge(f"curation.gpu_memory_percent.{host}.{gpu.number}", round(100 * gpu.memory))
            if self._end.wait(GPU_EVERY_S):
                return


watch = GpuWatch()


@hookimpl
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    """Listen to what the task is going to make."""
    from curation import telemetry

    if emit not in telemetry.listeners:
        telemetry.listeners.append(emit)
    if getattr(getattr(task_instance, "task", None), "queue", "") == "gpu":
        watch.begin()


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Let the GPUs be."""
    watch.finish()


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """Let the GPUs be."""
    watch.finish()


class CurationTelemetry(AirflowPlugin):
    """Put this module among Airflow's listeners."""

    name = "curation_telemetry"
    listeners = [sys.modules[__name__]]  # noqa: RUF012  Airflow's form
