"""Runs of words as numbers, to find a text within another."""

from __future__ import annotations

import hashlib
import re
import unicodedata

NGRAM_WORDS = 8  # PaLM (Chowdhery et al. 2022, section 8) and others; GPT-3's 13 is longer than most captions
MIN_WORDS = 5  # "what is in the picture" stands in every set: shorter texts say nothing

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Words of a text after NFKC and case folding, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: str) -> list[int]:
    """Numbers of 63 bits of all runs of NGRAM_WORDS words; of the whole text where it is shorter, none below MIN_WORDS.

    Two texts share a number when they share a run of NGRAM_WORDS words, or are the same shorter text.
    """
    found = words(text)
    if len(found) < MIN_WORDS:
        return []
    runs = (
        [found]
        if len(found) < NGRAM_WORDS
        else [found[at:][:NGRAM_WORDS] for at in range(len(found) - NGRAM_WORDS + 1)]
    )
    return sorted({_number(" ".join(run)) for run in runs})


def _number(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") >> 1
