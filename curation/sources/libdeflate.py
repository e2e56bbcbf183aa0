"""libdeflate, in the shared library that the wheel of imagecodecs brings.

imagecodecs' own functions want the end and the length of what they inflate, and copy both sides.
"""

import ctypes
import weakref
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def _library() -> Any:
    spec = find_spec("imagecodecs")
    site = Path(spec.origin).parent.parent if spec and spec.origin else Path()
    for path in site.glob("imagecodecs.libs/libdeflate*"):
        library = ctypes.CDLL(str(path))
        library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
        library.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
        return library
    return None


def is_there() -> bool:
    """Whether the library is found: on Linux. Without it archives are read as streams."""
    return _library() is not None


class Decompressor:
    """Memory that libdeflate works in, for one thread at a time, and its function for gzip members.

    function  address of libdeflate_gzip_decompress_ex(address, in, in_bytes, out, out_bytes, *in_read, *out_written)
    """

    def __init__(self) -> None:
        library = _library()
        self.function = ctypes.cast(library.libdeflate_gzip_decompress_ex, ctypes.c_void_p).value
        self.address = library.libdeflate_alloc_decompressor()
        weakref.finalize(self, library.libdeflate_free_decompressor, self.address)
