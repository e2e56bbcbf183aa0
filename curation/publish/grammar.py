"""Parts of speech and noun phrases of English captions, by textblob's tagger and chunker."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

LANGUAGE = "en"
"""The only language that the tagger knows."""
_PARTS = {"NN": "nouns", "JJ": "adjectives", "VB": "verbs", "RB": "adverbs", "IN": "prepositions"}  # Penn Treebank
_LONGEST = 1000  # characters of a caption
_SEPARATORS = re.compile(r"[\s/]+")  # / parts word and tags in what the tagger gives back


def grammar(texts: Sequence[str]) -> dict[str, int]:
    """Counts over English texts: captions, words, nouns, adjectives, verbs, adverbs, prepositions, noun phrases.

    returns  with `distinct_noun_phrases`, those that differ in lower case and without article; numbers add up over
             shards but for these. Empty for no text
    source   textblob's lexicon and rules (Brill's tagger, Penn Treebank tags); it needs no corpus and no network
    """
    if not texts:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from textblob.en import parse

    counts: Counter[str] = Counter(captions=len(texts))
    phrases: set[str] = set()
    for text in texts:
        phrase: list[str] = []
        for token in parse(_SEPARATORS.sub(" ", text[:_LONGEST]), tags=True, chunks=True).split():
            for word, tag, chunk, *_ in token:
                counts["words"] += tag[:1].isalpha()
                if part := _PARTS.get(tag[:2]):
                    counts[part] += 1
                if phrase and chunk != "I-NP":
                    phrases.add(" ".join(phrase))
                    phrase = []
                if chunk == "B-NP":
                    counts["noun_phrases"] += 1
                if chunk in ("B-NP", "I-NP") and tag not in ("DT", "PRP$"):
                    phrase.append(word.lower())
        if phrase:
            phrases.add(" ".join(phrase))
    names = ("captions", "words", *_PARTS.values(), "noun_phrases")
    return {name: counts[name] for name in names} | {"distinct_noun_phrases": len(phrases)}
