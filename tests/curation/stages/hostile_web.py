"""A web on loopback whose hosts stall, lie, reset, refuse and forbid: raw sockets, one port for every host."""

import asyncio
import contextlib
import gzip
import io
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator

from PIL import Image
from skimage import data


def encoded(pixels: object, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


CAT = encoded(data.chelsea(), "JPEG", quality=90)
PNG = encoded(data.chelsea(), "PNG")


def huge_png() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + PNG[33:]


def long_gif() -> bytes:
    frames = [Image.new("P", (8, 8), n % 256) for n in range(10_000)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def response(body: bytes = CAT, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        f"HTTP/1.1 {status}\r\n".encode()
        + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())
        + b"\r\n"
        + body
    )


RESET, STALL, DRIP = b"<reset>", b"<stall>", b"<drip>"
SITE: dict[str, bytes | list[bytes]] = {
    "/cat.jpg": response(ETag='"v1"'),
    "/png": response(PNG),
    "/hop": response(b"", "302 Found", Location="http://b.test/cat.jpg"),
    "/loop": response(b"", "302 Found", Location="/loop"),
    "/to-metadata": response(b"", "302 Found", Location="http://169.254.169.254/latest/meta-data"),
    "/to-loopback": response(b"", "302 Found", Location="http://127.0.0.1:1/x"),
    "/to-loopback6": response(b"", "302 Found", Location="http://[::1]:1/x"),
    "/to-mapped": response(b"", "302 Found", Location="http://[::ffff:127.0.0.1]:1/x"),
    "/to-decimal": response(b"", "302 Found", Location="http://2130706433:1/x"),
    "/to-file": response(b"", "302 Found", Location="file:///etc/passwd"),
    "/to-nowhere": response(b"", "302 Found", Location="http://[::1"),
    "/401": response(b"", "401 Unauthorized"),
    "/403": response(b"", "403 Forbidden"),
    "/404": response(b"", "404 Not Found"),
    "/410": response(b"", "410 Gone"),
    "/418": response(b"", "418 Teapot"),
    "/500": response(b"", "500 Error"),
    "/heals": [response(b"", "503 Unavailable"), response()],
    "/later": [response(b"", "429 Too Many", Retry_After="1"), response()],
    "/much-later": response(b"", "429 Too Many", Retry_After="3600"),
    "/reset": response(CAT[:5000], Content_Length=str(len(CAT))) + RESET,
    "/short": response(CAT[:5000], Content_Length=str(len(CAT))),
    "/understated": response(CAT, Content_Length="5000"),
    "/chunked": response()
    .replace(b"Content-Length: %d" % len(CAT), b"Transfer-Encoding: chunked")
    .replace(b"\r\n\r\n", b"\r\n\r\n%x\r\n" % len(CAT), 1)
    + b"\r\n0\r\n\r\n",
    "/chunked-short": response()
    .replace(b"Content-Length: %d" % len(CAT), b"Transfer-Encoding: chunked")
    .replace(b"\r\n\r\n", b"\r\n\r\n%x\r\n" % (2 * len(CAT)), 1),
    "/announced": response(b"x", Content_Length=str(1 << 40)),
    "/slow-body": response(CAT[:500], Content_Length=str(len(CAT))) + STALL,
    "/slow-head": b"HTTP/1.1 200 OK\r\nX-A: b\r\n" + STALL,
    "/drip-body": response(CAT) + DRIP,
    "/drip-head": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 5000 + DRIP,
    "/long-head": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 100_000 + b"\r\n\r\n",
    "/garbage": b"\x00\x01 this is not HTTP\r\n\r\n",
    "/bomb": response(gzip.compress(bytes(64 << 20)), Content_Encoding="gzip"),
    "/zipped": response(gzip.compress(CAT), Content_Encoding="gzip"),
    "/zipped-short": response(gzip.compress(CAT)[:-900], Content_Encoding="gzip"),
    "/html.jpg": response(b"<!DOCTYPE html><html><body>not here</body></html>"),
    "/svg": response(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "/empty": response(b""),
    "/huge.png": response(huge_png()),
    "/cut.jpg": response(CAT[: len(CAT) // 2]),
    "/cut.png": response(PNG[: len(PNG) // 2]),
    "/long.gif": response(long_gif()),
    "/noai": response(X_Robots_Tag="noarchive, NoAI"),
    "/noai-us": response(X_Robots_Tag="curation: noimageai"),
    "/noai-other": response(X_Robots_Tag="otherbot: noai"),
    "/tdm": response(tdm_reservation="1"),
}
HOSTS: dict[str, dict[str, bytes]] = {
    "closed.test": {"/robots.txt": response(b"User-agent: *\nDisallow: /\nAllow: /open/\n"), "/open/cat": response()},
    "named.test": {"/robots.txt": response(b"User-agent: curation\nDisallow: /\n\nUser-agent: *\nAllow: /\n")},
    "broken.test": {"/robots.txt": response(b"", "500 Error")},
    "moved.test": {
        "/robots.txt": response(b"", "301 Moved", Location="/r"),
        "/r": response(b"User-agent: *\nDisallow: /"),
    },
    "marked.test": {
        "/robots.txt": response(b"User-agent: *\nDisallow: /", X_Robots_Tag="noindex", tdm_reservation="1")
    },
    "reserved.test": {
        "/.well-known/tdmrep.json": response(b'[{"location": "/private/", "tdm-reservation": 1}]'),
        "/private/cat": response(),
    },
}


class Web:
    """One port for every host; counts requests by host and path, and the most connections at once."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.open = self.most = 0
        self.delay_s = 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        with contextlib.ExitStack() as last, contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            last.callback(self._close, writer)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path, host = head.split()[1], head.lower().partition("\r\nhost: ")[2].partition("\r\n")[0]
            self.asked[host + path] += 1
            known = HOSTS.get(host, {}).get(path) or SITE.get(path.partition("?")[0], response(b"", "404 Not Found"))
            answer = known if isinstance(known, bytes) else known[min(self.asked[host + path], len(known)) - 1]
            await asyncio.sleep(self.delay_s)
            if answer.endswith(DRIP):  # slow loris: never silent for long
                for at in range(0, 3000, 20):
                    writer.write(answer[at : at + 20])
                    await writer.drain()
                    await asyncio.sleep(0.02)
                return
            writer.write(answer.removesuffix(RESET).removesuffix(STALL))
            await writer.drain()
            if answer.endswith(STALL):
                await asyncio.sleep(3)
            if answer.endswith(RESET):
                await asyncio.sleep(0.1)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self.open -= 1
        writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def close() -> None:
            server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
