"""Decoder processes: a picture that crashes, hangs or bloats its decoder costs itself and nothing else."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from curation.errors import OutageError
from curation.images.ahead import Waiting
from curation.images.decoder import (
    ASKS,
    COMPILED,
    DONE,
    ENDED,
    FORK,
    GO,
    LENGTH,
    ORDER,
    READY,
    REPLY,
    SHARED_BYTES,
    received,
)
from curation.verdicts import Fault

_START_S = 60.0
_END_S = 1.0
_COMPILED_FROM = 200  # pictures: compiled loops save 1 ms of each and take 0.8 s to load; most shards have thousands
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
        self._seconds = seconds
        self._starter: _Starter | None = None
        self._starting = threading.Lock()
        self._asked = False
        self._pictures = 0
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
        if self._starter is not None:
            self._starter.end()

    def start(self) -> None:
        """Load the codecs now, so that the first picture need not wait for them; only the first call does so."""
        if not self._asked:
            self._asked = True
            self._threads.submit(self._process)  # where that fails, a picture's own attempt tells

    def submit(self, body: bytes | bytearray | Waiting) -> Future[Decoded]:
        """Decode a picture. Raises OutageError when decoders do not even start."""
        return self._threads.submit(self._decoded, body)

    def _decoded(self, body: bytes | bytearray | Waiting) -> Decoded:
        data = body.take() if isinstance(body, Waiting) else body
        self._count()
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

    def _count(self) -> None:
        with self._starting:
            self._pictures += 1
            pays = self._pictures == _COMPILED_FROM
        if pays and self._starter is not None:
            self._starter.compile()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._local, "process", None)
        if process is not None and process.outdated:
            process.end()
            self._processes.remove(process)
            process = None
        if process is None:
            process = self._local.process = self._forked()
            self._processes.append(process)
        return process

    def _forked(self) -> _Process:
        with self._starting:
            if self._starter is not None:
                with contextlib.suppress(EOFError, OSError):
                    return _Process(self._starter, self._seconds)
                self._starter.end()
            self._starter = _Starter(*self._start)
            try:
                return _Process(self._starter, self._seconds)
            except (EOFError, OSError) as err:
                raise OutageError(f"a decoder process does not start: {self._starter.end()}") from err


class _Starter:
    """The process that forks decoders."""

    def __init__(self, settings: dict[str, Any], memory_bytes: int, seconds: float) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(_START_S)
        self._lock = threading.Lock()
        self.compiled = False
        path = os.pathsep.join([str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
        arguments = [str(theirs.fileno()), json.dumps(settings), str(memory_bytes), str(seconds)]
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "curation.images.decoder", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path} | dict.fromkeys(_THREADS, "1"),
            )
        try:
            received(self._sock, len(READY))
        except (EOFError, OSError) as err:
            raise OutageError(f"decoder processes do not start: {self.end()}") from err

    def fork(self, descriptors: list[int]) -> int:
        """A new decoder's process id. Raises EOFError or OSError when this process is gone."""
        with self._lock:
            socket.send_fds(self._sock, [ORDER.pack(FORK, 0)], descriptors)
            return self._answer()

    def ended(self, pid: int) -> str:
        """The name of the signal or the status that a decoder ended with; one that does not end is killed."""
        try:
            with self._lock:
                self._sock.sendall(ORDER.pack(ENDED, pid))
                return _status(self._answer())
        except (EOFError, OSError):
            return "its starter is gone"  # nothing else holds the decoder's socket, so it ends by itself

    def compile(self) -> None:
        """Have decoders forked from now on decode with compiled loops, which takes a second to load."""
        with self._lock, contextlib.suppress(EOFError, OSError):
            self._sock.sendall(ORDER.pack(COMPILED, 0))
            self._answer()
            self.compiled = True

    def _answer(self) -> int:
        try:
            return int(ORDER.unpack(received(self._sock, ORDER.size))[1])
        except (EOFError, OSError):
            self._sock.close()  # else a late answer would be taken for the next one
            raise

    def end(self) -> str:
        """End the process; how it ended."""
        self._sock.close()
        try:
            return _status(self._child.wait(_END_S))
        except subprocess.TimeoutExpired:
            self._child.kill()
            return _status(self._child.wait())


class _Process:
    """A decoder. Raises EOFError or OSError where its starter is gone."""

    def __init__(self, starter: _Starter, seconds: float) -> None:
        self._starter, self._compiled = starter, starter.compiled
        self._sock, theirs = socket.socketpair()
        shared = os.memfd_create("bodies") if hasattr(os, "memfd_create") else _unnamed_file()
        os.ftruncate(shared, SHARED_BYTES)
        self._bodies = mmap.mmap(shared, SHARED_BYTES)
        try:
            self._pid = starter.fork([theirs.fileno(), shared])
        except (EOFError, OSError):
            self._sock.close()
            self._bodies.close()
            raise
        finally:
            theirs.close()
            os.close(shared)
        self._sock.settimeout(2 * seconds + 10)  # it ends itself when its time is over; this is for one that can't

    @property
    def outdated(self) -> bool:
        """Whether a decoder forked now would decode faster."""
        return self._starter.compiled and not self._compiled

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
        return self._starter.ended(self._pid)


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
