"""Loops over bytes and pixels compiled by numba, with the machine code kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(signature: Any) -> Callable[[Any], Any]:
    """Compile at once, for these types: a decoder process must not do so once its memory and time are limited."""

    def compile_(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            return njit(signature, nogil=True)(function)

    return compile_


def part(function: _Function) -> _Function:
    """Compile a loop that is called by compiled ones alone: it is part of their machine code, nothing to load."""
    compiled_part: _Function = njit(nogil=True)(function)
    return compiled_part


if __name__ == "__main__":  # an image is built so: what its containers run is compiled once
    for name in ("images.gif_kernel", "images.phash_kernel", "images.png_kernel", "sources.warc", "sources.wat"):
        import_module(f"curation.{name}")
