import re

import pytest
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from curation.errors import ConfigError, OutageError
from curation.review.ratings import DIMENSIONS
from curation.ui import counting
from curation.ui.browse import Filter
from curation.ui.counting import Counted, counted
from curation.ui.listing import Listing
from curation.ui.pages import FILES, HEADERS, plain, read_file, render
from curation.ui.takedowns import KINDS, request_of

COLOURS = re.compile(r"--([a-z]+): (#[0-9a-f]{6})")


def luminance(colour: str) -> float:
    """Relative luminance, 0..1; source: WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_borders_stand_out_from_what_is_behind_them(scheme: int) -> None:
    colours = dict(COLOURS.findall(read_file("style.css").split("@media", 2)[scheme]))
    for behind in ("paper", "card"):
        for text in ("ink", "quiet", "link", "bad", "good"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
        assert contrast(colours["fill"], colours[behind]) >= 3, behind
    assert contrast(colours["quiet"], colours["back"]) >= 4.5
    assert contrast(colours["fill"], colours["back"]) >= 2.5


def test_every_field_has_a_label_and_every_picture_a_text() -> None:
    row = {"part": 0, "row": 1, "key": "k", "text": "a boat", "url": "u", "sample_id": "s", "image_format": "jpeg"}
    review = {"item": 0, "state": {"items": 1, "raters": {}}, "dimensions": DIMENSIONS, "name": "r", "rater": "a"}
    review["shown"] = type("Shown", (), {"caption": "a boat", "described": {}})()
    told = {"low": 0.0, "high": 1.0, "counts": [1, 2], "samples": 3, "kept": 2, "languages": []}
    values = {"counted": Counted({"shards": 1}, 1, 1), "told": told, "line": 0.5, "columns": ["similarity"]}
    values |= {"dump": type("Dump", (), {"n_shards": 1})()}
    values |= {"examples": {"below": [row | {"similarity": 0.4}], "above": []}, "column": "similarity", "here": ""}
    pages = {
        "samples": render(
            "samples", page=Listing([row], "", 1, 1), wanted=Filter(), sort="", reasons=["too_small"], here=""
        ),
        "review": render("review", here="", recipe="r", version="v", **review),
        "takedown": render("takedown", kinds=KINDS, receipts=[]),
        "threshold": render("threshold", **values),
    }
    for name, html in pages.items():
        tree = HTMLParser(html)
        assert tree.css_first("html").attributes["lang"] == "en"
        assert len(tree.css("h1")) == 1, name
        fields = [one for one in tree.css("input, select, textarea") if one.attributes.get("type") != "hidden"]
        assert fields, name
        for field in fields:
            parents = []
            while (field := field.parent) is not None:
                parents.append(field.tag)
            assert "label" in parents, name
        for image in tree.css("img"):
            assert image.attributes["alt"], name
        assert not tree.css("[style], [onclick], [onload]"), "the policy lets none of them work"
        for script in tree.css("script"):
            assert script.attributes["src"].startswith("/curation/files/")
            assert not script.text()
    assert "unsafe-inline" not in HEADERS["Content-Security-Policy"]
    assert set(FILES) == {"style.css", "pages.js"}


def test_control_characters_are_shown_as_such() -> None:
    assert plain("a\x00b\x1b[31m\u202ec\ud800") == "a\ufffdb\ufffd[31m\ufffdc\ufffd"
    assert plain(None) == ""
    assert plain("猫 \n\té") == "猫 \n\té"


def test_the_form_names_the_field_that_is_wrong() -> None:
    asked = request_of({"kind": "domain", "values": " a.test \n\nb.test", "requester": "x" * 3000})
    assert (asked["values"], asked["radius"], len(asked["requester"])) == (["a.test", "b.test"], 0, 2000)
    for form, told in (
        ({"values": "a"}, "kind"),
        ({"kind": "url"}, "values"),
        ({"kind": "url", "values": "a\n" * 1001}, "values"),
        ({"kind": "phash", "values": "0" * 16, "radius": "17"}, "radius"),
        ({"kind": "sha256", "values": "zz"}, "zz"),
    ):
        with pytest.raises(ConfigError, match=told):
            request_of(form)


def test_what_is_counted_is_counted_once_and_a_failure_is_told_and_forgotten() -> None:
    calls = []

    def steps():
        calls.append(1)
        yield Counted("half", 1, 2)
        yield Counted("whole", 2, 2)

    assert counted("a key", steps, 10).complete
    assert counted("a key", steps, 10).value == "whole"
    assert len(calls) == 1

    def fails():
        yield Counted("half", 1, 2)
        raise ConfigError("no such thing")

    for _ in range(2):
        with pytest.raises(ConfigError, match="no such thing"):
            counted("another", fails, 10)


def test_no_more_waits_than_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_WAITING", 0)
    with pytest.raises(OutageError, match="try again"):
        counted("too much", lambda: iter(()))
