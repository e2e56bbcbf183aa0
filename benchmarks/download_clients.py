"""Choose the HTTP client of the download stage: requests/s and CPU a request of several, on one loopback web.

nginx serves three files (10, 100 and 500 KB) on 30 loopback addresses, over plain HTTP/1.1, TLS with HTTP/1.1 and TLS
with HTTP/2; each client fetches the same URLs, so many in flight, certificates verified, in a process of its own.
Needs nginx, and an environment with the clients:

    python -m venv /tmp/clients && /tmp/clients/bin/pip install aiohttp pycurl niquests "httpx[http2]" cryptography
    /tmp/clients/bin/python benchmarks/download_clients.py
"""

import argparse
import asyncio
import contextlib
import datetime
import ipaddress
import json
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

SIZES = (10_000, 100_000, 500_000)
HOSTS = [f"127.0.0.{n}" for n in range(1, 31)]
Fetch = Callable[[str], Coroutine[None, None, int]]


def write_certificate(folder: Path) -> None:
    """A certificate for every loopback address, its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)) for host in HOSTS])
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=2)).add_extension(names, False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    (folder / "cert.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


@contextlib.contextmanager
def web(folder: Path) -> Iterator[dict[str, str]]:
    """nginx on three free ports; yields base URL endings by protocol."""
    write_certificate(folder)
    for size in SIZES:
        (folder / f"{size}.jpg").write_bytes(bytes(size))
    ports = []
    for _ in range(3):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    servers = ""
    for port, tls, http2 in zip(ports, ("", " ssl", " ssl http2"), ("", "", "http2"), strict=True):
        servers += f"server {{ listen 0.0.0.0:{port}{tls} backlog=4096; root {folder}; keepalive_requests 100000; "
        servers += "http2_max_concurrent_streams 256; " if http2 else ""
        servers += f"ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; }}\n" if tls else "}\n"
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 8192; }} http {{ access_log off; sendfile on; {servers} }}"
    )
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin") or sys.exit("nginx is not installed")
    server = subprocess.Popen([binary, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield {
            "http/1.1": f"http://HOST:{ports[0]}",
            "tls": f"https://HOST:{ports[1]}",
            "h2": f"https://HOST:{ports[2]}",
        }
    finally:
        server.terminate()
        server.wait()


async def spread(fetch: Fetch, urls: list[str], in_flight: int) -> list[int]:
    slots = asyncio.Semaphore(in_flight)

    async def one(url: str) -> int:
        async with slots:
            return await fetch(url)

    return list(await asyncio.gather(*(one(url) for url in urls)))


async def with_aiohttp(urls: list[str], in_flight: int, ca: str, http2: bool) -> list[int]:
    import ssl

    import aiohttp

    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=context), auto_decompress=False) as s:

        async def fetch(url: str) -> int:
            async with s.get(url) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(1 << 16):
                    body += chunk
                return len(body)

        return await spread(fetch, urls, in_flight)


async def with_httpx(urls: list[str], in_flight: int, ca: str, http2: bool) -> list[int]:
    import ssl

    import httpx

    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    context = ssl.create_default_context(cafile=ca)
    async with httpx.AsyncClient(http2=http2, verify=context, limits=limits, timeout=60) as client:

        async def fetch(url: str) -> int:
            return len((await client.get(url)).content)

        return await spread(fetch, urls, in_flight)


async def with_niquests(urls: list[str], in_flight: int, ca: str, http2: bool) -> list[int]:
    import niquests

    async with niquests.AsyncSession(
        disable_http2=not http2, disable_http3=True, pool_connections=len(HOSTS), pool_maxsize=in_flight
    ) as s:

        async def fetch(url: str) -> int:
            return len((await s.get(url, verify=ca, timeout=60)).content or b"")

        return await spread(fetch, urls, in_flight)


async def with_pycurl(urls: list[str], in_flight: int, ca: str, http2: bool) -> list[int]:
    import io

    import pycurl

    loop = asyncio.get_running_loop()
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
    waiting: dict[object, asyncio.Future[None]] = {}
    timer: list[asyncio.TimerHandle] = []

    def act(descriptor: int, events: int) -> None:
        multi.socket_action(descriptor, events)
        while True:
            left, good, bad = multi.info_read()
            for curl in good:
                waiting.pop(curl).set_result(None)
            for curl, _, message in bad:
                waiting.pop(curl).set_exception(OSError(message))
            if not left:
                return

    def on_socket(event: int, descriptor: int, _: object, __: object) -> None:
        if event == pycurl.POLL_REMOVE:
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)
            return
        if event & pycurl.POLL_IN:
            loop.add_reader(descriptor, act, descriptor, pycurl.CSELECT_IN)
        else:
            loop.remove_reader(descriptor)
        if event & pycurl.POLL_OUT:
            loop.add_writer(descriptor, act, descriptor, pycurl.CSELECT_OUT)
        else:
            loop.remove_writer(descriptor)

    def on_timer(ms: int) -> None:
        while timer:
            timer.pop().cancel()
        if ms >= 0:
            timer.append(loop.call_later(ms / 1000, act, pycurl.SOCKET_TIMEOUT, 0))

    multi.setopt(pycurl.M_SOCKETFUNCTION, on_socket)
    multi.setopt(pycurl.M_TIMERFUNCTION, on_timer)
    idle: list[object] = []

    async def fetch(url: str) -> int:
        curl = idle.pop() if idle else pycurl.Curl()
        body = io.BytesIO()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.CAINFO, ca)
        curl.setopt(pycurl.WRITEDATA, body)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS if http2 else pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.PIPEWAIT, 1 if http2 else 0)
        waiting[curl] = loop.create_future()
        done = waiting[curl]
        multi.add_handle(curl)
        await done
        multi.remove_handle(curl)
        curl.reset()
        idle.append(curl)
        return len(body.getvalue())

    return await spread(fetch, urls, in_flight)


CLIENTS = {"aiohttp": with_aiohttp, "pycurl": with_pycurl, "httpx": with_httpx, "niquests": with_niquests}


def one(client: str, protocol: str, base: str, ca: str, requests: int, in_flight: int) -> None:
    urls = [f"{base.replace('HOST', HOSTS[n % 30])}/{SIZES[n % 3]}.jpg?{n}" for n in range(requests)]
    started, before = time.monotonic(), time.process_time()
    sizes = asyncio.run(CLIENTS[client](urls, in_flight, ca, protocol == "h2"))
    if sizes != [SIZES[n % 3] for n in range(requests)]:
        sys.exit("bodies differ")
    seconds, cpu = time.monotonic() - started, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"per_s": requests / seconds, "cpu_ms": cpu / requests * 1000, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=6)
    args = parser.parse_args()
    if args.one:
        client, protocol, base, ca, requests, in_flight = args.one
        return one(client, protocol, base, ca, int(requests), int(in_flight))
    print(f"{args.requests} requests, {args.in_flight} in flight, median of {args.repeat}\n")
    print("| protocol | client | requests/s | client CPU ms a request | peak MiB |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name, web(Path(name)) as bases:
        Path(name).chmod(0o755)
        for protocol, base in bases.items():
            for client in CLIENTS:
                if protocol == "h2" and client == "aiohttp":
                    continue  # it has none
                runs = []
                for _ in range(args.repeat):
                    command = [sys.executable, __file__, "--one", client, protocol, base, f"{name}/cert.pem"]
                    done = subprocess.run(
                        [*command, str(args.requests), str(args.in_flight)], capture_output=True, text=True
                    )
                    runs.append(json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-200:]})
                failed = [run["error"] for run in runs if "error" in run]
                if failed:
                    print(f"| {protocol} | {client} | failed: {failed[0].splitlines()[-1]} | | |")
                    continue
                median = {figure: sorted(run[figure] for run in runs)[len(runs) // 2] for figure in runs[0]}
                cells = f"{median['per_s']:.0f} | {median['cpu_ms']:.2f} | {median['peak_mib']}"
                print(f"| {protocol} | {client} | {cells} |")


if __name__ == "__main__":
    main()
