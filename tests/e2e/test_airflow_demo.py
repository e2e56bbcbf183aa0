"""A real Airflow, started as `make demo` starts it: refusals, a bad shard among good ones, a killed demo, the demo."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")

from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import ADMIN, MARK, AirflowServer, free_port
from curation.demo.statsd import Statsd
from curation.demo.watch import DAG, Watch, follow
from curation.errors import ConfigError, OutageError

pytestmark = [pytest.mark.airflow, pytest.mark.xdist_group("airflow")]
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600


class Airflow:
    def __init__(self, server: AirflowServer, client: AirflowClient, store: Path, heard: Statsd) -> None:
        self.server, self.client, self.store, self.heard = server, client, store, heard
        self._runs = 0

    def run(self, **conf: Any) -> Watch:
        self._runs += 1
        name = f"run-{self._runs}"
        self.client.trigger(DAG, name, conf)
        watch = Watch(self.client, name, workers=2)
        follow(watch, Console(file=sys.stderr, force_terminal=False), self.server.check)
        return watch


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    folder = tmp_path_factory.mktemp("airflow")
    heard = Statsd()
    settings = {"CURATION_STORE": str(folder / "store"), "HF_HUB_OFFLINE": "1", **heard.settings}
    with heard, AirflowServer(folder / "home", ROOT, settings) as server:
        server.start()
        client = AirflowClient(server.url, ADMIN, server.password)
        client.wait_until_healthy(DAG, server.check, patience_s=LIMIT_S)
        client.set_pool("download", 2, "downloads")
        client.set_pool("index", 1, "commits")
        assert marked(server.home)
        yield Airflow(server, client, folder / "store", heard)
    assert marked(folder / "home") == []


def marked(home: Path) -> list[str]:
    """Command lines of the processes that were born with a home's mark, by their process group.

    A process that renames itself overwrites its environment, so a group counts when one member still shows the mark.
    """
    groups: dict[str, list[str]] = {}
    ours = set(GROUPS.get(home, ()))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        groups.setdefault(fields[2], []).append(line)
        if f"{MARK}={home}".encode() in environment:
            ours.add(fields[2])
    GROUPS[home] = ours
    return [line for group in ours for line in groups.get(group, []) if line]


GROUPS: dict[Path, set[str]] = {}


def archive(path: Path, host: str) -> None:
    """One page with one picture."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    page = b'<html lang="en"><img src="/a.jpg" alt="A red boat on a calm lake under a blue sky"></html>'
    head = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
    with path.open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        record = writer.create_warc_record(f"http://{host}/", "response", payload=BytesIO(page), http_headers=head)
        writer.write_record(record)


def settings(port: int) -> dict[str, Any]:
    # nothing listens on the port: every download is a fault, no row goes on, and every stage has done its work
    return {"stages.download.connect_to": {"*.test": f"127.0.0.1:{port}"}, "stages.leakage.evalsets": []}


def test_the_form_refuses_what_its_schema_forbids(airflow: Airflow) -> None:
    for conf, field in [({}, "dump"), ({"dump": "a/b"}, "dump"), ({"dump": "x", "block": -1}, "block")]:
        with pytest.raises(ConfigError, match=field):
            airflow.client.trigger(DAG, "refused", conf)
    with pytest.raises(ConfigError, match="recipe"):
        airflow.client.trigger(DAG, "refused", {"dump": "x", "recipe": "laion-6b"})


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({"overrides": {"gates.too_smal.at_least": 64}}, "too_smal"),
        ({"overrides": {"stages.download.side_px": -1}}, "side_px"),
        ({"source": "/nowhere"}, "/nowhere"),
        ({"shards": "3-1"}, "3-1"),
    ],
)
def test_plan_fails_at_once_and_names_the_field(airflow: Airflow, conf: dict[str, Any], told: str) -> None:
    watch = airflow.run(dump="refused", recipe="demo", **conf)
    assert watch.state == "failed"
    (cell,) = watch.failed()
    assert cell.task == "plan"
    assert cell.raw["try_number"] == 1
    assert cell.error.startswith("ConfigError")
    assert told in cell.error


def test_a_bad_shard_fails_alone_and_a_rerun_does_only_what_is_missing(airflow: Airflow, tmp_path: Path) -> None:
    for shard in (0, 2):
        archive(tmp_path / f"{shard}.warc.gz", f"host{shard}.test")
    (tmp_path / "1.warc.gz").write_bytes(b"this is no archive" * 100)
    conf = {"dump": "broken", "source": str(tmp_path), "recipe": "demo", "overrides": settings(free_port())}

    heard = airflow.heard.counters
    assert not heard["airflow.curation.shards.extract"]
    watch = airflow.run(**conf)
    assert watch.state == "failed"
    (cell,) = watch.failed()
    assert cell.label == "00001 extract"
    assert heard["airflow.curation.shards.extract"] == heard["airflow.curation.samples.extract.measured"] == 2
    assert heard["airflow.curation.bytes_read.extract"] == sum(
        (tmp_path / f"{shard}.warc.gz").stat().st_size for shard in (0, 2)
    )
    assert cell.raw["try_number"] == 1, "a bad shard is not retried"
    assert "BadShardError: broken shard 00001, extract" in cell.error
    states = {(one.task, one.map_index): one.state for one in watch.cells.values()}
    assert states["extract", 0] == states["extract", 2] == "success"
    assert {states[task, -1] for task in ("match_pairs", "match", "publish")} == {"upstream_failed"}
    before = {path: path.stat().st_mtime_ns for path in (airflow.store / "dumps" / "broken").rglob("*.parquet")}
    assert before

    watch = airflow.run(**conf, shards="0,2")
    assert watch.state == "success"
    labels = {cell.shard for cell in watch.cells.values() if cell.map_index >= 0}
    assert labels == {"00000", "00002"}
    assert {path: path.stat().st_mtime_ns for path in before} == before, "tables that stood there were made again"
    assert heard["airflow.curation.shards.extract"] == 2, "what was not made again is not counted again"
    # nothing listens at the hosts' address
    assert heard["airflow.curation.samples.download.connection_failed"] == 2, sorted(heard)


def test_a_leftover_password_file_is_kept_and_private(airflow: Airflow) -> None:
    assert airflow.server.password == airflow.server.password
    assert (airflow.server.home / "passwords.json").stat().st_mode & 0o077 == 0
    with pytest.raises(OutageError, match="401"):
        AirflowClient(airflow.server.url, ADMIN, "wrong").run_state(DAG, "none")


def test_a_second_server_in_the_same_folder_is_refused(airflow: Airflow) -> None:
    second = AirflowServer(airflow.server.home, ROOT, {})
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"), second:
        pass


def demo(var: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CURATION_STORE"}
    command = [sys.executable, "-m", "curation.demo.run", "--var", str(var), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout
    told = ""
    until = time.monotonic() + LIMIT_S
    for line in process.stdout:
        told += line
        if re.search(pattern, line):
            return told
        if time.monotonic() > until:
            break
    with process:
        process.kill()
    pytest.fail(f"{pattern} was not said:\n{told}")


def test_the_demo_after_one_that_was_killed(tmp_path: Path) -> None:
    killed = demo(tmp_path, "--shards", "1")
    read_until(killed, r"extract: \d+ rows")
    killed.send_signal(signal.SIGKILL)
    with killed:
        pass  # reaped, and its pipe closed
    home = tmp_path / "airflow"
    assert marked(home), "Airflow outlives a killed starter"

    process = demo(tmp_path, "--shards", "1", "--keep", "0")
    told, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, told
    assert "an earlier demo was killed" in told
    assert "unfinished" in told
    assert re.search(r"dataset version: .*/datasets/demo/", told)
    assert re.search(r"recipe demo: \d+ of \d+ samples kept", told)
    assert marked(home) == []


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    process = demo(tmp_path, "--shards", "1")
    read_until(process, "Airflow is up")
    assert marked(tmp_path / "airflow")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert marked(tmp_path / "airflow") == []
