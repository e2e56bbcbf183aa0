"""Suffix matching by label, the file forms, and what a large list costs."""

import gzip
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.web.blocklist import Blocklist, Domains, read_blocklist


def test_host_and_parents_match_by_label() -> None:
    blocked = Domains(["bad.example", "co.uk.bad"])
    assert "bad.example" in blocked
    assert "img.cdn.bad.example" in blocked
    assert "notbad.example" not in blocked
    assert "example" not in blocked
    assert "bad.example.org" not in blocked
    assert "" not in blocked
    assert "x" not in Domains([])


def test_rules_of_every_kind() -> None:
    rules = ["bad.example", "suffix:-ads.example # why", "token:NSFW", "regex:/p[0-9]{3}/#x", "suffix:", "token: "]
    blocked = Blocklist(rules)
    assert len(blocked) == 4
    assert [h for h in ("a.bad.example", "eu-ads.example", "ads.example", "") if blocked.blocks_host(h)] == [
        "a.bad.example",
        "eu-ads.example",
    ]
    for path, expected in {"/a/nsfw.jpg": 1, "/x?c=Nsfw_2": 1, "/nsfws": 0, "/P123/#x": 1, "/p12/#x": 0, "": 0}.items():
        assert blocked.blocks_url(f"https://nsfw.example{path}") == bool(expected), path
    nothing = Blocklist([])
    assert len(nothing) == 0
    assert not nothing.blocks_host("a.example")
    assert not nothing.blocks_url("https://a.example/")


@given(st.lists(st.text(max_size=20)), st.text(max_size=30))
def test_any_line_is_a_rule_or_refused(lines: list[str], url: str) -> None:
    with suppress(ValueError):
        blocked = Blocklist(line.replace("regex", "token") for line in lines)
        blocked.blocks_host(url)
        blocked.blocks_url(url)


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
        assert blocked.blocks_host(host)
    assert not blocked.blocks_host("0.0.0.0")


def test_unreadable_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blocklist"):
        read_blocklist(str(tmp_path / "absent"))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"a.example\n" * 1000)[:30])
    with pytest.raises(ConfigError, match="blocklist"):
        read_blocklist(str(broken))
    rules = tmp_path / "rules"
    rules.write_text("regex:a(b\n")
    with pytest.raises(ConfigError, match=r"regex:a\(b"):
        read_blocklist(str(rules))


def test_memory_and_time_stay_small() -> None:
    names = [f"host{i}.example" for i in range(200_000)]
    tracemalloc.start()
    blocked = Blocklist(names)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * len(names)
    started = time.perf_counter()
    assert sum(blocked.blocks_host(f"a.b.{name}") for name in names[:20_000]) == 20_000
    assert time.perf_counter() - started < 2
