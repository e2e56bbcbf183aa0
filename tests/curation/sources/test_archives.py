"""Finding archives and reading remote ones whole, over servers that fail in every way, on loopback."""

import gzip
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from curation.errors import BadShardError, ConfigError, OutageError
from curation.sources import common_crawl, remote
from curation.sources.archives import list_archives, open_archive

BODY = bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_DELAY_S", 0.001)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, announced: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if announced is None else announced))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


def test_folders_files_and_globs(tmp_path: Path) -> None:
    for name in (
        "b/2.warc.gz",
        "a/1.warc.gz",
        "a/1.warc.wat.gz",
        "c.warc",
        "d.warc.zst",
        "e.warc.wet.gz",
        "f.arc.gz",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    at = lambda *names: [str(tmp_path / name) for name in names]  # noqa: E731
    assert list_archives(str(tmp_path), "warc") == at("a/1.warc.gz", "b/2.warc.gz", "c.warc", "d.warc.zst", "f.arc.gz")
    assert list_archives(str(tmp_path), "wat") == at("a/1.warc.wat.gz")
    assert list_archives(str(tmp_path / "*" / "*.warc.gz"), "warc") == at("a/1.warc.gz", "b/2.warc.gz")
    assert list_archives(str(tmp_path / "c.warc"), "warc") == at("c.warc")
    for nothing in (str(tmp_path / "absent"), str(tmp_path / "*.cdx")):
        with pytest.raises(ConfigError, match="source"):
            list_archives(nothing, "warc")


def test_a_folder_of_the_other_kind_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "00000.warc.wat.gz").touch()
    with pytest.raises(ConfigError, match=r"no warc in .*, but wat: set stages\.extract\.archive=wat"):
        list_archives(str(tmp_path), "warc")


def test_common_crawl_id(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = "crawl-data/CC-MAIN-2026-05/b.warc.wat.gz\ncrawl-data/CC-MAIN-2026-05/a.warc.wat.gz\n"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        known = handler.path == "/crawl-data/CC-MAIN-2026-05/wat.paths.gz"
        send(handler, gzip.compress(paths.encode()) if known else b"", 200 if known else 404)

    with serving(answer) as base:
        monkeypatch.setenv("CURATION_COMMONCRAWL_URL", base + "/")
        assert list_archives("CC-MAIN-2026-05", "wat") == [
            f"{base}/crawl-data/CC-MAIN-2026-05/{name}.warc.wat.gz" for name in "ab"
        ]
        with pytest.raises(ConfigError, match="source: CC-MAIN-1999-01"):
            list_archives("CC-MAIN-1999-01", "wat")
    with pytest.raises(OutageError):
        list_archives("CC-MAIN-2026-05", "wat")


def test_common_crawl_news(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"crawl-data/CC-NEWS/2026/02/CC-NEWS-202602{day}0000-0000{day}.warc.gz" for day in (12, 13, 13, 14)]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        known = handler.path == "/crawl-data/CC-NEWS/2026/02/warc.paths.gz"
        send(handler, gzip.compress("\n".join(names).encode()) if known else b"", 200 if known else 404)

    with serving(answer) as base:
        monkeypatch.setenv("CURATION_COMMONCRAWL_URL", base)
        assert list_archives("CC-NEWS-2026-02-13", "warc") == [f"{base}/{name}" for name in names[1:3]]
        assert len(list_archives("CC-NEWS-2026-02", "warc")) == 4
        with pytest.raises(ConfigError, match="source: CC-NEWS-2026-02-27"):
            list_archives("CC-NEWS-2026-02-27", "warc")
        with pytest.raises(ConfigError, match=r"source: .*stages\.extract\.archive to warc"):
            list_archives("CC-NEWS-2026-02", "wat")


@pytest.mark.usefixtures("s3")
def test_common_crawl_by_what_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURATION_COMMONCRAWL_URL", raising=False)
    key = "crawl-data/CC-MAIN-2026-04/wat.paths.gz"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, gzip.compress(b"over-https.wat.gz"))

    with serving(answer) as base:
        monkeypatch.setattr(common_crawl, "BASE_URL", base)
        # credentials, but no such bucket behind the endpoint
        assert list_archives("CC-MAIN-2026-04", "wat") == [f"{base}/over-https.wat.gz"]
        boto3.client("s3").create_bucket(Bucket="commoncrawl")
        boto3.client("s3").put_object(Bucket="commoncrawl", Key=key, Body=gzip.compress(b"a.wat.gz"))
        assert list_archives("CC-MAIN-2026-04", "wat") == ["s3://commoncrawl/a.wat.gz"]
        monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)
        assert list_archives("CC-MAIN-2026-04", "wat") == [f"{base}/over-https.wat.gz"]


def test_missing_local_archive_is_a_bad_shard(tmp_path: Path) -> None:
    with pytest.raises(BadShardError):
        open_archive(str(tmp_path / "absent.warc.gz"))


def test_http_resumes_where_it_broke() -> None:
    asked: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Range"])
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        send(handler, BODY[start : start + 200_000], 206 if start else 200, announced=len(BODY) - start)

    with serving(answer) as base, open_archive(f"{base}/x.warc.gz") as stream:
        assert stream.read() == BODY
    assert len(asked) > 2


def test_http_is_read_from_any_offset() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        send(handler, BODY[start:], 206 if start else 200)

    with serving(answer) as base, open_archive(f"{base}/x.parquet#rows=0-9") as stream:
        assert stream.seek(-8, io.SEEK_END) == len(BODY) - 8
        assert stream.read() == BODY[-8:]
        assert stream.seek(300_000) == stream.tell() == 300_000
        assert stream.read(9) == BODY[300_000:300_009]
        assert stream.seek(-3, io.SEEK_CUR) == 300_006
        assert stream.read(3) == BODY[300_006:300_009]
        assert list_archives(f"{base}/x.warc", "warc") == [f"{base}/x.warc"]


def test_http_cut_for_good_is_an_outage() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Range"]:
            send(handler, b"", 503)
        else:
            send(handler, BODY[:1000], announced=len(BODY))

    with serving(answer) as base, pytest.raises(OutageError), open_archive(f"{base}/x.warc.gz") as stream:
        stream.read()


@pytest.mark.parametrize(
    ("status", "raised"), [(404, BadShardError), (403, BadShardError), (503, OutageError), (500, OutageError)]
)
def test_http_status(status: int, raised: type[Exception]) -> None:
    with serving(lambda handler: send(handler, b"", status)) as base, pytest.raises(raised, match=str(status)):
        open_archive(f"{base}/x.warc.gz")


def test_nobody_answers_is_an_outage() -> None:
    with serving(lambda handler: None) as base:
        pass
    with pytest.raises(OutageError):
        open_archive(f"{base}/x.warc.gz")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    remote._s3.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="crawl")
    for name in ("d/b.warc.gz", "d/a.warc.gz", "d/a.warc.wat.gz", "dd/c.warc.gz"):
        client.put_object(Bucket="crawl", Key=name, Body=BODY)
    yield
    remote._s3.cache_clear()
    server.stop()


@pytest.mark.usefixtures("s3")
def test_s3() -> None:
    expected = ["s3://crawl/d/a.warc.gz", "s3://crawl/d/b.warc.gz"]
    assert list_archives("s3://crawl/d", "warc") == list_archives("s3://crawl/d/", "warc") == expected
    assert list_archives("s3://crawl/d/*.warc.gz", "warc") == expected
    assert len(list_archives("s3://crawl", "warc")) == 3
    with open_archive(expected[0]) as stream:
        assert stream.read() == BODY
    with pytest.raises(BadShardError, match="404"):
        open_archive("s3://crawl/absent.warc.gz")
    for nothing in ("s3://crawl/none/", "s3://no-such-bucket/"):
        with pytest.raises(ConfigError, match="source"):
            list_archives(nothing, "warc")


def test_s3_server_that_fails_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("cut.warc.gz"):
            send(handler, BODY[:1000], announced=len(BODY))
        else:
            send(handler, b"", 403 if handler.path.endswith("secret.warc.gz") else 503)

    with serving(answer) as base:
        monkeypatch.setenv("AWS_ENDPOINT_URL", base)
        remote._s3.cache_clear()
        with pytest.raises(OutageError):
            open_archive("s3://crawl/busy.warc.gz")
        with pytest.raises(BadShardError, match="403"):
            open_archive("s3://crawl/secret.warc.gz")
        with pytest.raises(OutageError), open_archive("s3://crawl/cut.warc.gz") as stream:
            stream.read()
    remote._s3.cache_clear()
