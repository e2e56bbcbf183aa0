"""One private Airflow on this machine, with whatever else the demo needs, as one process group that ends as one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from curation.errors import ConfigError, OutageError

MARK = "CURATION_DEMO"  # in the environment of every process of the group; names the folder it belongs to
ADMIN = "admin"
PORT = 8080  # where Airflow's users look for it
AIRFLOW = (sys.executable, "-m", "airflow")
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
Say = Callable[[str], None]
_given: set[int] = set()


def free_port(preferred: int = 0) -> int:
    """Port of 127.0.0.1 that nobody listens on: the preferred one if it is free, else one that was not given before.

    That one lies below the range of outgoing connections: servers take seconds to listen, and until then any connection
    may be given a port of its range.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    others = set(range(max(lowest // 2, 1024), max(lowest, 2048))) - _given
    # the system's chance: processes that were forked, or given the same seed, would choose the same ports
    for port in (preferred, *random.SystemRandom().sample(sorted(others), 20)):
        # no SO_REUSEADDR: a port that only just closed is not worth a failure later
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port:
                _given.add(port)
                return port
    raise OutageError("127.0.0.1 has no free port")


class AirflowServer:
    """Airflow on SQLite and the LocalExecutor under one folder; a context manager that leaves no process behind.

    home      folder of database, logs and passwords; one server at a time
    checkout  folder that holds dags/ and plugins/
    settings  environment for the tasks
    store     root of the store that the tasks use
    """

    def __init__(
        self, home: Path, checkout: Path, settings: Mapping[str, str], say: Say = print, store: str = ""
    ) -> None:
        self.home = home.absolute()
        self._checkout = checkout
        self._settings = dict(settings)
        self._store = store
        self._say = say
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._leader = 0
        self._lock: IO[str] | None = None
        self._claim: socket.socket | None = None
        self.url = ""
        self.environment: dict[str, str] = {}
        if not (checkout / "dags").is_dir():
            raise ConfigError(f"{checkout} has no folder dags: the demo runs from a checkout of the repository")

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._end_leftovers()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def password(self) -> str:
        """Password of the user admin: made at the first start, kept for the next."""
        path = self.home / "passwords.json"
        if not path.exists():
            _write_private(path, json.dumps({ADMIN: secrets.token_urlsafe(9)}))
        password: str = json.loads(path.read_text())[ADMIN]
        return password

    @property
    def store_environment(self) -> dict[str, str]:
        """Environment that leads to the store, for tasks and for whoever looks at what they did."""
        return {"CURATION_STORE": self._store} if self._store else {}

    def start(self) -> None:
        """Migrate the database and start Airflow's components; `self.url` says where it will answer."""
        port = self._port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = self._environment(port)
        self._migrate(self.environment)
        for component in COMPONENTS:
            self.spawn(component, [*AIRFLOW, component], self.environment)

    def spawn(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start one more process of the group; what it says goes to logs/{name}.log in the home."""
        log = self.home / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env={**(environment or os.environ), MARK: str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=self._leader,
            )
        self._processes[name] = process
        self._leader = self._leader or process.pid
        with (self.home / "processes").open("a") as known:
            known.write(f"{process.pid} {_born(process.pid)}\n")

    def check(self) -> None:
        """Raise OutageError with the end of its log when a process of the group is gone."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = self.home / "logs" / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise OutageError(f"{name} ended with status {process.returncode}; the end of {log}:\n{tail}")

    def stop(self) -> None:
        """End the process group: ask, wait ten seconds, then insist."""
        for sign, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in self._alive():
                send_signal(os.kill, pid, sign)
            if self._leader:
                send_signal(os.killpg, self._leader, sign)
            if self._gone(patience_s):
                break
        else:
            self._say(f"processes {self._alive()} of {self.home} do not end")
        self._processes.clear()
        self._leader = 0
        (self.home / "processes").unlink(missing_ok=True)
        if self._lock:
            self._lock.close()
            self._lock = None
        if self._claim:
            self._claim.close()
            self._claim = None

    def _port(self) -> int:
        """8080 unless it is taken, also by a demo that has yet to listen on it: Airflow takes seconds to get there."""
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0{MARK}-{PORT}")  # an abstract name: gone with the process, whatever ends it
        except OSError:
            claim.close()
            return free_port()
        self._claim = claim
        return free_port(PORT)

    def _alive(self) -> list[int]:
        own = [process.pid for process in self._processes.values() if process.poll() is None]
        return list(dict.fromkeys([*own, *_marked(self.home)]))

    def _gone(self, patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        while self._alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _take_lock(self) -> None:
        self._lock = (self.home / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "?"
            self._lock.close()
            self._lock = None
            raise ConfigError(
                f"a demo runs already in {self.home} (process {holder}): end it with Ctrl-C, or give another folder "
                "with VAR=var2"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _end_leftovers(self) -> None:
        """A demo that was killed leaves its Airflow running: nobody holds the lock, so it belongs to nobody."""
        if left := _marked(self.home):
            self._say(f"an earlier demo was killed and left {len(left)} processes; ending them")
            self.stop_leftovers()

    def stop_leftovers(self) -> None:
        """End marked processes that this object did not start, keeping the lock."""
        lock, self._lock = self._lock, None
        self.stop()
        self._lock = lock

    def _migrate(self, environment: Mapping[str, str]) -> None:
        """Bring the database to this Airflow's schema; one that an interrupted start left half-made is made anew."""
        stamp, database = self.home / "migrated", self.home / "airflow.db"
        wanted = version("apache-airflow-core")
        if database.exists() and stamp.exists() and stamp.read_text() == wanted:
            return
        if database.exists() and not stamp.exists():
            self._say("Airflow's database is half-made (an earlier start was interrupted): making it anew")
            self._forget_database()
        elif database.exists():
            self._say(f"migrating Airflow's database from {stamp.read_text()} to {wanted}")
        stamp.unlink(missing_ok=True)
        command = [*AIRFLOW, "db", "migrate"]
        log = self.home / "logs" / "migrate.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for last in (False, True):
            with log.open("wb") as out:
                failed = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT).returncode
            if not failed:
                stamp.write_text(wanted)
                return
            if not last:
                self._say(f"the migration failed (see {log}); making the database anew")
                self._forget_database()
        raise OutageError(f"airflow db migrate ended with status {failed}: see {log}")

    def _forget_database(self) -> None:
        for path in self.home.glob("airflow.db*"):
            path.unlink()

    def _environment(self, port: int) -> dict[str, str]:
        # settings of another Airflow in the user's shell must not reach this one
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        passwords, secret = self.home / "passwords.json", self.home / "secret"
        assert self.password
        if not secret.exists():
            _write_private(secret, secrets.token_hex(32))
        key = secret.read_text()
        loopback = "127.0.0.1,localhost"
        proxies = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")), loopback]))
        # components find `python` and `airflow` of this environment first
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        cores = os.cpu_count() or 2
        settings = {
            "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__DAGS_FOLDER": str(self._checkout / "dags"),
            "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": str(cores),
            "CORE__PLUGINS_FOLDER": str(self._checkout / "plugins"),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
            # one writer at a time: five seconds, the driver's own, are too few on a busy machine
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}?timeout=60",
            "API__BASE_URL": f"http://127.0.0.1:{port}",
            "API__HOST": "127.0.0.1",
            "API__MAXIMUM_PAGE_LIMIT": "1000",
            "API__PORT": str(port),
            "API__SECRET_KEY": key,
            "API__WORKERS": "1",
            "API_AUTH__JWT_SECRET": key,
            "LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            # a short task waits for the next heartbeat before it is known to have ended
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        }
        airflow = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        return {
            **inherited,
            **airflow,
            "AIRFLOW_HOME": str(self.home),
            "PATH": path,
            "no_proxy": proxies,
            "NO_PROXY": proxies,
            "PYTHONUNBUFFERED": "1",
            # as many tasks run as there are cores: threads of their own would only wait for each other
            "OMP_NUM_THREADS": "1",
            MARK: str(self.home),
            **self._settings,
            **self.store_environment,
        }


def _marked(home: Path) -> list[int]:
    """Processes of a home: by the mark in their environment, or in the group of one that the home has noted.

    Both are needed: a process that renames itself loses its environment, and the groups of some children are their own.
    Where there is no /proc, none are found.
    """
    mark = f"{MARK}={home}".encode()
    notes = home / "processes"
    noted = set(notes.read_text().splitlines()) if notes.exists() else set()
    alive = {int(folder.name): process_stat(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    groups = {stat[2] for pid, stat in alive.items() if stat and f"{pid} {stat[19]}" in noted}
    found = []
    for pid, stat in alive.items():
        if not stat or stat[0] == "Z" or pid == os.getpid():
            continue
        try:
            marked = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            marked = False  # ended meanwhile, or another user's
        if marked or stat[2] in groups:
            found.append(pid)
    return found


def _born(pid: int) -> str:
    """Clock ticks from the system's start to the process's: with the number, it names one process for good."""
    stat = process_stat(pid)
    return stat[19] if stat else ""


def process_stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (the parent's number is the second); empty for none."""
    try:
        # the fields follow the command's name, which may itself hold spaces and parentheses
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def send_signal(send: Callable[[int, int], None], pid: int, sign: int) -> None:
    """Signal a process or group by os.kill or os.killpg, unless it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, sign)


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def forget(home: Path) -> None:
    """Remove database, logs and passwords of a server that is stopped."""
    shutil.rmtree(home, ignore_errors=True)
