"""Decoder processes: a picture that crashes, hangs or bloats its decoder costs itself and nothing else."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from curation.errors import OutageError
from curation.images.decoder import ASKS, DONE, GO, LENGTH, READY, REPLY, SHARED_BYTES, received
from curation.verdicts import Fault

_START_S = 60.0
_PACKAGE = Path(__file__).resolve().parents[2]
# each decoder is one of several
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")

Decoded = dict[str, Any]
"""The fields of decode.Picture, or `fault` and `reason`."""


class Decoders:
    """Decoder processes, one picture at a time each; a context manager.

    settings      of decode_picture
    memory_bytes  that a picture may take in its process; one that needs more is image_too_large or bad_image
    seconds       that a picture may take
    """

    def __init__(self, processes: int, settings: dict[str, Any], *, memory_bytes: int, seconds: float) -> None:
        self._start = (settings, memory_bytes, seconds)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decoder")
        self._local = threading.local()
        self._processes: list[_Process] = []
        self._large = threading.Lock()
        self.deaths = 0

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.end()

    def submit(self, data: bytes | bytearray) -> Future[Decoded]:
        """Decode a picture. Raises OutageError when decoders do not even start."""
        return self._threads.submit(self._decoded, data)

    def _decoded(self, data: bytes | bytearray) -> Decoded:
        for _ in range(2):  # again in a fresh process: an earlier picture may have left the dead one damaged
            process = self._process()
            try:
                return process.decode(data, self._large)
            except (EOFError, OSError) as err:
                died = process.end()
                self.deaths += 1
                self._local.process = None
                self._processes.remove(process)
                reason = f"the decoder died: {died}" if not isinstance(err, TimeoutError) else "the decoder hangs"
                if died == "SIGALRM" or isinstance(err, TimeoutError):
                    break  # time is what it took: once is enough
        return {"fault": str(Fault.BAD_IMAGE), "reason": reason}

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _Process(*self._start)
            self._processes.append(process)
        return process


class _Process:
    def __init__(self, settings: dict[str, Any], memory_bytes: int, seconds: float) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(_START_S)
        path = os.pathsep.join([str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
        shared = os.memfd_create("bodies") if hasattr(os, "memfd_create") else _unnamed_file()
        os.ftruncate(shared, SHARED_BYTES)
        self._bodies = mmap.mmap(shared, SHARED_BYTES)
        arguments = [str(theirs.fileno()), str(shared), json.dumps(settings), str(memory_bytes), str(seconds)]
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "curation.images.decoder", *arguments],
                pass_fds=[theirs.fileno(), shared],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path} | dict.fromkeys(_THREADS, "1"),
            )
        os.close(shared)
        try:
            received(self._sock, len(READY))
        except (EOFError, OSError) as err:
            raise OutageError(f"a decoder process does not start: {self.end()}") from err
        self._sock.settimeout(2 * seconds + 10)  # it ends itself when its time is over; this is for one that can't

    def decode(self, data: bytes | bytearray, large: threading.Lock) -> Decoded:
        """Raises EOFError or OSError when the process died or hangs."""
        if len(data) <= SHARED_BYTES:
            self._bodies[: len(data)] = data
            self._sock.sendall(LENGTH.pack(len(data)))
        else:
            self._sock.sendall(LENGTH.pack(len(data)))
            self._sock.sendall(data)
        kind, text, image = self._reply()
        if kind == ASKS:
            with large:
                self._sock.sendall(GO)
                kind, text, image = self._reply()
        found: Decoded = json.loads(text)
        return found | {"image": bytes(image)} if kind == DONE else found

    def _reply(self) -> tuple[bytes, bytearray, bytearray]:
        kind, n_text, n_image = REPLY.unpack(received(self._sock, REPLY.size))
        return kind, received(self._sock, n_text), received(self._sock, n_image)

    def end(self) -> str:
        """End the process; the name of the signal or the status that it ended with."""
        self._sock.close()
        self._bodies.close()
        try:
            status = self._child.wait(1)
        except subprocess.TimeoutExpired:
            self._child.kill()
            status = self._child.wait()
        if status < 0:
            import signal

            return signal.Signals(-status).name
        return f"status {status}"


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
