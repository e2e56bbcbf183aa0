"""Ports of the demo's Airflow; all else of it is driven for real in tests/e2e."""

import random
import socket
from pathlib import Path

import pytest

from curation.demo import airflow_server
from curation.demo.airflow_server import AirflowServer, free_port

ROOT = Path(__file__).resolve().parents[3]


def test_a_port_that_somebody_listens_on_is_left_alone() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert free_port(port) not in (0, port)
    assert free_port(port) == port


def test_no_outgoing_connection_is_given_a_port_before_its_server_listens() -> None:
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(1024 <= free_port() < int(lowest) for _ in range(20))


def test_no_port_is_given_twice_whatever_seed_the_process_has() -> None:
    given = []
    for _ in range(20):
        random.seed(0)
        given.append(free_port())
    assert len(set(given)) == 20


def test_two_demos_that_start_together_get_two_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_server, "PORT", free_port())
    with AirflowServer(tmp_path / "a", ROOT, {}) as first:
        assert first._port() == airflow_server.PORT
        with AirflowServer(tmp_path / "b", ROOT, {}) as second:
            assert second._port() != airflow_server.PORT
    with AirflowServer(tmp_path / "b", ROOT, {}) as second:
        assert second._port() == airflow_server.PORT
