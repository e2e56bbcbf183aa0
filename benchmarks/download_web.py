"""A loopback web for benchmarks: real photographs in many sizes and formats, delays, failures and stalls.

Run alone it serves until it is ended and prints its port; `--workers` processes share it. What a path answers depends
on its number alone, so that every client sees the same web.
"""

import argparse
import asyncio
import io
import os
import random
import signal
import socket
import struct
from pathlib import Path

FAILED, STALLED = 0.08, 0.02
DELAY_S = (0.02, 0.2)
# shares of what a crawl's pictures look like: mostly JPEG, mostly 500 to 1600 px wide
FORMATS = (("JPEG", 0.80), ("PNG", 0.08), ("WEBP", 0.09), ("GIF", 0.03))
WIDTHS = ((300, 0.15), (600, 0.30), (1024, 0.35), (1600, 0.15), (2400, 0.05))
VARIANTS = 240
NOT_AN_IMAGE = b"<!DOCTYPE html><html><body>this picture is no longer here</body></html>"


def pictures(shared: Path) -> list[tuple[bytes, str]]:
    """Encoded pictures with their media types."""
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket()]
    sources += list(load_sample_images().images)
    photographs = [Image.fromarray(pixels) for pixels in sources]
    for path in sorted(shared.glob("captions/flickr8k/**/*.jpg"))[:60]:
        photographs.append(Image.open(path).convert("RGB"))
    draw = random.Random(0)
    made = []
    for number in range(VARIANTS):
        photograph = photographs[number % len(photographs)]
        kind = draw.choices(*zip(*FORMATS, strict=True))[0]
        width = draw.choices(*zip(*WIDTHS, strict=True))[0]
        height = max(1, photograph.height * width // photograph.width)
        sized = photograph.resize((width, height), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        sized.save(out, kind, **({"quality": draw.choice((75, 85, 92))} if kind in ("JPEG", "WEBP") else {}))
        made.append((out.getvalue(), f"image/{kind.lower()}"))
    return made


def answer(number: int, files: list[tuple[bytes, str]]) -> tuple[float, bytes | None]:
    """Delay in seconds and the bytes of the response; None: nothing ever comes, b"": the connection is reset."""
    draw = random.Random(number)
    fate, delay = draw.random(), draw.uniform(*DELAY_S)
    if fate < STALLED:
        return delay, None
    if fate < STALLED + FAILED:
        how = draw.choice(("404", "404", "404", "500", "reset", "html"))
        if how == "reset":
            return delay, b""
        status = {"404": "404 Not Found", "500": "500 Error", "html": "200 OK"}[how]
        return delay, head(status, "text/html", NOT_AN_IMAGE) + NOT_AN_IMAGE
    body, media = files[draw.randrange(len(files))]
    return delay, head("200 OK", media, body) + body


def head(status: str, media: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n".encode()


class Serving(asyncio.Protocol):
    """One connection, kept alive."""

    files: list[tuple[bytes, str]]

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.data = transport, b""
        transport.set_write_buffer_limits(high=1 << 22)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while b"\r\n\r\n" in self.data:
            request, _, self.data = self.data.partition(b"\r\n\r\n")
            name = request.split(b" ", 2)[1].rpartition(b"/")[2].partition(b".")[0]
            if name.isdigit():
                delay, response = answer(int(name), self.files)
            else:  # robots.txt, tdmrep.json: there is none
                delay, response = DELAY_S[0], head("404 Not Found", "text/plain", b"")
            if response is not None:
                asyncio.get_running_loop().call_later(delay, self.send, response)

    def send(self, response: bytes) -> None:
        if self.transport.is_closing():
            return
        if not response:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.write(response)


async def serve(sock: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(Serving, sock=sock, backlog=4096)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    Serving.files = pictures(args.shared)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", 0))
    sock.listen(4096)
    total = sum(len(body) for body, _ in Serving.files)
    print(sock.getsockname()[1], len(Serving.files), total // len(Serving.files), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for _ in range(args.workers - 1):
        if os.fork() == 0:
            break
    import uvloop

    uvloop.run(serve(sock))


if __name__ == "__main__":
    main()
