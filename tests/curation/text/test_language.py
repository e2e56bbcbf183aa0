"""Languages of short texts, and the split made of them."""

from hypothesis import given
from hypothesis import strategies as st

from curation.text.language import detect_languages, partition


def test_plain_cases_in_order() -> None:
    texts = [
        "A brown dog runs through the snow in the park",
        "Ein brauner Hund rennt durch den Schnee im Park",
        "一只棕色的狗在雪地里奔跑",
        "茶色の犬が雪の中を走っています",
        "A BROWN DOG RUNS THROUGH THE SNOW",
        "穿着红色背心的男孩。",
        "1234 / 56",
        "",
    ]
    codes, confidences = detect_languages(texts)
    assert codes == ["en", "de", "zh", "ja", "en", "zh", "", ""]
    assert all(0.5 < each <= 1 for each in confidences[:4])
    assert confidences[6:] == [0.0, 0.0]


def test_partition() -> None:
    assert [partition(code) for code in ("en", "de", "")] == ["en", "multi", "nolang"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40), max_size=5))
def test_any_text_gets_an_answer(texts: list[str]) -> None:
    codes, confidences = detect_languages(texts)
    assert len(codes) == len(confidences) == len(texts)
    assert all(0 <= each <= 1 for each in confidences)
