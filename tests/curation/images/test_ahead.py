"""Bodies that wait on disk: each comes back whole, and no place is given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.images.ahead import Ahead, Waiting

LIMIT = 100


@given(st.lists(st.integers(1, 60) | st.integers(-10, -1), max_size=60))
def test_bodies_come_back_whole_in_whatever_order_they_are_taken(steps: list[int]) -> None:
    held: list[tuple[bytes, Waiting]] = []
    with Ahead(LIMIT) as ahead:
        for number, step in enumerate(steps):
            if step > 0:
                body = bytes([number]) * step
                if waiting := ahead.put(body):
                    held.append((body, waiting))
            elif held:
                body, waiting = held.pop(-step % len(held))
                assert waiting.take() == body
            assert sum(len(body) for body, _ in held) <= LIMIT
        for body, waiting in held:
            assert waiting.take() == body
        assert ahead.put(bytes(LIMIT)) is not None


def test_places_are_used_again_in_a_circle() -> None:
    with Ahead(LIMIT) as ahead:
        before = ahead.put(b"a" * 40)
        for number in range(50):
            body = bytes([number]) * 40
            waiting = ahead.put(body)
            assert before is not None
            assert waiting is not None
            before.take()
            before = waiting
            assert ahead.put(b"b" * 61) is None


@pytest.mark.parametrize("body", [b"", b"c" * (LIMIT + 1)])
def test_what_has_no_room_and_what_is_empty_does_not_wait(body: bytes) -> None:
    with Ahead(LIMIT) as ahead:
        assert ahead.put(body) is None
    with Ahead(0) as none:
        assert none.put(b"d") is None


def test_a_full_disk_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Ahead(LIMIT) as ahead:
        monkeypatch.setattr(os, "pwrite", full)
        assert ahead.put(b"e") is None
        monkeypatch.undo()
        assert ahead.put(b"e") is not None
