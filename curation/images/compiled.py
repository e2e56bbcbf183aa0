"""Loops over pixels compiled by numba, with the machine code kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic


def compiled(signature: Any) -> Callable[[Any], Any]:
    """Compile at once, for these types: a decoder process must not do so once its memory and time are limited."""

    def compile_(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            return njit(signature, nogil=True)(function)

    return compile_


def _copy(word: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def copy(_: Any, to: Any, at: Any, source: Any, start: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = context.get_value_type(word).as_pointer()
            places = []
            for array, offset in ((0, 1), (2, 3)):
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                places.append(builder.bitcast(builder.gep(data, [arguments[offset]]), pointer))
            moved = builder.load(places[1])
            moved.align = 1
            builder.store(moved, places[0]).align = 1
            return context.get_dummy_value()

        return types.void(to, types.intp, source, types.intp), build

    return copy


copy_4, copy_8 = _copy(types.uint32), _copy(types.uint64)
"""Copy so many bytes wherever they lie, (to, at, source, start), in one move; those too many are written over later."""
