import gzip
from pathlib import Path

import pytest

from curation.blocklists import Refreshed, refresh_blocklist
from curation.errors import ConfigError, OutageError
from curation.pipeline import localise, pin
from curation.recipe import load_recipe
from curation.store import Store
from curation.web.blocklist import read_blocklist


def test_lists_are_put_together_and_recipes_take_them_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "a").write_text("# ours\nbad.example\nworse.example\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"bad.example\r\ntoken:nsfw\n"))
    sources = [str(tmp_path / "a"), str(tmp_path / "b.gz")]
    assert refresh_blocklist(store, "adult", sources) == Refreshed(rules=3, added=3, removed=0)

    recipe = load_recipe("demo", {"stages.extract.blocklist": ["blocklists/adult"], "stages.leakage.evalsets": []})
    before = pin(recipe, store)
    blocked = read_blocklist(*localise(before, "extract", store).blocklist)  # type: ignore[attr-defined]
    assert blocked.blocks_host("www.worse.example")
    assert blocked.blocks_url("http://fine.example/nsfw/1.jpg")

    (tmp_path / "a").write_text("bad.example\nnew.example\n")
    assert refresh_blocklist(store, "adult", sources) == Refreshed(rules=3, added=1, removed=1)
    assert pin(recipe, store) != before
    assert read_blocklist(*localise(before, "extract", store).blocklist) is blocked  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, OutageError, "can't be read: No such file"),
        (b"<!doctype html><p>moved", ConfigError, "is a page, no list"),
        (b"regex:(\n", ConfigError, "regex:("),
        (b"only.example\n", ConfigError, "2 of 2 lines would go, more than 50%"),
        (b"\x1f\x8b\x08broken", OutageError, "can't be read"),
    ],
    ids=["absent", "a page", "no regex", "shrunk", "cut"],
)
def test_what_is_no_list_leaves_the_list_as_it_was(
    tmp_path: Path, content: bytes | None, error: type[Exception], message: str
) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "good").write_text("bad.example\nworse.example\n")
    refresh_blocklist(store, "adult", [str(tmp_path / "good")])
    before = store.read_bytes("blocklists/adult")
    if content is not None:
        (tmp_path / "next").write_bytes(content)
    with pytest.raises(error) as caught:
        refresh_blocklist(store, "adult", [str(tmp_path / "next")])
    assert message in str(caught.value)
    assert store.read_bytes("blocklists/adult") == before


def test_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="a name is of"):
        refresh_blocklist(store, "../up", ["x"])
    with pytest.raises(ConfigError, match="name at least one source"):
        refresh_blocklist(store, "adult", [])
    with pytest.raises(ConfigError, match=r"stages\.extract\.blocklist: no blocklists/none in .*refresh-blocklist"):
        pin(load_recipe("demo", {"stages.extract.blocklist": ["blocklists/none"]}), store)
