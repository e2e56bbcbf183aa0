"""Finding the concepts of captions: ours beside MetaCLIP's way, the same texts and entries, results equal.

    python benchmarks/balance.py --concepts 500000 --texts 100000 --metaclip-texts 200

MetaCLIP asks of every entry whether it is part of the padded text (arXiv 2309.16671, section 3.2); it is written here
from that description, and given a part of the texts, for its time a text does not depend on how many there are. Entries
are the built-in list and pairs of its names; captions are such names among other words, Zipf-distributed as in the web.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from curation.text.concepts import Concepts, wordnet_nouns

FILLERS = [
    "a",
    "the",
    "of",
    "and",
    "in",
    "on",
    "with",
    "for",
    "by",
    "at",
    "from",
    "new",
    "photo",
    "free",
    "stock",
    "red",
]


def entries(n: int, rng: np.random.Generator) -> list[str]:
    names = wordnet_nouns().decode().splitlines()
    made = dict.fromkeys(names[:n])
    while len(made) < n:
        pairs = rng.integers(0, len(names), (n - len(made), 2))
        made.update(dict.fromkeys(f"{names[a]} {names[b]}" for a, b in pairs))
    return list(made)[:n]


def captions(n: int, concepts: list[str], rng: np.random.Generator) -> list[str]:
    named = rng.zipf(1.2, (n, 3)) % len(concepts)
    fill = rng.integers(0, len(FILLERS), (n, 6))
    made = []
    for (a, b, c), words in zip(named.tolist(), fill.tolist(), strict=True):
        first, last = (" ".join(FILLERS[word] for word in part) for part in (words[:3], words[3:]))
        made.append(f"{first} {concepts[a]}, {concepts[b]} {last} {concepts[c]}.")
    return made


def metaclip(texts: list[str], concepts: list[str]) -> list[list[int]]:
    padded_entries = [f" {concept} " for concept in concepts]
    found = []
    for text in texts:
        padded = f" {text} "
        for mark in ",.;:?!`":
            padded = padded.replace(mark, f" {mark} ")
        for space in "\t\r\n":
            padded = padded.replace(space, " ")
        found.append([number for number, entry in enumerate(padded_entries) if entry in padded])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=500_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--metaclip-texts", type=int, default=200)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    concepts = entries(chosen.concepts, rng)
    texts = captions(chosen.texts, concepts, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    started = time.perf_counter()
    ours = Concepts(concepts)
    built = time.perf_counter()
    matches = [found for at in range(0, len(texts), 1024) for found in ours.match(texts[at : at + 1024])]
    matched = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    some = texts[: chosen.metaclip_texts]
    theirs = metaclip(some, concepts)
    done = time.perf_counter()
    assert theirs == matches[: len(some)], "results differ"
    print(
        json.dumps(
            {
                "concepts": len(concepts),
                "texts": len(texts),
                "matches": sum(map(len, matches)),
                "build_s": round(built - started, 2),
                "texts_per_s": round(len(texts) / (matched - built)),
                "matches_per_s": round(sum(map(len, matches)) / (matched - built)),
                "automaton_mib": peak - before,
                "metaclip_texts": len(some),
                "metaclip_texts_per_s": round(len(some) / (done - matched), 2),
                "times_faster": round(len(texts) / (matched - built) / (len(some) / (done - matched))),
                "equal": True,
            }
        )
    )


if __name__ == "__main__":
    main()
