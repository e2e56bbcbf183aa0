"""Work on a batch in smaller parts where the device has no room for the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_NO_ROOM = ("out of memory", "can't allocate memory", "not enough memory")  # torch on CUDA, on a CPU, on Windows' CPU


def in_halves(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> tuple[list[Result | None], int]:
    """Results of `work` on the items in order, and how often it ran out of memory.

    A batch that has no room is halved, and again, down to one item; None stands for an item that has no room alone.
    Any other error of `work` passes through.
    """
    found: list[Result | None] = []
    size, shortages, at = max(1, len(items)), 0, 0
    while at < len(items):
        part = items[at : at + size]
        done = _tried(work, part)
        if done is not None:
            found += done
        elif len(part) == 1:
            found.append(None)
        shortages += done is None
        at += len(part) if done is not None or len(part) == 1 else 0
        size = size if done is not None or len(part) == 1 else len(part) // 2
    return found, shortages


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no room."""
    # torch.OutOfMemoryError is a RuntimeError; the CPU's allocator raises the plain kind
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_ROOM)
    return told or isinstance(error, MemoryError)


def release() -> None:
    """Give back what torch keeps for later; call it when the error and the tensors that its frames hold are gone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tried(work: Callable[[Sequence[Item]], Sequence[Result]], part: Sequence[Item]) -> Sequence[Result] | None:
    try:
        return work(part)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    release()
    return None
