import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.models.tf_bundle import read_bundle


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Keys share the prefix they have in common with the one before, as LevelDB writes them."""
    body, before = b"", b""
    for key, value in pairs:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return body + struct.pack("<II", 0, 1)


def bundle(tensors: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    entries, data = [(b"", field(1, 1))], b""
    for name, value in sorted(tensors.items()):
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        kind = {"f": 1, "d": 2, "l": 9}[value.dtype.char]
        entries.append((name.encode(), field(1, kind) + field(2, shape) + field(4, len(data)) + field(5, value.nbytes)))
        data += value.tobytes()
    first = block(entries)
    index = block([(b"~", varint(0) + varint(len(first)))])
    table = first + b"\0" + bytes(4) + index + b"\0" + bytes(4)
    handles = varint(0) + varint(0) + varint(len(first) + 5) + varint(len(index))
    return table + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57), data


def test_tensors_of_a_checkpoint() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "layer/1/kernel": rng.normal(size=(300, 5)).astype(np.float32),
        "layer/1/bias": rng.normal(size=5),
        "count": np.array(7, np.int64),
    }
    found = read_bundle(*bundle(tensors))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_data_that_is_cut_is_refused() -> None:
    index, data = bundle({"a": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match="do not hold"):
        read_bundle(index, data[:-1])


@given(st.binary(max_size=60), st.integers(0, 200))
def test_damage_is_a_value_error_or_other_tensors(junk: bytes, at: int) -> None:
    index, data = bundle({"a": np.ones((2, 2), np.float32), "ab": np.ones(3)})
    damaged = index[:at] + junk + index[at + len(junk) :]
    with contextlib.suppress(ValueError):
        read_bundle(damaged, data)
