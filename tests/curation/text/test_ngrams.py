from hypothesis import given
from hypothesis import strategies as st

from curation.text.ngrams import NGRAM_WORDS, ngrams, words

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=5, max_size=20)


def test_words_are_folded_and_bare() -> None:
    assert words("It’s a CAFÉ — ﬁne, isn't it?") == ["it", "s", "a", "café", "fine", "isn", "t", "it"]


def test_short_texts_say_nothing_and_shorter_ones_are_taken_whole() -> None:
    assert ngrams("what is in this") == []
    assert len(ngrams("how many cats are there")) == 1
    assert ngrams("how many cats are there") == ngrams("How many cats are there?!")
    assert not set(ngrams("how many cats are there")) & set(ngrams("how many cats are there now"))


@given(WORDS, WORDS, WORDS)
def test_a_run_within_a_longer_text_is_found(before: list[str], run: list[str], after: list[str]) -> None:
    run = (run * 2)[:NGRAM_WORDS]
    assert set(ngrams(" ".join(run))) <= set(ngrams(" ".join([*before, *run, *after])))
