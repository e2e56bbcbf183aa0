"""Concepts named in a text, by MetaCLIP's rule: an entry counts where it stands between spaces.

A text is padded with spaces, the marks , . ; : ? ! ` get spaces around them, tabs and line breaks become spaces; an
entry matches where " entry " is an exact part of that. For languages written without spaces an entry matches anywhere.
Automaton: ahocorasick_rs's contiguous NFA, in a trial faster and smaller than its other forms and than pyahocorasick;
figures in docs/benchmarks.md.

source  Xu et al. 2024 (MetaCLIP, arXiv 2309.16671), section 3
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ahocorasick_rs import AhoCorasick, Implementation

from curation.errors import ConfigError

WORDNET = "wordnet"
"""Name of the built-in list: names of the 21,844 noun synsets of ImageNet, from timm's tables (WordNet licence)."""
UNSPACED = frozenset(["zh", "ja", "th", "lo", "km", "my", "bo", "wuu", "yue"])
"""Languages written without spaces between words."""
_MARKS = ",.;:?!`"


def read_concepts(path: Path) -> list[str]:
    """Entries of a list, one a line, text or gzip; blank lines and repeats are left out. Raises ConfigError."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error) as err:
        raise ConfigError(f"concepts {path}: can't be read: {err}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"concepts {path}: expected UTF-8 with one concept a line: {err}") from err
    return list(dict.fromkeys(line for line in map(str.strip, text.splitlines()) if line))


def wordnet_nouns() -> bytes:
    """The built-in list as a file's content. Raises ConfigError when timm is not installed."""
    found = find_spec("timm")  # importing it would load torch
    if found is None or found.origin is None:
        raise ConfigError(f"concepts {WORDNET}: comes with timm: pip install 'curation[models]'")
    table = Path(found.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    lemmas = [lemma for line in table.read_text().splitlines() for lemma in line.partition("\t")[2].split(", ")]
    return "\n".join(dict.fromkeys(lemmas)).encode()


class Concepts:
    """Finds the entries of one list.

    concepts     entries; a match is told by its number here
    spaces       False: an entry matches anywhere, for languages written without spaces
    ignore_case  MetaCLIP's rule is case-sensitive: "Dog" at the head of a caption is no "dog"
    """

    def __init__(self, concepts: Sequence[str], *, spaces: bool = True, ignore_case: bool = False) -> None:
        self._spaces = spaces
        self._ignore_case = ignore_case
        patterns = [f" {concept} " if spaces else concept for concept in concepts]
        if ignore_case:
            patterns = [pattern.lower() for pattern in patterns]
        self._automaton = AhoCorasick(patterns, implementation=Implementation.ContiguousNFA, store_patterns=False)

    def match(self, texts: Sequence[str]) -> list[list[int]]:
        """Numbers of the entries in each text, ascending, each once."""
        find = self._automaton.find_matches_as_indexes
        return [sorted({found[0] for found in find(text, overlapping=True)}) for text in self._prepared(texts)]

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        if not texts:
            return []
        # one string for all: replacing is then done at the speed of memory
        joined = "\0".join(text.replace("\0", " ") for text in texts)
        if self._ignore_case:
            joined = joined.lower()
        if not self._spaces:
            return joined.split("\0")
        for mark in _MARKS:
            joined = joined.replace(mark, f" {mark} ")
        for space in "\t\n\r":
            joined = joined.replace(space, " ")
        return [f" {text} " for text in joined.split("\0")]
