import json
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from curation.errors import ConfigError
from curation.recipe import Recipe, load_recipe, parse_recipe
from curation.reports.audit import STYLES, Audit, audit, default_concepts, read_concepts, render_page
from tests.curation.conftest import World

GATES = {
    "too_small": {"column": "min_side", "at_least": 100},
    "similarity_low": {"column": "similarity", "by": "partition", "at_least": {"en": 0.2, "multi": 0.1}},
}


def recipe() -> Recipe:
    return parse_recipe({"name": "r", "stages": {"score": {}}, "gates": GATES})


def row(reason: str | None, **values: object) -> dict[str, object]:
    plain = {
        "url": "http://a.test/x.jpg", "text": "a photo", "partition": "en", "language": "en", "min_side": 500,
        "original_format": "jpeg", "similarity": 0.3,
    }  # fmt: skip
    return {"sample_id": "0" * 32, "reason": reason} | plain | values


def counted(rows: list[dict[str, object]]) -> dict:
    found = Audit(recipe())
    found.add(pa.RecordBatch.from_pandas(pd.DataFrame(rows), preserve_index=False))
    found.close_shard()
    return found.to_json()


def groups(data: dict, dimension: str) -> dict[str, dict]:
    return {group["group"]: group for group in data["dimensions"][dimension]["groups"]}


def test_keep_rates_before_and_after_each_filter() -> None:
    data = counted(
        [
            row(None, text="a woman and her dog"),
            row("similarity_low", text="A WOMAN reads", similarity=0.19),
            row("similarity_low", text="womanhood", similarity=0.05),
            row("too_small", min_side=64, text="two dogs"),
            row("http_404", min_side=None, text="a woman", similarity=None),
            row(None, partition="multi", language="de", text="woman", url="http://b.test/"),
        ]
    )
    assert data["filters"] == ["download fault", "too_small", "similarity_low"]
    women = groups(data, "concept in English captions")["women"]
    assert (women["samples"], women["kept"]) == (3, 1)  # whole words, any case, English captions only
    assert {name: (at["entering"], at["dropped"]) for name, at in women["filters"].items()} == {
        "download fault": (3, 1),
        "too_small": (2, 0),
        "similarity_low": (2, 1),
    }
    assert groups(data, "concept in English captions")["(none of these)"]["samples"] == 1
    assert groups(data, "language")["de"]["keep_rate"] == 1
    assert groups(data, "domain")["b.test"]["samples"] == 1
    sides = groups(data, "resolution, shorter side")
    assert {name: side["samples"] for name, side in sides.items()} == {"300 to 511 px": 4, "64 to 127 px": 1}
    (loosened,) = [one for one in data["thresholds"] if one["filter"] == "similarity_low"]
    assert loosened["bound"] == "en 0.2, multi 0.1"
    brought = [step["brought_back"] for step in loosened["steps"]]
    assert brought == [1] * 10  # 0.19 is one step of 0.01 away, 0.05 more than ten
    assert loosened["steps"][0]["by"]["concept in English captions"] == {"women": 1}


def test_under_and_over_need_more_than_chance() -> None:
    rows = [row(None, language="en")] * 60 + [row("similarity_low", language="en")] * 40
    rows += [row(None, language="sw")] * 1 + [row("similarity_low", language="sw")] * 39
    rows += [row("similarity_low", language="is")] * 2
    found = groups(counted(rows), "language")
    assert found["sw"]["leaning"] == "under"
    assert found["en"]["leaning"] == "over"
    assert found["is"]["leaning"] == ""  # none of two is kept: nothing follows from two
    low, high = found["is"]["keep_rate_95"]
    assert low == 0
    assert high > 0.6


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes_what_is_hostile() -> None:
    hostile = "<script>alert(1)</script>"
    data = counted([row(None, language=hostile), row("similarity_low", language="en", similarity=0.19)])
    html = render_page(json.loads(json.dumps(data)))
    page = Page()
    page.feed(html)
    assert hostile in page.text
    assert not {"script", "img", "link", "iframe"} & page.tags.keys()
    assert "http" not in html.replace("http-equiv", "").replace("http://a.test", "")
    assert "similarity_low: similarity, now en 0.2, multi 0.1" in page.text


def test_an_audit_of_a_run(world: World) -> None:
    pinned, shards = world.recipe()
    with pytest.raises(ConfigError, match="no shard of recipe small is done"):
        audit(world.store, pinned, "crawl", shards, Audit(pinned))
    world.run(pinned)
    data = audit(world.store, pinned, "crawl", shards, Audit(pinned)).to_json()
    assert data["shards"] == 1
    assert data["all"]["samples"] == 5
    assert data["filters"] == ["text_too_short", "download fault", "too_small"]
    assert sum(group["samples"] for group in data["dimensions"]["domain"]["groups"]) == 5
    for dimension in data["dimensions"].values():
        for group in dimension["groups"]:  # no sample is lost between the filters
            assert group["kept"] == group["samples"] - sum(at["dropped"] for at in group["filters"].values())
    fetched = data["dimensions"]["resolution, shorter side"]["all"]
    assert (fetched["samples"], fetched["kept"]) == (3, 2)  # the one that is gone has no resolution to be compared by
    assert "By domain" in render_page(data)
    with pytest.raises(ConfigError, match="no score stage"):
        Audit(pinned).see_styles()


def test_styles_are_those_nearest_to_the_embedding() -> None:
    found = Audit(recipe())
    found._styles = (list(STYLES)[:2], np.eye(2, dtype=np.float32))
    schema = [("img_emb", pa.list_(pa.float16(), 2)), ("partition", pa.string())]
    batch = pa.RecordBatch.from_pydict(
        {"img_emb": [[1.0, 0.1], None, [0.0, 1.0]], "partition": ["en", "en", "multi"]}, schema=pa.schema(schema)
    )
    assert found._styles_of(batch, [True, True, False]) == [("photograph",), (), ("drawing or painting",)]


def test_very_many_groups_become_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.reports.audit._LARGEST", 3)
    data = counted([row(None, url=f"http://h{n}.test/") for n in range(9)] + [row(None, url="http://h0.test/")])
    domains = groups(data, "domain")
    assert domains["h0.test"]["samples"] == 2
    assert sum(group["samples"] for group in domains.values()) == 10
    assert len(domains) == 4


def test_concepts_of_ones_own() -> None:
    assert read_concepts("boats: [boat, ship]", "mine.yaml") == {"boats": ["boat", "ship"]}
    for bad in ("[a]", "a: b", "a: [1]", "a: []", "a: [", ""):
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            read_concepts(bad, "mine.yaml")
    assert all(word == word.lower() for words in default_concepts().values() for word in words)
    assert load_recipe("demo")
