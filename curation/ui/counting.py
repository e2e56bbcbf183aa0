"""What takes longer than a page may: counted aside, kept for as long as nothing has changed, shown as far as it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, NamedTuple

from curation.errors import OutageError

WAIT_S = 0.08  # a page waits so long for the first answer: small dumps are through by then
_KEPT = 64  # answers; each is bounded by what it counts
_WAITING = 16


class Counted(NamedTuple):
    """An answer so far: of `done` of `of` pieces. value is None while there is none."""

    value: Any
    done: int
    of: int

    @property
    def complete(self) -> bool:
        """Whether all pieces are in it."""
        return self.value is not None and self.done >= self.of


class _Job:
    def __init__(self) -> None:
        self.state = Counted(None, 0, 1)
        self.error: Exception | None = None
        self.ended = Event()

    def run(self, steps: Callable[[], Iterator[Counted]]) -> None:
        try:
            for state in steps():
                self.state = state
        except Exception as err:  # told by the page that asked
            self.error = err
        finally:
            self.ended.set()


_jobs: OrderedDict[Hashable, _Job] = OrderedDict()
_lock = Lock()
_worker = ThreadPoolExecutor(1, thread_name_prefix="curation-pages")  # one: pages must stay quick beside it


def counted(key: Hashable, steps: Callable[[], Iterator[Counted]], wait_s: float = WAIT_S) -> Counted:
    """The answer of that key as far as it is known; the first to ask has it counted in a thread aside.

    key     names all that the answer depends on, the state of the tables included: what it names never changes
    steps   yields ever more complete answers
    raises  what counting raised, once: who asks again has it tried again; OutageError when too much is waiting
    """
    with _lock:
        job = _jobs.get(key)
        if job is None:
            if sum(not one.ended.is_set() for one in _jobs.values()) >= _WAITING:
                raise OutageError("too much is being counted: try again in a minute")
            job = _jobs[key] = _Job()
            _worker.submit(job.run, steps)
            for old in [name for name, one in _jobs.items() if one.ended.is_set()][: max(0, len(_jobs) - _KEPT)]:
                del _jobs[old]
        _jobs.move_to_end(key)
    job.ended.wait(wait_s)
    if job.error is not None:
        with _lock:
            _jobs.pop(key, None)
        raise job.error
    return job.state
