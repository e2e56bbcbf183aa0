"""`make demo`: a crawl goes in, Airflow runs curate_block on it, a dataset version and its funnel come out."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import ADMIN, AirflowServer, free_port
from curation.demo.watch import DAG, Watch, follow
from curation.demo_crawl.build import build_demo_crawl
from curation.demo_crawl.verdicts_check import compare
from curation.errors import ConfigError, CurationError
from curation.evalsets import index_evalset
from curation.pipeline import saved_recipe
from curation.recipe import Recipe
from curation.reports.funnel import funnel, render
from curation.runner import read_outcomes
from curation.store import Store

CHECKOUT = Path(__file__).resolve().parents[2]
EVALSET = "demo-eval"
CRAWL = "demo-crawl"
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = _options(arguments)
    # a log has no width of its own: wide enough for the funnel
    console = Console() if sys.stdout.isatty() else Console(width=160, soft_wrap=True)
    # a shell that starts us in the background has us ignore Ctrl-C's signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _leave)
    try:
        return _demo(options, console)
    except CurationError as err:
        console.print(f"demo: {err}", style="red", markup=False, highlight=False)
        return 2 if isinstance(err, ConfigError) else 1
    except KeyboardInterrupt:
        console.print("demo: stopped")
        return 130


def _demo(options: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()
    folder = options.var.absolute()
    say = _sayer(console, started)
    with _server(options, folder, say) as server:
        say("starting the fleet" if options.fleet else "starting Airflow")
        # Airflow's database is made by another process: the crawl is built meanwhile
        with ThreadPoolExecutor(1) as aside:
            starting = aside.submit(server.start)
            if not options.source:
                say("building the demo crawl")
                build_demo_crawl(folder / CRAWL)
            starting.result()
        os.environ.update(server.store_environment)
        store = os.environ["CURATION_STORE"]
        conf = _real_run(options) if options.source else _demo_run(options, folder, store, server)
        client = AirflowClient(server.url, ADMIN, server.password)
        client.wait_until_healthy(DAG, server.check)
        _set_pools(client)
        if stale := client.end_active_runs(DAG):
            say(f"{stale} unfinished runs of an earlier demo were marked as failed")
        run = f"demo-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        client.trigger(DAG, run, conf)
        say(f"Airflow is up at {server.url} (user {ADMIN}, password {server.password}); run {run} started")
        watch = Watch(client, run, os.cpu_count() or 2)
        follow(watch, console, server.check)
        good = _report(watch, client, store, options, folder, console)
        say(f"run {watch.state} after {watch.elapsed_s:.0f} s")
        if options.keep:
            console.print(f"\nAirflow goes on at {server.url}, user {ADMIN}, password {server.password}")
            console.print("Ctrl-C ends it")
            while True:
                server.check()
                time.sleep(2)
        return 0 if good else 1


def _server(options: argparse.Namespace, folder: Path, say: Say) -> AirflowServer:
    settings = {} if options.source else {"HF_HUB_OFFLINE": "1"}
    if options.fleet:
        from curation.demo.fleet import Fleet

        return Fleet(folder / "fleet", CHECKOUT, settings, say)
    store = os.environ.get("CURATION_STORE") or str(folder / "store")
    return AirflowServer(folder / "airflow", CHECKOUT, settings, say, store)


def _demo_run(options: argparse.Namespace, folder: Path, store: str, server: AirflowServer) -> dict[str, Any]:
    """Serve the demo's web site and name crawl, server and lists in the run's parameters."""
    crawl = folder / CRAWL
    port = free_port()
    server.spawn("demo-web", [sys.executable, "-m", "curation.demo_crawl.server", str(crawl), "--port", str(port)])
    index_evalset(Store(store), EVALSET, crawl / "evalset")
    return {
        "dump": f"demo-{_content(crawl / 'crawl')[:8]}",
        "source": str(crawl / "crawl"),
        "shards": _shards(options.shards),
        "recipe": options.recipe or "demo",
        "overrides": {
            "stages.download.connect_to": {"*.test": f"127.0.0.1:{port}"},
            "stages.extract.blocklist": str(crawl / "blocklist.txt"),
            "stages.safety.known_hashes": str(crawl / "known_unsafe.txt"),
        },
    }


def _content(folder: Path) -> str:
    """Digest of the archives: another build of the crawl is another dump, with nothing done yet."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def _real_run(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters for Common Crawl or for somebody's own archives."""
    own = "/" in options.source or Path(options.source).exists()
    source = str(Path(options.source).absolute()) if own and "://" not in options.source else options.source
    return {
        "dump": re.sub(r"[^\w.-]+", "-", Path(source.rstrip("/*")).name) if own else source,
        "source": source if own else "",
        "shards": _shards(options.shards or "1"),
        "recipe": options.recipe or "laion-5b-en",
    }


def _report(
    watch: Watch, client: AirflowClient, store: str, options: argparse.Namespace, folder: Path, console: Console
) -> bool:
    """Print what came of the run; returns whether it is as it should be."""
    for cell in watch.failed():
        console.print(f"failed: {cell.label}: {cell.error}", style="red", markup=False, highlight=False)
    if watch.state != "success":
        return False
    root = Store(store)
    block = client.xcom(DAG, watch.run, "plan", key="block")
    shards = client.xcom(DAG, watch.run, "plan")
    manifest = client.xcom(DAG, watch.run, "publish")
    recipe = saved_recipe(root, block["recipe"])
    console.print(render(funnel(root, recipe, block["dump"], shards)))
    console.print(f"dataset version: {root.root}/{str(manifest).rpartition('/')[0]}", highlight=False)
    # a run on part of the crawl, or by another recipe, has another truth
    if options.source or options.shards or options.recipe:
        return True
    found = compare(folder / CRAWL / "truth.jsonl", _outcomes(root, recipe, block["dump"], shards))
    console.print(f"\nheld against the truth, which the pipeline never reads:\n{found.render()}", highlight=False)
    return found.good


def _outcomes(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Iterator[tuple[str, str, str, str]]:
    """What became of every sample: url, text, page, and `kept` or the reason why not."""
    for shard in shards:
        for batch in read_outcomes(store, recipe, dump, shard, ["url", "text", "page_url"]):
            for row in batch.to_pylist():
                yield row["url"], row["text"], row["page_url"], row["reason"] or "kept"


def _set_pools(client: AirflowClient) -> None:
    """Make the pools that the DAG's tasks ask for."""
    client.set_pool("download", os.cpu_count() or 2, "shards that download at the same time")
    client.set_pool("index", 1, "commits to the dedup index: one at a time")


def _shards(text: str) -> str | None:
    """ "2" -> "0-1" (so many shards); "0-3,7" as it is; empty: the whole block."""
    if not text.isdigit():
        return text or None
    if int(text) < 1:
        raise ConfigError("SHARDS=0: give a number of shards, or their numbers, such as 0-3,7")
    return f"0-{int(text) - 1}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m curation.demo.run", description=__doc__)
    parser.add_argument("--source", default="", help="Common Crawl id, folder, glob or s3://; empty: the demo crawl")
    parser.add_argument("--shards", default="", help="how many, or which (0-3,7); empty: all")
    parser.add_argument("--recipe", default="", help="default: demo, or laion-5b-en with a source")
    parser.add_argument("--var", type=Path, default=Path("var"), help="folder for everything the demo writes")
    parser.add_argument("--fleet", type=int, default=0, choices=(0, 1), help="1: Celery workers, PostgreSQL, Redis, S3")
    parser.add_argument("--keep", type=int, default=1, choices=(0, 1), help="0: end Airflow and exit with the result")
    return parser.parse_args(arguments)


def _sayer(console: Console, started: float) -> Say:
    def say(line: str) -> None:
        console.print(f"{time.monotonic() - started:6.0f} s  {line}", markup=False, highlight=False)

    return say


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
