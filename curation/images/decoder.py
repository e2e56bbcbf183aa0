"""Decoder processes: pictures in, what is kept of them out. Whatever a hostile file does happens here.

Started by decoders.py with its settings and a socket. This process decodes nothing itself: it loads the codecs once and
forks a decoder each time that it is sent a socket and memory to read bodies from, so that decoders start in no time and
share what they loaded. Messages are a length and plain bytes or JSON: a decoder that was taken over has no pickle to
send, and can't reach the socket of this process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
REPLY = struct.Struct("<cII")  # kind, length of the JSON, length of the picture
READY, ASKS, GO, DONE, FAILED = b"K", b"A", b"G", b"D", b"F"
ORDER = struct.Struct("<cq")  # kind, process id or exit code
FORK, ENDED, COMPILED = b"N", b"E", b"C"
SHARED_BYTES = 1 << 20  # bodies up to this length lie in shared memory, longer ones follow their length
_END_S, _POLL_S = 1.0, 0.002
_NICE = 5  # requests go first: hosts have to be waited for, pictures can wait on disk
LARGE_PIXELS = 8 << 20  # from here on one picture is decoded at a time: it takes 4 bytes a pixel and more


def received(sock: socket.socket, n_bytes: int) -> bytearray:
    """So many bytes. Raises EOFError when the other side is gone."""
    data = bytearray(n_bytes)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def main(control: socket.socket, settings: dict[str, Any], memory_bytes: int, seconds: float) -> None:
    """Fork decoders, and tell how they ended, until the other side hangs up."""
    _load()
    gc.collect()
    gc.freeze()  # else a collection in a decoder would write to every object, and so copy the memory it shares
    control.sendall(READY)
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 2)
        if not order:
            return
        kind, pid = ORDER.unpack(order + received(control, ORDER.size - len(order)))
        if kind == ENDED:
            control.sendall(ORDER.pack(ENDED, _ended(pid)))
            continue
        if kind == COMPILED:
            from curation.images import gif_kernel, phash_kernel, png_kernel  # noqa: F401

            gc.freeze()
            control.sendall(ORDER.pack(COMPILED, 0))
            continue
        pid = os.fork()
        if not pid:
            control.close()
            os.nice(_NICE)
            with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, MemoryError):
                decode(descriptors[0], descriptors[1], settings, memory_bytes, seconds)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(ORDER.pack(FORK, pid))


def _load() -> None:
    """Load what the first pictures would: it counts as used before memory is limited, and decoders share it."""
    import io

    from PIL import Image

    from curation.images.decode import decode_picture

    for image_format in ("PNG", "JPEG", "WEBP"):
        out = io.BytesIO()
        Image.new("RGB", (64, 64)).save(out, image_format)
        decode_picture(out.getvalue())


def _ended(pid: int) -> int:
    """Wait for a decoder that is to end, and end it where it does not."""
    for _ in range(int(_END_S / _POLL_S)):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def decode(descriptor: int, shared: int, settings: dict[str, Any], memory_bytes: int, seconds: float) -> None:
    """Decode one picture after the other until the other side hangs up."""
    from curation.images.decode import Undecodable, decode_picture

    sock = socket.socket(fileno=descriptor)
    bodies = mmap.mmap(shared, SHARED_BYTES, prot=mmap.PROT_READ)
    _limit_memory(memory_bytes)

    def admit(n_pixels: int) -> None:
        if n_pixels >= LARGE_PIXELS:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sock.sendall(REPLY.pack(ASKS, 0, 0))
            received(sock, 1)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    while True:
        (n_bytes,) = LENGTH.unpack(received(sock, LENGTH.size))
        data = bodies[:n_bytes] if n_bytes <= SHARED_BYTES else bytes(received(sock, n_bytes))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its default action ends us, also inside a decoder's loop
        try:
            picture = decode_picture(data, admit=admit, **settings)
            kind, image, rest = DONE, picture.image, picture._asdict()
            del rest["image"]
        except Undecodable as err:
            kind, image, rest = FAILED, b"", {"fault": str(err.fault), "reason": str(err)[:200]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        text = json.dumps(rest).encode()
        sock.sendall(REPLY.pack(kind, len(text), len(image)) + text + image)


def _limit_memory(n_bytes: int) -> None:
    """Bound the address space to what is in use now and so much more; where there is no /proc, by what is known."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, used + n_bytes))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as _control, contextlib.suppress(EOFError, BrokenPipeError):
        main(_control, json.loads(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
