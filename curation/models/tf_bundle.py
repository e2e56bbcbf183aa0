"""Read the tensors of a TensorFlow checkpoint ("bundle") with numpy alone: no TensorFlow, no code from the file.

An index (a sorted-string table of LevelDB's format, uncompressed) names for each tensor its type, shape, offset and
size; a data file holds the raw little-endian values.

source   LevelDB's table_format.md; tensorflow/core/protobuf/tensor_bundle.proto
"""

import math
import struct
from collections.abc import Iterator

import numpy as np

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # DataType: DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_bundle(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Numeric tensors of a checkpoint of one data file, by name; strings are left out.

    raises   ValueError where the bytes are not of this format
    """
    tensors: dict[str, np.ndarray] = {}
    try:
        for key, value in _entries(index):
            if not key:
                continue  # the header
            entry = _message(value)
            kind = _TYPES.get(_number(entry, 1))
            if kind is None:
                continue
            shape = [_number(_message(_bytes(dim)), 1) for part in entry.get(2, []) for dim in _dims(part)]
            offset, size = _number(entry, 4), _number(entry, 5)
            if _number(entry, 3) or size != math.prod(shape) * int(kind[2]) or offset + size > len(data):
                raise ValueError(f"{key.decode('utf-8', 'replace')}: {size} bytes at {offset} do not hold {shape}")
            tensors[key.decode()] = np.frombuffer(data, kind, math.prod(shape), offset).reshape(shape)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"not a TensorFlow checkpoint's index: {error}") from error
    return tensors


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise ValueError("not a TensorFlow checkpoint's index: its last 8 bytes are not the table's mark")
    at = len(table) - _FOOTER
    _, at = _varint(table, at)  # the handle of the meta index: offset and size
    _, at = _varint(table, at)
    for _, handle in _block(table, at):
        yield from _block(table, 0, handle)


def _block(table: bytes, at: int, handle: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of one block; each key shares a prefix with the one before."""
    start, at = _varint(handle or table, at)
    size, _ = _varint(handle or table, at)
    if table[start + size] != 0:
        raise ValueError("the index is compressed, which TensorFlow does not do")
    block = table[start : start + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def _message(data: bytes) -> dict[int, list[int | bytes]]:
    """Fields of a protocol buffer by number."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | bytes
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
        elif tag & 7 == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif tag & 7 in (_FIXED32, _FIXED64):
            size = 4 if tag & 7 == _FIXED32 else 8
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _dims(shape: int | bytes) -> list[int | bytes]:
    return _message(_bytes(shape)).get(2, [])


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message should stand")
    return value


def _number(fields: dict[int, list[int | bytes]], field: int) -> int:
    value = fields.get(field, [0])[0]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
