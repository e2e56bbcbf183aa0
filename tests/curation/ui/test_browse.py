import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import tombstones
from curation.errors import BadShardError, ConfigError
from curation.publish.parts import manifest_key
from curation.publish.verify import read_manifest
from curation.ui.browse import Filter, Place, page, sort, versions
from curation.ui.listing import asked, listed
from curation.ui.pages import render
from curation.ui.sources import Version, open_dump, open_version
from tests.curation.conftest import World
from tests.curation.publish.test_releases import publish


def test_every_sample_is_shown_once_whatever_the_page(world: World) -> None:
    recipe, _ = world.recipe()
    version = publish(world, recipe, {"crawl": [0, 1]})
    source = Version(world.store, read_manifest(world.store, "small", version))
    everything, following = page(source, Place(), Filter())
    assert following is None
    assert len(everything) == 4
    for n in (1, 2, 3):
        seen, place = [], Place()
        while place is not None:
            rows, place = page(source, place, Filter(), n)
            assert len(rows) <= n
            seen += rows
        assert seen == everything
    assert page(source, Place(9, 9), Filter()) == ([], None)

    cats, _ = page(source, Place(), Filter(text="TABBY"))
    assert [row["text"] for row in cats] == ["A tabby cat looks at the camera"] * 2
    assert page(source, Place(), Filter(text="' OR 1=1 --"))[0] == []
    assert page(source, Place(), Filter(language="xx"))[0] == []

    data, media_type = source.picture(cats[0]["part"], cats[0]["key"])
    assert (data[:3], media_type) == (b"\xff\xd8\xff", "image/jpeg")
    with pytest.raises(ConfigError, match="is not in"):
        source.picture(0, "../../etc/passwd")
    with pytest.raises(ConfigError, match="part 7"):
        source.picture(7, cats[0]["key"])

    (seen_version,) = versions(world.store)
    assert (seen_version.recipe, seen_version.version, seen_version.samples) == ("small", version, 4)
    assert seen_version.dumps == ["crawl"]
    assert seen_version.is_latest
    assert seen_version.held == []

    assert open_version(world.store, "small", version).manifest == source.manifest
    world.store.delete(manifest_key("small", version))  # as a takedown does
    with pytest.raises(ConfigError, match="is not in"):
        open_version(world.store, "small", version)


def test_a_dump_shows_what_was_dropped_and_why_but_nothing_that_was_taken_down(world: World) -> None:
    recipe, _ = world.recipe()
    world.run(recipe, 0)
    world.run(recipe, 1)
    dump = open_dump(world.store, "crawl", "small")
    assert (dump.done, dump.n_shards) == ((0, 1), 2)
    rows, _ = page(dump, Place(), Filter())
    reasons = {(row["text"], row["reason"]) for row in rows}
    assert ("A tiny piece of a cat", "too_small") in reasons
    assert ("A picture that is no longer there", "http_404") in reasons
    kept, _ = page(dump, Place(), Filter(reason="kept"))
    dropped, _ = page(dump, Place(), Filter(reason="dropped"))
    assert len(kept) + len(dropped) == len(rows) == 10
    tiny, _ = page(dump, Place(), Filter(reason="too_small"))
    assert [row["part"] for row in tiny] == [0, 1]
    assert page(dump, Place(), Filter(reason="'; DROP TABLE"))[0] == []
    looked = dump.rows(1, [tiny[1]["row"], kept[0]["row"]], ["text", "min_side", "similarity"])
    assert looked == [{"text": tiny[1]["text"], "min_side": 20}, looked[1]]
    assert dump.picture(0, kept[0]["row"])[0][:3] == b"\xff\xd8\xff"
    for shard, row in ((0, 10**6), (7, 0)):
        with pytest.raises(ConfigError, match="has no picture"):
            dump.picture(shard, row)

    (target,) = tombstones.targets_of([("url", kept[0]["url"])])
    tombstones.write(world.store, [target], "", "")
    dump = open_dump(world.store, "crawl", "small")
    shown, _ = page(dump, Place(), Filter())
    assert len(shown) == 10
    gone, also_gone = [row for row in shown if row["reason"] == "tombstone"]  # the picture stands there twice
    assert "url" not in gone | also_gone
    still = page(dump, Place(), Filter(reason="kept"))[0]
    assert [(row["part"], row["row"]) for row in still] == [(row["part"], row["row"]) for row in kept[1:]]
    assert dump.rows(0, [gone["row"]], ["url"])[0]["text"] == "(taken down)"
    with pytest.raises(ConfigError, match="has no picture"):
        dump.picture(0, gone["row"])
    with pytest.raises(ConfigError, match="no recipe ran on it"):
        open_dump(world.store, "elsewhere", "small")
    (world.crawl.parent / "store" / "dumps" / "crawl").rename(world.crawl.parent / "away")
    with pytest.raises(BadShardError, match="is gone"):
        dump.rows(0, [0], ["text"])


def test_sorting_gives_every_measured_sample_in_order() -> None:
    import pyarrow as pa

    class Parts:
        identity, n_parts = "made up", 3

        def batches(self, part, offset, columns):
            values = [[0.3, None, 0.1], [float("nan"), 0.2], []][part]
            ids = pa.array([f"{part}{row}" for row in range(len(values))], pa.string())
            measured = pa.array(values, pa.float32())
            yield 0, pa.RecordBatch.from_pydict({"sample_id": ids, "similarity": measured})

    *_, last = sort(Parts(), "similarity", ascending=True, wanted=Filter())
    assert [row["sample_id"] for row in last.value] == ["02", "11", "00"]
    assert last.complete
    first, *_ = sort(Parts(), "similarity", ascending=False, wanted=Filter(at_least=0.2))
    assert ([row["sample_id"] for row in first.value], first.complete) == (["00"], False)
    found = listed(Parts(), Filter(), "-similarity", "0-0")
    assert [row["sample_id"] for row in found.rows] == ["00", "11", "02"]
    assert listed(Parts(), Filter(), "-similarity", "0-2").rows == found.rows[2:]
    with pytest.raises(ConfigError, match="sort by text"):
        next(sort(Parts(), "text", ascending=True, wanted=Filter()))
    assert asked(" a ", "", "0.3", "", "kept") == Filter("a", "", 0.3, None, "kept")


HOSTILE = st.text() | st.sampled_from(
    [
        *("<script>alert(1)</script>", '" onerror="alert(1)', "'><img src=x>", "{{ 7 * 7 }}", "javascript:alert(1)"),
        *("\u202egnp.exe", "a\x00b", "%00", "\ud800"),
    ]
)


@given(text=HOSTILE, url=HOSTILE, tag=st.sampled_from([None, "safe", "unsafe"]), punsafe=st.sampled_from([None, 0.9]))
def test_strangers_words_stay_words(text: str, url: str, tag: str | None, punsafe: float | None) -> None:
    row = {"part": 0, "key": "k", "text": text, "url": url, "page_url": url, "sample_id": "s", "safety_tag": tag}
    row |= {"punsafe": punsafe}

    def shown(rows: list[dict[str, object]], wanted: Filter) -> str:
        from curation.ui.listing import Listing

        values = {"recipe": "r", "version": "v", "here": "", "sort": "", "reasons": None}
        return render("samples", page=Listing(rows, "0-1", 1, 1), wanted=wanted, **values)

    html = shown([row], asked(text, "", "", ""))
    plain = shown([row | {"text": "", "url": "", "page_url": "x"}], Filter())
    named = 3 if "<br>on <bdi>" in html else 0
    assert html.count("<") - named == plain.count("<") - 3
    assert html.count('"') == plain.count('"')
    assert 'href="javascript' not in html
    assert ('class="picture blur"' in html) == (tag == "unsafe" or punsafe == 0.9)
    assert "\x00" not in html.split("<ul", 1)[1]
