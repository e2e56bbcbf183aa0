import pytest

from curation.models.gpu import Gpu, gpus, parse


def test_lines_of_the_driver_and_a_gpu_that_does_not_tell() -> None:
    assert parse("0, 87, 12000, 24000\n1, [N/A], 10, 24000\n") == [Gpu(0, 87, 0.5)]
    assert parse("") == parse("No devices were found\n") == []


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus() == []
