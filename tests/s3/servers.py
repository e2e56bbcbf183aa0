"""S3 servers for tests: moto's over a real socket for speed, Ceph's radosgw for truth."""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

ACCESS_KEY, SECRET_KEY = "testaccess", "testsecretkey123"
_START = Path(__file__).resolve().parents[2] / "scripts" / "start_s3_server.sh"
_START_S = 120  # 14 s; 18 s where three start beside four busy processes


class Server:
    """An S3 server with one bucket for the session."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = (str(urlsplit(url).hostname), int(urlsplit(url).port or 0))
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        self.bucket = "curation-test"
        self.client.create_bucket(Bucket=self.bucket)

    def root(self) -> str:
        """A store root of its own."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:8]}/store"


def use(server: str, patch: pytest.MonkeyPatch) -> None:
    """Point the usual environment at the server, and away from the credentials of whoever runs the tests."""
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for name, value in settings.items():
        patch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    """A simulator: fast, keeps to the protocol, checks no keys."""
    from moto.server import ThreadedMotoServer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield Server(f"http://{host}:{port}")
        server.stop()


@pytest.fixture(scope="session")
def radosgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Ceph's S3 gateway: checks keys, stores for real."""
    missing = [name for name in ("radosgw", "ceph-mon", "ceph-osd", "ceph") if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"NO REAL S3 SERVER: {', '.join(missing)} not installed; "
            "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
        )
    process = subprocess.Popen(
        [_START, tmp_path_factory.mktemp("radosgw")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], _START_S)
        line = process.stdout.readline() if ready else ""
        if not line.startswith("ready "):
            process.terminate()
            pytest.fail(f"the S3 server did not start: {line}{process.communicate(timeout=30)[1]}")
        yield Server(line.split()[1])
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.communicate(timeout=5)


def until(seconds: float, true: Any) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not (found := bool(true())) and time.monotonic() < end:
        time.sleep(0.02)
    return found
