"""Cleaning and classing of texts: cases by hand, laws on any text."""

import unicodedata

import pytest
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given
from hypothesis import strategies as st

from curation.text.clean import _MAYBE_MOJIBAKE, clean_text, text_class


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a dog", "a dog"),
        ("  a\n\tdog  ", "a dog"),
        ("Tom &amp; Jerry &#8211; caf&eacute;", "Tom & Jerry – café"),
        ("R&D and AT&T", "R&D and AT&T"),
        ("cafÃ© crÃ¨me", "café crème"),
        ("cafe\u0301", "café"),
        ("a\u0000b", "a b"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("\u202eevil\u202c", "evil"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("non\u00a0breaking\u3000wide", "non breaking wide"),
        ("“quotes” ﬁ Ｆｕｌｌ", "“quotes” ﬁ Ｆｕｌｌ"),
        ("\u200b\n ", ""),
        ("家族の写真", "家族の写真"),
        ("👩‍👩‍👧 family", "👩‍👩‍👧 family"),
    ],
)
def test_clean_text(raw: str, expected: str) -> None:
    assert clean_text(raw) == expected


def test_cut_at_code_points() -> None:
    assert clean_text("日" * 3000) == "日" * 2000
    assert clean_text("ab " * 10, max_chars=6) == "ab ab"


@given(st.text(st.characters(), max_size=300))
def test_laws(raw: str) -> None:
    text = clean_text(raw, 100)
    text.encode()
    assert len(text) <= 100
    assert text == text.strip()
    assert "\0" not in text
    assert "  " not in text
    assert not any(unicodedata.category(c) == "Cc" for c in text)
    text_class(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a brown dog in the snow", "ok"),
        ("Image of a dog", "ok"),
        ("Logo der Stadt Köln", "ok"),
        ("犬", "ok"),
        ("Image", "placeholder"),
        ("IMAGE 12", "placeholder"),
        ("(photo)", "placeholder"),
        ("图片", "placeholder"),
        ("画像1", "placeholder"),
        ("12 / 34", "placeholder"),
        ("...", "placeholder"),
        ("DSC_0012.JPG", "filename"),
        ("IMG_20200101_123456", "filename"),
        ("my holiday (3).jpeg", "filename"),
        ("Screenshot 2021-01-01 at 10.00.00", "filename"),
        ("d41d8cd98f00b204e9800998ecf8427e", "filename"),
        ("https://a.example/x", "filename"),
        ("The file was a JPG.", "ok"),
    ],
)
def test_text_class(text: str, expected: str) -> None:
    assert text_class(text) == expected


MOJIBAKE = st.text(
    st.one_of(st.sampled_from("".join(MOJIBAKE_CATEGORIES.values())), st.sampled_from("aÃÂ ×à°вЂГўВĀβ€日а"))
)


@given(st.one_of(MOJIBAKE, st.text()))
def test_where_no_mojibake_is_looked_for_there_is_none(text: str) -> None:
    if _MAYBE_MOJIBAKE.search(text) is None:
        assert not is_bad(text)
