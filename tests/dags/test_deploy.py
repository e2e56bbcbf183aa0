"""deploy/ against the code: queues, settings and metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

from curation import telemetry
from curation.receipt import Receipt
from curation.recipe import STAGE_ORDER
from curation.verdicts import Fault, Verdict

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FLEET: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes-values.yaml").read_text())
MAPPINGS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "statsd-mapping.yaml").read_text())["mappings"]
SETS = {one["name"]: one for one in VALUES["workers"]["celery"]["sets"]}
# Keys in use that the chart's values.yaml knows. At these two places it passes over any other without a word.
AT_THE_ROOT = {"airflowVersion", "defaultAirflowRepository", "defaultAirflowTag", "executor", "env", "extraEnvFrom"}
AT_THE_ROOT |= {"apiSecretKeySecretName", "fernetKeySecretName", "jwtSecretName", "secret"}
AT_THE_ROOT |= {"data", "postgresql", "redis", "dags", "logs", "config", "statsd", "createUserJob"}
AT_THE_ROOT |= {"apiServer", "scheduler", "dagProcessor", "triggerer", "workers", "enableBuiltInSecretEnvVars"}
OF_A_SET = {"name", "queue", "env", "keda", "resources", "nodeSelector", "tolerations", "terminationGracePeriodSeconds"}


def environment(one: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in one["env"]}


def test_the_chart_knows_every_key_where_it_would_not_complain() -> None:
    assert set(VALUES) <= AT_THE_ROOT
    for one in SETS.values():
        assert set(one) <= OF_A_SET
        assert not one["keda"]["enabled"] or "replicas" not in one, "the chart leaves the number to KEDA"


def test_no_set_selects_the_pods_of_another() -> None:
    # the chart gives a set of the name "default" no label of its own, so that it selects all workers;
    # an autoscaler that sees another's pods stands still (AmbiguousSelector)
    assert "default" not in SETS


def test_the_image_runs_what_the_chart_asks_of_it() -> None:
    # the chart's log groomer is a script of Airflow's own image
    for one in (VALUES["scheduler"], VALUES["triggerer"], VALUES["workers"]["celery"]):
        assert one["logGroomerSidecar"] == {"enabled": False}
    assert VALUES["dagProcessor"]["logGroomerSidecar"]["args"][:2] == ["bash", "-c"]
    # its commands begin with bash or airflow, its probes with /entrypoint (tests/dags/test_fleet_files.py runs it)
    assert "COPY deploy/entrypoint.sh /entrypoint\n" in (DEPLOY.parent / "Dockerfile").read_text()


def test_each_queue_has_one_worker_set_with_bounds_that_scales_by_its_own_tasks() -> None:
    queues = {FLEET["services"][name]["command"][3] for name in ("worker", "worker-gpu")}
    assert {one["queue"] for one in SETS.values()} == queues
    for one in SETS.values():
        assert {"cpu", "memory"} <= one["resources"]["limits"].keys()
        assert f"queue = '{one['queue']}'" in one["keda"]["query"]
        slots = re.search(r"/ (\d+)\)", one["keda"]["query"])
        assert environment(one)["AIRFLOW__CELERY__WORKER_CONCURRENCY"] == (slots[1] if slots else "1")
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
    assert environment(VALUES)["CURATION_STORE"] == fleet["CURATION_STORE"]
    server = FLEET["services"]["api-server"]["environment"]
    assert environment(VALUES["apiServer"]) == {key: value for key, value in server.items() if key not in fleet}


def test_no_secret_is_spelt() -> None:
    assert not re.search(r"://[^/@\s]+:[^/@\s.]+@", yaml.safe_dump(VALUES))
    assert not [
        name for one in (VALUES, *SETS.values()) for name in environment(one) if re.search("SECRET|PASSW", name)
    ]
    assert not VALUES["postgresql"]["enabled"]
    (password,) = VALUES["createUserJob"]["env"]  # without it the chart takes "admin"
    assert password["valueFrom"]["secretKeyRef"]
    assert VALUES["createUserJob"]["defaultUser"] == {"password": f"$({password['name']})"}


def test_keda_gets_an_address_without_a_driver_of_python() -> None:
    (connection,) = VALUES["secret"]
    assert VALUES["enableBuiltInSecretEnvVars"] == {connection["envName"]: False}
    assert connection["envName"] == "AIRFLOW_CONN_AIRFLOW_DB"  # what the chart's ScaledObject names
    head = (DEPLOY / "kubernetes-values.yaml").read_text()
    assert f"--from-literal={connection['secretKey']}=postgresql://" in head
    assert "--from-literal=connection=postgresql+psycopg2://" in head


def test_every_secret_that_is_named_is_told_of() -> None:
    text = (DEPLOY / "kubernetes-values.yaml").read_text()
    made = set(re.findall(r"^#   secret (curation-\w+) ", text, re.MULTILINE))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert (
        set(re.findall(r"(?:SecretName: |secretName: |secretRef: {name: |secretKeyRef: {name: )([\w-]+)", body)) == made
    )


def mapped(metric: str) -> tuple[str, dict[str, str]]:
    for mapping in MAPPINGS:
        parts = re.fullmatch(re.escape(mapping["match"]).replace(r"\*", r"([^.]+)"), metric)
        if parts:
            return mapping["name"], {key: parts[int(value[1:])] for key, value in mapping["labels"].items()}
    pytest.fail(f"no mapping of {metric}")


class Everything(dict[str, int]):
    """A tally in which each count stands."""

    def get(self, key: str, default: Any = None) -> int:
        return 1


def test_every_metric_becomes_labels_and_every_mapping_is_of_a_metric() -> None:
    got = set()
    outcomes = dict.fromkeys([*Fault, *Verdict], 1)
    for stage in STAGE_ORDER:
        receipt = Receipt.model_construct(
            stage=stage, seconds=1.0, measured=1, dropped=outcomes, faults={}, tally=Everything()
        )
        for name, _ in telemetry.counts(telemetry.Made("", receipt, None)):
            what, _, outcome = name.partition(f".{stage}")
            labels = {"stage": stage, "outcome": outcome.removeprefix(".")} if outcome else {"stage": stage}
            assert mapped(f"airflow.curation.{name}") == (f"curation_{what}_total", labels)
            got.add(f"curation_{what}_total")
    plugin = (DEPLOY.parent / "plugins" / "curation_telemetry.py").read_text()
    gauges = re.findall(r"gauge\(f\"curation\.(\w+)\.{host}\.{gpu.number}\"", plugin)
    assert len(gauges) == plugin.count("gauge(") > 0
    for what in gauges:
        assert mapped(f"airflow.curation.{what}.host-1.0") == (f"curation_{what}", {"host": "host-1", "gpu": "0"})
        got.add(f"curation_{what}")
    assert got == {one["name"] for one in MAPPINGS}


def test_every_count_beside_the_samples_is_tallied_by_a_stage() -> None:
    code = "".join(path.read_text() for path in (DEPLOY.parent / "curation").rglob("*.py"))
    told = {one["match"].split(".")[2] for one in MAPPINGS} - {"samples", "shards", "milliseconds"}
    for what in told:
        assert f'tally["{what}"] += ' in code or what.startswith("gpu_"), what


def test_the_exporter_takes_the_mappings() -> None:
    # the rules of statsd_exporter 0.30: it ends at an unknown key, a bad name, or a label of one letter
    for one in MAPPINGS:
        assert set(one) <= {"match", "name", "labels", "ttl"}
        assert re.fullmatch(r"[a-zA-Z_]\w*(\.(\*|\w+))*", one["match"], re.ASCII)
        assert re.fullmatch(r"[a-zA-Z_]\w*", one["name"], re.ASCII)
        assert all(re.fullmatch(r"[a-zA-Z_]\w+", label, re.ASCII) for label in one["labels"])
        # what is sent only while something runs has to end with it
        assert ("ttl" in one) == (not one["name"].endswith("_total"))
    assert len({one["name"] for one in MAPPINGS}) == len(MAPPINGS)
    assert VALUES["statsd"]["extraMappings"] == MAPPINGS


def test_the_documented_metrics_are_those_that_are_mapped() -> None:
    table = (DEPLOY.parent / "docs" / "observability.md").read_text()
    told = {
        name.split(".")[1]
        for name in re.findall(r"^\|.*", table, re.MULTILINE)
        for name in re.findall(r"`(curation\.[^`]+)`", name)
    }
    assert told == {one["match"].split(".")[2] for one in MAPPINGS}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    labels = {one["name"]: set(one["labels"]) for one in MAPPINGS}
    targets = [target for panel in panels for target in panel["targets"]]
    asked = [target["expr"] for target in targets]
    assert {name for expr in asked for name in re.findall(r"curation_\w+", expr)} == set(labels)
    known = {"measured", *Fault, *Verdict}
    for target in targets:
        expr = target["expr"]
        for name, matchers in re.findall(r"(curation_\w+)({[^}]*})?", expr):
            assert set(re.findall(r"(\w+)[=!]~?\"", matchers)) <= labels[name], expr
        every = set.intersection(*(labels[name] for name in re.findall(r"curation_\w+", expr)))
        kept = {label for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(", ")}
        assert kept <= every, expr
        # a sum keeps none but those that it is told to
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= (kept if "sum" in expr else every), expr
        assert ("_total" in expr) == bool(re.search(r"(rate|increase)\(", expr)), expr
        assert set(re.findall(r'stage="(\w+)"', expr)) <= set(STAGE_ORDER)
        for outcomes in re.findall(r'outcome[=!]~?"([^"]+)"', expr):
            assert set(outcomes.split("|")) <= known, outcomes
