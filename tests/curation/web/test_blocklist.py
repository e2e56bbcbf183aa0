"""Suffix matching by label, the file forms, and what a large list costs."""

import gzip
import time
import tracemalloc
from pathlib import Path

import pytest

from curation.errors import ConfigError
from curation.web.blocklist import Blocklist, read_blocklist


def test_host_and_parents_match_by_label() -> None:
    blocked = Blocklist(["bad.example", "co.uk.bad"])
    assert "bad.example" in blocked
    assert "img.cdn.bad.example" in blocked
    assert "notbad.example" not in blocked
    assert "example" not in blocked
    assert "bad.example.org" not in blocked
    assert "" not in blocked
    assert "x" not in Blocklist([])


@pytest.mark.parametrize("packed", [False, True])
def test_file_forms(tmp_path: Path, packed: bool) -> None:
    names = [
        "# a list",
        "bad.example",
        "0.0.0.0 hosts.example # why",
        "*.Star.example",
        ".dot.example",
        "",
        "bücher.example\r",
    ]
    lines = "\n".join(names).encode()
    path = tmp_path / "list"
    path.write_bytes(gzip.compress(lines) if packed else lines)
    blocked = read_blocklist(str(path))
    assert len(blocked) == 5
    for host in ("bad.example", "hosts.example", "a.star.example", "dot.example", "xn--bcher-kva.example"):
        assert host in blocked
    assert "0.0.0.0" not in blocked


def test_unreadable_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blocklist"):
        read_blocklist(str(tmp_path / "absent"))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"a.example\n" * 1000)[:30])
    with pytest.raises(ConfigError, match="blocklist"):
        read_blocklist(str(broken))


def test_memory_and_time_stay_small() -> None:
    names = [f"host{i}.example" for i in range(200_000)]
    tracemalloc.start()
    blocked = Blocklist(names)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * len(names)
    started = time.perf_counter()
    assert sum(f"a.b.{name}" in blocked for name in names[:20_000]) == 20_000
    assert time.perf_counter() - started < 2
