"""Fixtures and rules for every test."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# threads of several test processes would spin, waiting for each other: ten times the CPU time of one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda test: not {"e2e", "s3"} & set(test.path.parts))  # the longest first: they wait most
    if SHARED.is_dir():
        return
    for test in items:
        if test.get_closest_marker("shared"):
            test.add_marker(pytest.mark.skip(reason="../shared is absent"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data beside the checkout."""
    return SHARED
