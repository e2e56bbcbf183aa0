"""Lexical diversity of captions, by lexicalrichness."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

_LEAST_WORDS = 50  # MTLD of fewer is noise (McCarthy & Jarvis 2010)


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Type-token ratio, its moving average over 50 words, and MTLD of the texts taken as one.

    returns  words, ttr (0..1), mattr (0..1), mtld (>= 0); empty for fewer than 50 words
    source   McCarthy & Jarvis 2010 (MTLD, threshold 0.72); Covington & McFall 2010 (MATTR)
    """
    with warnings.catch_warnings():  # it imports pkg-style modules whose warnings are none of the user's
        warnings.simplefilter("ignore")
        from lexicalrichness import LexicalRichness

    found = LexicalRichness(" ".join(texts))
    if found.words < _LEAST_WORDS:
        return {}
    return {
        "words": found.words,
        "ttr": round(found.ttr, 4),
        "mattr": round(found.mattr(window_size=50), 4),
        "mtld": round(found.mtld(threshold=0.72), 2),
    }
