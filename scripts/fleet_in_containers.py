"""Build docker-compose.yaml's images, start its services and pass a block through them, with podman and no registry.

    apt-get install --no-install-recommends podman runc debootstrap netavark aardvark-dns iptables
    pip install podman-compose
    python scripts/fleet_in_containers.py          as root; --keep 1 leaves it running, --down ends what was left

The base image comes from debootstrap; Debian's PostgreSQL, Redis and radosgw stand in for postgres, redis and SeaweedFS
under the names that the file asks for (scripts/stand_ins). PODMAN_BUILD_OPTIONS are handed to `podman build`, for an
index of your own. Docker and a machine with a GPU need none of this: `docker compose up --build -d`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from cryptography.fernet import Fernet
from rich.console import Console

from curation.block import recipe_key
from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import free_port
from curation.demo.run import EVALSET, _outcomes
from curation.demo.watch import DAG, Watch, follow
from curation.demo_crawl.build import build_demo_crawl
from curation.demo_crawl.verdicts_check import compare
from curation.dumps import archives_of
from curation.errors import OutageError
from curation.pipeline import fingerprint, saved_recipe
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.store import Store

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = ROOT / "scripts" / "stand_ins"
FLEET: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = FLEET["services"]
BASE = "docker.io/library/debian:bookworm-slim"
DUMP = "demo"
STAND_IN_SERVICES = ("postgres", "redis", "s3")
# Debian's crun and the cgroups of a systemd that is not there are not to be had everywhere
CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
started = time.monotonic()


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)


def run(*command: str | Path, check: bool = True, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command. Raises OutageError with what it said when it fails."""
    out = subprocess.PIPE if quiet else None
    done = subprocess.run([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        raise OutageError(
            f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{(done.stdout or '')[-3000:]}"
        )
    return done


def full(image: str) -> str:
    """Name of an image as podman keeps it: SeaweedFS and Debian are Docker Hub's."""
    return f"docker.io/{image if '/' in image else f'library/{image}'}"


def build_images() -> None:
    """Base image, stand-ins and both targets of the Dockerfile."""
    if run("podman", "image", "exists", BASE, check=False).returncode:
        say("base image, by debootstrap")
        with tempfile.TemporaryDirectory() as folder:
            run("debootstrap", "--variant=minbase", "bookworm", folder)
            run("sh", "-c", f"tar -C {folder} -c . | podman import - {BASE}")
    build = ["podman", "build", "--layers", "--network", "host", "--isolation", "chroot"]
    build += shlex.split(os.environ.get("PODMAN_BUILD_OPTIONS", ""))
    for name in STAND_IN_SERVICES:
        image = full(SERVICES[name]["image"])
        if run("podman", "image", "exists", image, check=False).returncode:
            say(f"stand-in for {image}")
            run(*build, "-t", image, "-f", STAND_INS / f"{name}.Containerfile", ROOT / "scripts")
    for target in ("cpu", "gpu"):
        say(f"curation:{target}")
        run(*build, "--target", target, "-t", f"curation:{target}", ROOT)


class Compose:
    """docker-compose.yaml with a demo crawl beside it, without the GPU that this machine lacks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crawl = folder / "crawl"
        self.settings = folder / "env"
        if self.settings.exists():
            lines = self.settings.read_text().split()
        else:
            asked = [line[:-1] for line in (ROOT / "fleet.env.example").read_text().split() if line.endswith("=")]
            keys = {name: secrets.token_hex(24) for name in asked} | {"FERNET_KEY": Fernet.generate_key().decode()}
            cores = os.cpu_count() or 2
            plain = {"UI_PORT": free_port(8080), "S3_PORT": free_port(), "WORKER_CONCURRENCY": cores}
            plain |= {"WORKER_CPUS": cores, "GPU_WORKER_CPUS": cores}
            lines = [f"{name}={value}" for name, value in (keys | plain).items()]
            self.settings.touch(mode=0o600)
            self.settings.write_text("\n".join(lines) + "\n")
        self.env = dict(line.split("=", 1) for line in lines)
        crawl = [f"{self.crawl}:/crawl:ro"]
        web = {"image": "curation:cpu", "network_mode": "service:worker", "volumes": crawl, "depends_on": ["worker"]}
        web["entrypoint"] = ["tini", "--", "python", "-m", "curation.demo_crawl.server", "/crawl", "--port", "8000"]
        beside = {
            "services": {
                "worker": {"volumes": crawl},
                "worker-gpu": {"volumes": crawl},
                "s3": {"ports": [f"127.0.0.1:{self.env['S3_PORT']}:8333"]},
                "demo-web": web,
            }
        }
        text = yaml.safe_dump(beside)
        if not Path("/dev/nvidia0").exists():
            text = text.replace(
                "  worker-gpu:\n", "  worker-gpu:\n    deploy: {resources: {reservations: !reset null}}\n"
            )
        (folder / "beside.yaml").write_text(text)

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Hand arguments to podman-compose; returns what it said."""
        command = ["podman-compose", "--in-pod=false", "--env-file", self.settings]
        command += ["-f", ROOT / "docker-compose.yaml", "-f", self.folder / "beside.yaml", *arguments]
        return run(*command, check=check).stdout or ""

    def start(self) -> None:
        """Start the services in their order: Debian's podman neither waits for health nor starts chains of services."""
        rest = [name for name in SERVICES if name not in (*STAND_IN_SERVICES, "init")]
        self.up(*STAND_IN_SERVICES)
        self.wait_until_healthy(STAND_IN_SERVICES, 120)
        self.up("init")
        ended = run("podman", "wait", self.container("init")).stdout.split()[-1]
        if ended != "0":
            raise OutageError(
                f"init ended with {ended}:\n{run('podman', 'logs', self.container('init')).stdout[-3000:]}"
            )
        self.up(*rest, "demo-web")
        self.wait_until_healthy(rest, 300)

    def up(self, *services: str) -> None:
        """Start services whose images stand there."""
        self("up", "-d", "--no-build", "--no-deps", *services)

    def container(self, service: str) -> str:
        """Name of a service's container."""
        return f"{FLEET['name']}_{service}_1"

    def healthy(self, service: str) -> bool:
        """What the service's own health check says now."""
        return not run("podman", "healthcheck", "run", self.container(service), check=False).returncode

    def wait_until_healthy(self, services: Sequence[str], patience_s: float) -> None:
        """Raise OutageError when one does not come."""
        until = time.monotonic() + patience_s
        while sick := [name for name in services if not self.healthy(name)]:
            if time.monotonic() > until:
                told = "\n".join(
                    run("podman", "logs", self.container(name), check=False).stdout[-2000:] for name in sick
                )
                raise OutageError(f"{', '.join(sick)} is not healthy after {patience_s:.0f} s:\n{told}")
            time.sleep(2)
        say(f"healthy: {', '.join(services)}")


def check_refusal() -> None:
    """Without secrets nothing starts."""
    done = run("podman-compose", "--env-file", "/dev/null", "-f", ROOT / "docker-compose.yaml", "config", check=False)
    assert done.returncode, "it starts without secrets"
    assert "set it in .env" in done.stdout, done.stdout


def check_bounds(fleet: Compose) -> None:
    """Limits stand in the containers as in the file; no secret is on a command line."""
    units = {"M": 1 << 20, "G": 1 << 30}
    keys = [value for value in fleet.env.values() if len(value) > 20]
    for name, service in SERVICES.items():
        (found,) = json.loads(run("podman", "inspect", fleet.container(name)).stdout)
        limits = {
            key: re.sub(r"\$\{(\w+):-(\w+)\}", lambda m: fleet.env.get(m[1], m[2]), str(value))
            for key, value in service["deploy"]["resources"]["limits"].items()
        }
        memory = int(limits["memory"][:-1]) * units[limits["memory"][-1]]
        assert found["HostConfig"]["Memory"] == memory, (name, found["HostConfig"]["Memory"], memory)
        assert found["HostConfig"]["NanoCpus"] == float(limits["cpus"]) * 1e9, (name, found["HostConfig"]["NanoCpus"])
        assert not [key for key in keys if key in " ".join([found["Path"], *found["Args"]])], (
            f"{name}: a secret in its command"
        )
    lines = run("ps", "-eo", "args").stdout
    assert not [key for key in keys if key in lines], "a secret in the list of processes"
    say("limits are set, no secret shows in a command line")


def check_work(fleet: Compose, store: Store) -> bool:
    """Every verdict against the truth, and which container did which stage."""
    recipe: Recipe = saved_recipe(store, recipe_key(store, DUMP, "demo"))
    shards = range(len(archives_of(store, DUMP, "warc")))
    names = {
        run("podman", "inspect", "-f", "{{.Config.Hostname}}", fleet.container(name)).stdout.strip(): name
        for name in ("worker", "worker-gpu")
    }
    for stage in recipe.stage_names:
        receipts = [store.read_receipt(table_key(DUMP, stage, fingerprint(recipe, stage), shard)) for shard in shards]
        hosts = {names.get(receipt.host, receipt.host) for receipt in receipts if receipt}
        assert hosts == {"worker-gpu" if stage in ("score", "caption") else "worker"}, (stage, hosts)
    say("score and caption ran on worker-gpu, all else on worker")
    found = compare(fleet.crawl / "truth.jsonl", _outcomes(store, recipe, DUMP, shards))
    print(found.render())
    return found.good


def pass_a_block(fleet: Compose) -> bool:
    """Index the evaluation set, then curate the demo crawl; returns whether each verdict is as it should be."""
    client = AirflowClient(f"http://127.0.0.1:{fleet.env['UI_PORT']}", "admin", fleet.env["ADMIN_PASSWORD"])
    client.wait_until_healthy(DAG, lambda: None)
    client.trigger("index_evalsets", "evalset", {"name": EVALSET, "path": "/crawl/evalset"})
    until = time.monotonic() + 300
    while (state := client.run_state("index_evalsets", "evalset")) != "success":
        if state == "failed" or time.monotonic() > until:
            raise OutageError(f"index_evalsets is {state}")
        time.sleep(2)
    overrides = {
        "stages.download.connect_to": {"*.test": "127.0.0.1:8000"},
        "stages.extract.blocklist": "/crawl/blocklist.txt",
        "stages.safety.known_hashes": "/crawl/known_unsafe.txt",
    }
    client.trigger(DAG, "block", {"dump": DUMP, "source": "/crawl/crawl", "recipe": "demo", "overrides": overrides})
    watch = Watch(client, "block", int(fleet.env["WORKER_CONCURRENCY"]))
    follow(watch, Console(force_terminal=False, width=160), lambda: None)
    for cell in watch.failed():
        print(f"failed: {cell.label}: {cell.error}")
    say(f"curate_block: {watch.state}")
    if watch.state != "success":
        return False
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{fleet.env['S3_PORT']}",
        "AWS_ACCESS_KEY_ID": fleet.env["S3_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": fleet.env["S3_SECRET_KEY"],
        "AWS_REGION": "us-east-1",
    }
    return check_work(fleet, Store("s3://curation/store"))


def main() -> int:
    """Build, start, run, check, end; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curation-containers")
    parser.add_argument("--keep", type=int, default=0, choices=(0, 1), help="1: leave the fleet running")
    parser.add_argument("--no-build", action="store_true", help="the images stand there")
    parser.add_argument("--down", action="store_true", help="end a fleet that was left running, with its volumes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    conf = options.folder / "containers.conf"
    conf.write_text(CONF)
    os.environ["CONTAINERS_CONF"] = str(conf)
    fleet = Compose(options.folder)
    if options.down:
        fleet("down", "-v", check=False)
        return 0
    if not options.no_build:
        build_images()
    build_demo_crawl(fleet.crawl)
    try:
        check_refusal()
        fleet.start()
        check_bounds(fleet)
        return 0 if pass_a_block(fleet) else 1
    finally:
        if not options.keep:
            fleet("down", "-v", check=False)


if __name__ == "__main__":
    sys.exit(main())
