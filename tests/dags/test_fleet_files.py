"""docker-compose.yaml and the Dockerfile against the code: commands, settings, pools and queues that exist."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

ROOT = Path(__file__).resolve().parents[2]
FLEET: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = FLEET["services"]
AIRFLOW = [name for name, service in SERVICES.items() if str(service["image"]).startswith("curation:")]
SECRETS = re.compile(r"PASSWORD|SECRET|KEY")

every_service = pytest.mark.parametrize("name", SERVICES)


def in_airflow(script: str, **settings: str) -> Any:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "AIRFLOW_HOME": home, **settings}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@every_service
def test_image_is_pinned(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert tag, image
    assert tag != "latest"
    assert name not in AIRFLOW or SERVICES[name]["build"]["target"] == tag


@every_service
def test_service_is_watched_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    if name != "init":
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"


@every_service
def test_secrets_come_from_the_environment_file_and_have_no_default(name: str) -> None:
    asked = set((ROOT / "fleet.env.example").read_text().split("\n"))
    for key, value in SERVICES[name].get("environment", {}).items():
        for variable, rest in re.findall(r"\$\{(\w+)(:[^}]*)\}", str(value)):
            if SECRETS.search(variable):
                assert rest.startswith(":?"), f"{key} has a default"
                assert f"{variable}=" in asked, f"{variable} is not in fleet.env.example"
        spelt = re.sub(r"\$\{[^}]*\}", "", str(value))
        assert not re.search(r"://[^/@]*:[^/@]+@", spelt), f"{key} holds a password"
        assert not re.search(r"PASSWORD|SECRET|FERNET|ACCESS_KEY", key) or not spelt, f"{key} holds a secret"


def test_every_airflow_setting_exists() -> None:
    known = in_airflow(
        "import json\n"
        "from airflow.configuration import conf\n"
        "options = conf.configuration_description\n"
        "print(json.dumps([f'{s}__{o}'.upper() for s, v in options.items() for o in v['options']]))"
    )
    used = {key for name in AIRFLOW for key in SERVICES[name]["environment"] if key.startswith("AIRFLOW__")}
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes-values.yaml").read_text())
    used |= {f"AIRFLOW__{section}__{key}".upper() for section, options in values["config"].items() for key in options}
    assert {key for key in used if key.removeprefix("AIRFLOW__") not in known} == set()


def test_every_airflow_command_parses_with_its_options() -> None:
    lines = [[plain(part) for part in SERVICES[name]["command"]] for name in AIRFLOW if name != "init"]
    script = plain(SERVICES["init"]["command"][0]).replace("\\\n", " ").replace("$DOWNLOAD_SLOTS", "16")
    lines += [shlex.split(line)[1:] for line in script.splitlines()]
    checks = [SERVICES[name]["healthcheck"]["test"][1:] for name in AIRFLOW if name != "init"]
    lines += [check[1:] for check in checks if check[0] == "airflow"]
    assert len(lines) == 13
    manager = SERVICES["init"]["environment"]["AIRFLOW__CORE__AUTH_MANAGER"]
    assert in_airflow(
        "import json\n"
        "from airflow.cli.cli_parser import get_parser\n"
        f"for line in {lines!r}:\n"
        "    get_parser().parse_args(line)\n"
        "from airflow.providers.celery.executors.celery_executor import app\n"  # what the workers' health check asks
        "print(json.dumps(app.main is not None))",
        AIRFLOW__CORE__AUTH_MANAGER=manager,
        AIRFLOW__CORE__EXECUTOR="CeleryExecutor",
    )


def plain(text: str) -> str:
    """With the defaults of variables, as compose hands it on."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def test_health_checks_ask_for_what_there_is() -> None:
    import airflow.api_fastapi

    (asked,) = re.findall(r"127\.0\.0\.1:8080(/[\w/]+)", SERVICES["api-server"]["healthcheck"]["test"][-1])
    described = Path(airflow.api_fastapi.__path__[0]) / "core_api" / "openapi" / "v2-rest-api-generated.yaml"
    assert f"\n  {asked}:\n" in described.read_text()
    for name in ("worker", "worker-gpu"):
        app = "airflow.providers.celery.executors.celery_executor.app"
        assert f"--app {app} inspect ping" in SERVICES[name]["healthcheck"]["test"][1]
    runners = " ".join(path.read_text() for path in (Path(airflow.__path__[0]) / "jobs").glob("*_job_runner.py"))
    for name in ("scheduler", "dag-processor", "triggerer"):
        assert f'job_type = "{SERVICES[name]["healthcheck"]["test"][5]}"' in runners


def test_every_setting_of_ours_is_read_by_the_code() -> None:
    source = "".join(path.read_text() for folder in ("curation", "plugins") for path in (ROOT / folder).rglob("*.py"))
    used = {key for name in AIRFLOW for key in SERVICES[name]["environment"] if key.startswith("CURATION_")}
    assert used
    assert {key for key in used if f'"{key}"' not in source} == set()


def test_every_variable_has_a_default_or_a_line_in_the_example() -> None:
    example = (ROOT / "fleet.env.example").read_text()
    named = set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE))
    text = (ROOT / "docker-compose.yaml").read_text()
    asked = dict(re.findall(r"(?<!\$)\$\{(\w+):([-?])", text))
    assert {name for name, kind in asked.items() if kind == "?"} <= named
    assert named <= set(asked), "nobody reads it"


def test_services_name_services_volumes_and_databases_that_there_are() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in FLEET["volumes"], (name, volume)
    settings = SERVICES["scheduler"]["environment"]
    for key in (
        "AIRFLOW__CELERY__BROKER_URL",
        "AIRFLOW__CELERY__RESULT_BACKEND",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    ):
        host = re.split(r"[:/]", settings[key].rpartition("@")[2])[0]
        assert host in SERVICES, key
        # without a driver in its name SQLAlchemy takes another one than Airflow's
        assert "postgresql" not in settings[key] or "postgresql+psycopg2://" in settings[key], key


def test_a_worker_listens_on_every_queue_and_init_makes_every_pool() -> None:
    asked = in_airflow(
        "import json, runpy\n"
        f"dags = runpy.run_path({str(ROOT / 'scripts' / 'dag_docs.py')!r})['load']()\n"
        "tasks = [task for dag in dags.values() for task in dag.tasks]\n"
        "print()\n"
        "print(json.dumps([sorted({t.queue for t in tasks}), sorted({t.pool for t in tasks})]))"
    )
    queues = {SERVICES[name]["command"][3] for name in ("worker", "worker-gpu")}
    assert set(asked[0]) == queues
    made = set(re.findall(r"airflow pools set (\w+)", SERVICES["init"]["command"][0]))
    assert set(asked[1]) - {"default_pool"} == made


def test_demo_makes_the_same_pools_as_the_fleet() -> None:
    source = (ROOT / "curation" / "demo" / "run.py").read_text()
    made = set(re.findall(r"airflow pools set (\w+)", SERVICES["init"]["command"][0]))
    assert set(re.findall(r'set_pool\("(\w+)"', source)) == made


def test_only_the_gpu_worker_has_the_gpu_image_and_a_gpu() -> None:
    with_gpu = {name for name in SERVICES if "devices" in str(SERVICES[name]["deploy"])}
    assert with_gpu == {"worker-gpu"}
    assert {name for name in AIRFLOW if SERVICES[name]["image"] == "curation:gpu"} == {"worker-gpu"}


def test_image_holds_what_it_needs() -> None:
    copied = re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    paths = {path for line in copied for path in line.split()[:-1]}
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert paths == allowed
    assert all((ROOT / path).exists() for path in paths)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scheduler"], "airflow scheduler"),
        (["celery", "worker", "--queues", "gpu"], "airflow celery worker --queues gpu"),
        (["airflow", "db", "check-migrations"], "airflow db check-migrations"),
        (["bash", "-c", "exec airflow scheduler"], "airflow scheduler"),
        (["python", "-c", "print('a program')"], "a program"),
    ],
    ids=["command", "options", "airflow", "bash", "python"],
)
def test_image_runs_a_command_of_airflow_or_a_program_named_in_full(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    assert 'ENTRYPOINT ["tini", "--", "/entrypoint"]' in (ROOT / "Dockerfile").read_text()
    airflow = tmp_path / "airflow"
    airflow.write_text('#!/bin/sh\necho airflow "$@"\n')
    airflow.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(ROOT / "deploy" / "entrypoint.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
