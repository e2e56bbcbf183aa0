from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

import torch

from curation.captions.halving import in_halves


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 20))
def test_what_has_room_is_done_in_order(weights: list[int], room: int) -> None:
    def work(part: Sequence[int]) -> list[int]:
        if sum(part) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [weight * 10 for weight in part]

    found, _ = in_halves(work, weights)
    assert found == [weight * 10 if weight <= room else None for weight in weights]


def test_a_batch_is_halved_until_it_has_room() -> None:
    sizes = []

    def work(part: Sequence[int]) -> Sequence[int]:
        sizes.append(len(part))
        if len(part) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return part

    assert in_halves(work, range(16)) == (list(range(16)), 3)
    assert sizes == [16, 8, 4, *[2] * 8]


def test_other_errors_pass_through() -> None:
    def work(part: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        in_halves(work, [1, 2])
