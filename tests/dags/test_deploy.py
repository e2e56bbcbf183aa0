"""deploy/ against the code: queues, settings and metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

from curation.recipe import STAGE_ORDER
from curation.verdicts import Fault

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FLEET: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes-values.yaml").read_text())
MAPPINGS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "statsd-mapping.yaml").read_text())["mappings"]
SETS = {one["name"]: one for one in VALUES["workers"]["celery"]["sets"]}


def environment(one: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in one["env"]}


def test_each_queue_has_one_worker_set_with_bounds_that_scales_by_its_own_tasks() -> None:
    queues = {FLEET["services"][name]["command"][3] for name in ("worker", "worker-gpu")}
    assert {one["queue"] for one in SETS.values()} == queues
    for one in SETS.values():
        assert {"cpu", "memory"} <= one["resources"]["limits"].keys()
        assert f"queue = '{one['queue']}'" in one["keda"]["query"]
    assert not VALUES["workers"]["celery"]["enableDefault"]


def test_only_the_gpu_set_asks_for_a_gpu_and_runs_one_task_at_a_time() -> None:
    asking = {name: one for name, one in SETS.items() if "nvidia.com/gpu" in one["resources"]["limits"]}
    assert set(asking) == {"gpu"}
    assert environment(asking["gpu"])["AIRFLOW__CELERY__WORKER_CONCURRENCY"] == "1"


def test_settings_agree_with_the_fleet_in_containers() -> None:
    fleet = FLEET["services"]["scheduler"]["environment"]
    for section, options in VALUES["config"].items():
        for option, value in options.items():
            name = f"AIRFLOW__{section}__{option}".upper()
            if name in fleet:
                assert fleet[name].lower() == value.lower(), name
    assert VALUES["config"]["core"]["parallelism"] == fleet["AIRFLOW__CORE__PARALLELISM"]
    assert VALUES["executor"] == fleet["AIRFLOW__CORE__EXECUTOR"]
    stored = {entry["name"]: entry["value"] for entry in VALUES["env"]}
    assert stored["CURATION_STORE"] == fleet["CURATION_STORE"]


def test_no_secret_is_spelt() -> None:
    assert not re.search(r"://[^/@\s]+:[^/@\s.]+@", yaml.safe_dump(VALUES))
    assert not [
        name for one in (VALUES, *SETS.values()) for name in environment(one) if re.search("SECRET|PASSW", name)
    ]
    assert not VALUES["postgresql"]["enabled"]


def mapped(metric: str) -> tuple[str, dict[str, str]]:
    for mapping in MAPPINGS:
        parts = re.fullmatch(re.escape(mapping["match"]).replace(r"\*", r"([^.]+)"), metric)
        if parts:
            return mapping["name"], {key: parts[int(value[1:])] for key, value in mapping["labels"].items()}
    pytest.fail(f"no mapping of {metric}")


def test_every_metric_becomes_labels() -> None:
    source = (DEPLOY.parent / "curation" / "telemetry.py").read_text()
    tallies = re.findall(r'"(\w+)"', source.partition("for what in (")[2].partition(")")[0])
    assert tallies
    for what in ("shards", "milliseconds", *tallies):
        name, labels = mapped(f"airflow.curation.{what}.score")
        assert (name, labels) == (f"curation_{what}_total", {"stage": "score"})
    name, labels = mapped("airflow.curation.samples.download.http_404")
    assert (name, labels) == ("curation_samples_total", {"stage": "download", "outcome": "http_404"})
    plugin = (DEPLOY.parent / "plugins" / "curation_telemetry.py").read_text()
    for what in re.findall(r"curation\.(gpu_\w+)\.", plugin):
        assert mapped(f"airflow.curation.{what}.host.0") == (f"curation_{what}", {"host": "host", "gpu": "0"})


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for expr in asked for name in re.findall(r"curation_\w+", expr)} == {one["name"] for one in MAPPINGS}
    known = {"measured", *Fault}
    for expr in asked:
        assert set(re.findall(r'stage="(\w+)"', expr)) <= set(STAGE_ORDER)
        for outcomes in re.findall(r'outcome[=!]~?"([^"]+)"', expr):
            assert set(outcomes.split("|")) <= known, outcomes
