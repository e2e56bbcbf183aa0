"""A real Airflow, started as `make demo` starts it: refusals, a bad shard among good ones, a killed demo, the demo."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    def __init__(self, server: AirflowServer, store: Path, heard: Statsd, notices: list[dict[str, Any]]) -> None:
        self.server, self.store, self.heard, self.notices = server, store, heard, notices
        self.client = AirflowClient(server.url, ADMIN, server.password)
        self._runs = 0

    def run(self, **conf: Any) -> Watch:
        self._runs += 1
        name = f"run-{self._runs}"
        self.client.trigger(DAG, name, conf)
        watch = Watch(self.client, name, workers=2)
        follow(watch, Console(file=sys.stderr, force_terminal=False), self.server.check)
        return watch

    def unpause(self, dag: str) -> None:
        self.client._call("PATCH", f"/dags/{dag}", {"is_paused": False})

    def runs(self, dag: str) -> list[str]:
        return [run["dag_run_id"] for run in self.client._call("GET", f"/dags/{dag}/dagRuns")["dag_runs"]]

    def wait(self, dag: str, run: str, *states: str, task: str = "") -> None:
        until = time.monotonic() + LIMIT_S
        while True:
            tasks = {one["task_id"]: one["state"] for one in self.client.task_instances(dag, run)}
            state = tasks.get(task) if task else self.client.run_state(dag, run)
            if state in states:
                return
            assert state not in ("failed", "success"), (state, tasks)
            assert time.monotonic() < until, (state, tasks)
            time.sleep(1)

    def ask(self, place: str, *, known: bool = True, form: str = "", **headers: str) -> tuple[int, str]:
        """Status and text of a curation page."""
        if known:
            headers["Authorization"] = f"Bearer {self.client._token}"
        data = form.encode() if form else None
        request = urllib.request.Request(f"{self.server.url}/curation/{place}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode("latin-1")
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()

    def say_yes(self, dag: str, run: str) -> None:
        """Approve; again where the answer came before the executor's report, which starts the question anew."""
        place = f"/dags/{dag}/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        until, state = time.monotonic() + LIMIT_S, None
        while state != "success":
            assert state not in ("failed", "upstream_failed", "skipped"), state
            assert time.monotonic() < until, state
            time.sleep(3)  # nobody is faster
            if state == "awaiting_input":
                with suppress(OutageError):  # answered already
                    self.client._call("PATCH", place, {"chosen_options": ["Approve"], "params_input": {}})
            state = {one["task_id"]: one["state"] for one in self.client.task_instances(dag, run)}.get("approve")


class Loopback(BaseHTTPRequestHandler):
    """A picture for whoever asks, and the files of a small Common Crawl; what is posted is kept."""

    posted: list[dict[str, Any]]
    files: dict[str, bytes]
    picture: bytes

    def do_GET(self) -> None:
        body = self.picture if self.path.endswith(".jpg") else self.files.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def loopback() -> Iterator[ThreadingHTTPServer]:
    from PIL import Image
    from skimage.data import astronaut

    picture = BytesIO()
    Image.fromarray(astronaut()).save(picture, "JPEG")
    handler = type("L", (Loopback,), {"posted": [], "files": {}, "picture": picture.getvalue()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, loopback: ThreadingHTTPServer) -> Iterator[Airflow]:
    folder = tmp_path_factory.mktemp("airflow")
    heard = Statsd()
    settings = {"CURATION_STORE": str(folder / "store"), "HF_HUB_OFFLINE": "1", **heard.settings}
    settings["CURATION_NOTIFY"] = f"json://127.0.0.1:{loopback.server_port}/notices"
    settings["CURATION_COMMONCRAWL_URL"] = f"http://127.0.0.1:{loopback.server_port}"
    with heard, AirflowServer(folder / "home", ROOT, settings) as server:
        server.start()
        found = Airflow(server, folder / "store", heard, loopback.RequestHandlerClass.posted)  # type: ignore[attr-defined]
        found.client.wait_until_healthy(DAG, server.check, patience_s=LIMIT_S)
        found.client.set_pool("download", 2, "downloads")
        found.client.set_pool("index", 1, "commits")
        assert marked(server.home)
        yield found
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

    until = time.monotonic() + LIMIT_S
    while not (told := [one for one in airflow.notices if "dump: broken" in one["message"]]):
        assert time.monotonic() < until, airflow.notices
        time.sleep(0.5)
    assert told[0]["title"] == "curation: curate_block failed"
    assert "/dags/curate_block/runs/run-" in told[0]["message"]

    watch = airflow.run(**conf, shards="0,2")
    assert watch.state == "success"
    labels = {cell.shard for cell in watch.cells.values() if cell.map_index >= 0}
    assert labels == {"00000", "00002"}
    assert {path: path.stat().st_mtime_ns for path in before} == before, "tables that stood there were made again"
    assert heard["airflow.curation.shards.extract"] == 2, "what was not made again is not counted again"
    # nothing listens at the hosts' address
    assert heard["airflow.curation.samples.download.connection_failed"] == 2, sorted(heard)


def test_a_block_is_published_reviewed_released_and_taken_down(
    airflow: Airflow, loopback: ThreadingHTTPServer, tmp_path: Path
) -> None:
    from curation.publish.parts import manifest_key
    from curation.publish.version import latest
    from curation.review.ratings import rate
    from curation.review.sets import Sampling, create_set
    from curation.store import Store

    store = Store(airflow.store)
    airflow.unpause("publish_dataset")
    archive(tmp_path / "0.warc.gz", "host.test")
    overrides = settings(loopback.server_port) | {"publish.release.approval": True, "stages.caption": None}
    overrides |= {"gates.similarity_low.at_least": dict.fromkeys(("en", "multi", "nolang"), -1)}
    watch = airflow.run(dump="small", source=str(tmp_path), recipe="demo", overrides=overrides)
    assert watch.state == "success"
    until = time.monotonic() + LIMIT_S
    while not (runs := airflow.runs("publish_dataset")):  # the block's asset starts it
        assert time.monotonic() < until
        time.sleep(1)
    (run,) = runs
    airflow.wait("publish_dataset", run, "success")
    version = airflow.client.xcom("publish_dataset", run, "plan", key="release")["version"]
    assert store.exists(manifest_key("demo", version))
    assert latest(store, "demo") != version

    drawn = create_set(store, "demo", version, Sampling(n=5, raters=1))
    for item in drawn.items:
        rating = dict.fromkeys(("accuracy", "completeness", "detail", "relevance"), 4)
        rate(store, drawn, {"rater": "ada", "item": item.number, **rating})
    version_page, review_page = f"versions/demo/{version}", f"versions/demo/{version}/review/review"
    assert version in airflow.ask("")[1]
    assert "approval: nobody has approved" in airflow.ask(version_page)[1]
    told = [one for one in airflow.notices if version in one["title"]]
    assert {one["title"] for one in told} == {
        f"curation: {dag} holds demo/{version}" for dag in ("curate_block", "publish_dataset")
    }
    assert "reason: approval: nobody has approved this version yet" in told[0]["message"]
    status, text = airflow.ask(f"{version_page}/samples?text=boat")
    assert status == 200
    assert "A red boat on a calm lake" in text
    (picture,) = re.findall(r'src="/curation/(versions[^"]+)"', text)
    assert airflow.ask(picture)[1].startswith("\xff\xd8\xff")
    assert "No sample" in airflow.ask(f"{version_page}/samples?text=%27%20OR%201=1")[1]
    assert airflow.ask(f"{version_page}/card")[0] == 200
    status, text = airflow.ask(review_page)
    assert (status, "nothing left for you to rate" in text) == (200, True), "one rater was asked for, and has rated"
    assert airflow.ask(review_page, form="item=0&accuracy=3&comment=dull")[0] == 200
    assert airflow.ask(review_page, form="item=0&accuracy=9")[0] == 400
    assert airflow.ask(review_page, form="item=0&accuracy=3", Origin="http://elsewhere.test")[0] == 403
    assert airflow.ask(review_page, form="item=0&accuracy=3", known=False)[0] == 401
    for place in ("", version_page, f"{version_page}/samples", picture):
        assert airflow.ask(place, known=False)[0] == 401
    for place in (
        "..--demo",
        "versions/demo/..%2f..%2fx",
        "versions/..%2f/x/card",
        f"{version_page}/pictures/0/..%2fx",
    ):
        assert airflow.ask(place)[0] in (404, 422)

    airflow.unpause("review")
    airflow.client.trigger("review", "by-hand", {"recipe": "demo", "version": version, "size": 5, "raters": 1})
    airflow.say_yes("review", "by-hand")
    airflow.wait("review", "by-hand", "success")
    assert latest(store, "demo") == version

    airflow.unpause("takedown")
    airflow.client.trigger("takedown", "request", {"kind": "domain", "values": ["host.test"], "requester": "a painter"})
    airflow.wait("takedown", "request", "awaiting_input", task="approve")
    assert airflow.client.xcom("takedown", "request", "find")["n_samples"] == 1
    assert latest(store, "demo") == version, "nothing is done before a person has said yes"
    airflow.say_yes("takedown", "request")
    airflow.wait("takedown", "request", "success")
    assert not store.exists(manifest_key("demo", version))


def backfill(airflow: Airflow, dumps: Sequence[str], conf: dict[str, Any]) -> None:
    """By the command, as an operator gives it."""
    dates = [dump_date(dump).date().isoformat() for dump in dumps]
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", "curate_dump"]
    command += ["--from-date", dates[0], "--to-date", dates[-1], "--max-active-runs", "2"]
    command += ["--dag-run-conf", json.dumps(conf)]
    done = subprocess.run(command, env=airflow.server.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def dump_date(dump: str) -> datetime:
    return datetime.fromisocalendar(*map(int, dump.removeprefix("CC-MAIN-").split("-")), 1)


def dump_runs(airflow: Airflow) -> dict[str, str]:
    """Partition key of each run of curate_dump, by the run's name."""
    found = airflow.client._call("GET", "/dags/curate_dump/dagRuns")["dag_runs"]
    return {run["dag_run_id"]: run["partition_key"] for run in found}


def tables(store: Path, dump: str) -> dict[str, int]:
    """When each stage's table of the dump was written, by its folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (store / "dumps" / dump).rglob("00000.parquet")}


def test_a_backfill_over_dates_runs_each_dump_and_does_again_only_what_changed(
    airflow: Airflow, loopback: ThreadingHTTPServer, tmp_path: Path
) -> None:
    between = ("CC-MAIN-2025-51", "CC-MAIN-2026-04", "CC-MAIN-2026-08", "CC-MAIN-2026-12")  # no others are dated so
    dumps = between[1:3]
    files = loopback.RequestHandlerClass.files  # type: ignore[attr-defined]
    for dump in dumps:
        archive(tmp_path / dump, f"{dump.lower()}.test")
        files[f"/crawl-data/{dump}/0.warc.gz"] = (tmp_path / dump).read_bytes()
        files[f"/crawl-data/{dump}/warc.paths.gz"] = gzip.compress(f"crawl-data/{dump}/0.warc.gz\n".encode())
    overrides = settings(free_port()) | {"stages.caption": None}
    conf = {"recipe": "demo", "overrides": overrides}
    airflow.unpause("curate_dump")

    backfill(airflow, dumps, conf)
    runs = dump_runs(airflow)
    assert sorted(runs.values()) == list(dumps)
    for run, dump in runs.items():
        assert run.startswith(f"backfill__{dump}__")
        airflow.wait("curate_dump", run, "success")
    blocks = {run.partition("__")[0]: run for run in airflow.runs(DAG) if run.startswith("CC-MAIN")}
    assert set(blocks) == set(dumps)
    assert all(f"{dump}__block_000__" in run for dump, run in blocks.items())
    before = {dump: tables(airflow.store, dump) for dump in dumps}
    assert all(before.values())

    # the same once more by the interface that the UI uses, and one dump with another setting by its key
    (old, new), gate = dumps, {"gates.similarity_low.at_least": dict.fromkeys(("en", "multi", "nolang"), -1)}
    (open_one,) = airflow.client._call("GET", "/backfills?dag_id=curate_dump")["backfills"]
    if not open_one["completed_at"]:  # all its runs are over, but Airflow looks by and by, perhaps just now
        with suppress(OutageError):
            airflow.client._call("PUT", f"/backfills/{open_one['id']}/cancel")
    again = {"dag_id": "curate_dump", "from_date": f"{dump_date(old):%FT%TZ}", "to_date": f"{dump_date(old):%FT%TZ}"}
    again |= {"dag_run_conf": conf, "reprocess_behavior": "completed", "max_active_runs": 1}
    airflow.client._call("POST", "/backfills", again)
    changed = {"recipe": "demo", "overrides": overrides | gate}
    ask = {"dag_run_id": "by-key", "logical_date": None, "partition_key": new, "conf": changed}
    airflow.client._call("POST", "/dags/curate_dump/dagRuns", ask)
    with pytest.raises(OutageError, match="400"):
        airflow.client._call("POST", "/dags/curate_dump/dagRuns", ask | {"dag_run_id": "x", "partition_key": "2026-99"})
    later = {run: dump for run, dump in dump_runs(airflow).items() if run not in runs}
    assert sorted(later.values()) == [old, new]
    for run in later:
        airflow.wait("curate_dump", run, "success")
    assert tables(airflow.store, old) == before[old], "nothing changed, and something was made again"
    assert [run for run in airflow.runs(DAG) if run.startswith(old)] == [blocks[old]]
    after = tables(airflow.store, new)
    assert before[new].items() <= after.items()
    made = {folder.rpartition("-")[0] for folder in after.keys() - before[new].keys()}
    assert made == {"dedup", "safety", "leakage"}, "the gate is before them"


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


def test_a_killed_demo_is_gone_on_with_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    killed = demo(tmp_path, "--shards", "1")
    read_until(killed, r"extract: \d+ rows")
    killed.send_signal(signal.SIGKILL)
    with killed:
        pass  # reaped, and its pipe closed
    home = tmp_path / "airflow"
    assert marked(home), "Airflow outlives a killed starter"

    process = demo(tmp_path, "--shards", "1")
    told = read_until(process, r"download: \d+ rows")
    assert "an earlier demo was killed" in told
    assert "unfinished" in told
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert marked(home) == []
