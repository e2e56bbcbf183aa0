"""Draws that depend on nothing but the sample and a seed: the same in every run, on every machine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_DIGIT = np.zeros(256, np.uint64)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def draws(sample_ids: pa.Array, seed: int) -> np.ndarray:
    """A 64-bit number for each sample, uniform over all of them and independent for different seeds.

    sample_ids  strings of 32 hex digits, each a digest, as schema.py has them
    returns     uint64 (n,)
    """
    digits = np.frombuffer("".join(sample_ids.to_pylist()).encode(), np.uint8).reshape(-1, 32)[:, :16]
    values = np.zeros(len(digits), np.uint64)
    for at in range(16):
        values = (values << np.uint64(4)) | _DIGIT[digits[:, at]]
    return mixed(values ^ mixed(np.array([seed], np.uint64)))


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64 of each number (Steele, Lea, Flood 2014): a bijection without pattern. uint64 in and out."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def share(values: np.ndarray) -> np.ndarray:
    """Draws as numbers of 0..1, 1 left out. uint64 in, float64 out."""
    return np.asarray((values >> np.uint64(11)).astype(np.float64) * 2.0**-53)
