import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.publish.verify import read_manifest
from curation.ui.browse import Filter, Place, page, picture, versions
from curation.ui.pages import render
from tests.curation.conftest import World
from tests.curation.publish.test_releases import publish


def test_every_sample_is_shown_once_whatever_the_page(world: World) -> None:
    recipe, _ = world.recipe()
    version = publish(world, recipe, {"crawl": [0, 1]})
    manifest = read_manifest(world.store, "small", version)
    everything, following = page(world.store, manifest, Place(), Filter())
    assert following is None
    assert len(everything) == 4
    for n in (1, 2, 3):
        seen, place = [], Place()
        while place is not None:
            rows, place = page(world.store, manifest, place, Filter(), n)
            assert len(rows) <= n
            seen += rows
        assert seen == everything
    assert page(world.store, manifest, Place(9, 9), Filter()) == ([], None)

    cats, _ = page(world.store, manifest, Place(), Filter(text="TABBY"))
    assert [row["text"] for row in cats] == ["A tabby cat looks at the camera"] * 2
    assert page(world.store, manifest, Place(), Filter(text="' OR 1=1 --"))[0] == []
    assert page(world.store, manifest, Place(), Filter(language="xx"))[0] == []

    data, media_type = picture(world.store, manifest, cats[0]["part"], cats[0]["key"])
    assert (data[:3], media_type) == (b"\xff\xd8\xff", "image/jpeg")
    with pytest.raises(ConfigError, match="is not in"):
        picture(world.store, manifest, 0, "../../etc/passwd")
    with pytest.raises(ConfigError, match="part 7"):
        picture(world.store, manifest, 7, cats[0]["key"])

    (listed,) = versions(world.store)
    assert (listed.recipe, listed.version, listed.samples, listed.dumps) == ("small", version, 4, ["crawl"])
    assert listed.is_latest
    assert listed.held == []


HOSTILE = st.text() | st.sampled_from(
    ["<script>alert(1)</script>", '" onerror="alert(1)', "'><img src=x>", "{{ 7 * 7 }}"]
)


@given(text=HOSTILE, url=HOSTILE, tag=st.sampled_from([None, "safe", "unsafe"]))
def test_strangers_words_stay_words(text: str, url: str, tag: str | None) -> None:
    row = {"part": 0, "key": "k", "text": text, "url": url, "sample_id": "s", "safety_tag": tag}
    html = render(
        "samples", root="", recipe="r", version="v", here="", rows=[row], wanted=Filter(text), query="", next=""
    )
    plain = render("samples", root="", recipe="r", version="v", here="", rows=[row | {"text": "", "url": ""}],
                   wanted=Filter(), query="", next="")  # fmt: skip
    assert html.count("<") == plain.count("<")
    assert html.count('"') == plain.count('"')
    assert ('class="blur"' in html) == (tag == "unsafe")
