"""A StatsD server that remembers: what tests and benchmarks read Airflow's metrics from."""

from __future__ import annotations

import socket
import threading
from collections import Counter, defaultdict
from types import TracebackType
from typing import Self


class Statsd:
    """Counters added up, gauges as they were last, timings [ms] one by one, each by name; on a port of 127.0.0.1."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.timings: defaultdict[str, list[float]] = defaultdict(list)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def settings(self) -> dict[str, str]:
        """Environment that makes an Airflow send here."""
        host, port = self._socket.getsockname()
        names = {"STATSD_ON": "true", "STATSD_HOST": host, "STATSD_PORT": str(port)}
        return {f"AIRFLOW__METRICS__{name}": value for name, value in names.items()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while packet := self._socket.recv(1 << 16):
            for line in packet.decode(errors="replace").splitlines():
                name, _, rest = line.partition(":")
                value, _, kind = rest.partition("|")
                match kind.partition("|")[0]:
                    case "c":
                        self.counters[name] += int(float(value))
                    case "g":
                        self.gauges[name] = float(value)
                    case "ms":
                        self.timings[name].append(float(value))
