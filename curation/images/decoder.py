"""The decoder process: pictures in, what is kept of them out. Whatever a hostile file does happens here.

Started by decoders.py with a socket, memory to read bodies from, and its settings; never imported by anything else.
Messages are a length and plain bytes or JSON: a decoder that was taken over has no pickle to send.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
REPLY = struct.Struct("<cII")  # kind, length of the JSON, length of the picture
READY, ASKS, GO, DONE, FAILED = b"K", b"A", b"G", b"D", b"F"
SHARED_BYTES = 1 << 20  # bodies up to this length lie in shared memory, longer ones follow their length
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


def main(descriptor: int, shared: int, settings: dict[str, Any], memory_bytes: int, seconds: float) -> None:
    """Decode one picture after the other until the other side hangs up."""
    from curation.images.decode import Undecodable, decode_picture
    from curation.images.phash import phash

    phash(_warm())  # what is loaded at the first picture counts as used before the limit is set
    sock = socket.socket(fileno=descriptor)
    bodies = mmap.mmap(shared, SHARED_BYTES, prot=mmap.PROT_READ)
    _limit_memory(memory_bytes)
    sock.sendall(READY)

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


def _warm() -> Any:
    import numpy as np

    return np.zeros((8, 8, 3), np.uint8)


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
    # MemoryError: no room even for the body; a fresh process may have it
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, MemoryError):
        main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
