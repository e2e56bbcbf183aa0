"""Fixtures and rules for every test."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the same examples each time: a change is judged by what it changes; HYPOTHESIS_PROFILE=search looks for new ones
busy = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # a machine that is busy is no fault
settings.register_profile("same", derandomize=True, **busy)
settings.register_profile("search", derandomize=False, max_examples=1000, **busy)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Weights that a test makes and what a model samples are the same whatever ran before in the process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data beside the checkout."""
    return SHARED
