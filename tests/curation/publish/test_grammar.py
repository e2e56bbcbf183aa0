from hypothesis import given
from hypothesis import strategies as st

from curation.publish.grammar import grammar
from curation.publish.quality import Quality, merged

TEXTS = ["A small brown dog runs quickly along the beach.", "The red car", "a red car"]


def test_counts_by_hand() -> None:
    assert grammar(TEXTS) == {
        "captions": 3, "words": 15, "nouns": 4, "adjectives": 4, "verbs": 1, "adverbs": 1, "prepositions": 1,
        "noun_phrases": 4, "distinct_noun_phrases": 3,
    }  # fmt: skip


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_text_is_counted(texts: list[str]) -> None:
    found = grammar(texts)
    assert found.get("captions", 0) == len(texts)
    assert found.get("distinct_noun_phrases", 0) <= found.get("noun_phrases", 0)


def test_only_english_captions_are_measured() -> None:
    quality = Quality()
    for text, language in zip([*TEXTS, "Ein kleiner Hund"], ["en", "en", "en", "de"], strict=True):
        quality.add({"url": "https://a.test/x.jpg", "text": text, "language": language})
    found = merged([quality.to_json(), Quality().to_json()])["grammar"]
    assert (found["captions"], found["noun_phrases"], found["noun_phrase_variety"]) == (3, 1.333, 0.75)
    assert found["nouns"] == round(4 / 15, 4)
