"""Caption metrics without Java: BLEU-4 and CIDEr-D on lower-cased words without punctuation.

source   Papineni et al. 2002 (BLEU, corpus level, closest reference length); Vedantam et al. 2015 (CIDEr-D: sigma 6,
         clipped counts, document frequencies of the reference set, × 10)
The COCO evaluation tokenises with Stanford's PTB tokenizer and drops punctuation; on plain English captions the two
tokenisations agree but for possessives.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

Grams = Counter[tuple[str, ...]]


def words(caption: str) -> list[str]:
    """Lower-cased words of a caption, apostrophes kept inside words."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", caption.lower())


def _grams(tokens: Sequence[str], n: int) -> Grams:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in 0..1 of one caption per picture against its references."""
    matched, total, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for caption, refs in zip(captions, references, strict=True):
        tokens, ref_tokens = words(caption), [words(r) for r in refs]
        length += len(tokens)
        reference_length += min((abs(len(r) - len(tokens)), len(r)) for r in ref_tokens)[1]
        for n in range(1, 5):
            found, allowed = _grams(tokens, n), Counter[tuple[str, ...]]()
            for ref in ref_tokens:
                allowed |= _grams(ref, n)
            matched[n - 1] += sum((found & allowed).values())
            total[n - 1] += sum(found.values())
    if min(matched) == 0:
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4
    return math.exp(precision + min(0.0, 1 - reference_length / length))


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D (0..10, good captioners on COCO about 1.2) of one caption per picture against its references."""
    reference_grams = [[[_grams(words(r), n) for n in range(1, 5)] for r in refs] for refs in references]
    frequency: Grams = Counter()
    for per_picture in reference_grams:
        frequency.update({gram for ref in per_picture for grams in ref for gram in grams})
    log_pictures = math.log(len(references))

    def weighted(grams: Grams) -> dict[tuple[str, ...], float]:
        return {g: c * (log_pictures - math.log(max(1, frequency[g]))) for g, c in grams.items()}

    def norm(vector: dict[tuple[str, ...], float]) -> float:
        return math.sqrt(sum(v * v for v in vector.values()))

    score = 0.0
    for caption, per_picture in zip(captions, reference_grams, strict=True):
        # lengths as the reference code has them: in bigrams
        mine = [weighted(_grams(words(caption), n)) for n in range(1, 5)]
        my_length = max(0, len(words(caption)) - 1)
        for ref in per_picture:
            penalty = math.exp(-((my_length - sum(ref[1].values())) ** 2) / (2 * 6.0**2))
            for a, grams in zip(mine, ref, strict=True):
                b = weighted(grams)
                dot = sum(min(v, b[g]) * b[g] for g, v in a.items() if g in b)
                score += penalty * dot / (norm(a) * norm(b) or 1.0) / 4 / len(per_picture)
    return 10 * score / len(captions)
