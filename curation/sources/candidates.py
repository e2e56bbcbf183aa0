"""What every reader of archives hands on: pages with the pictures they show and what they say about them."""

import re
from collections import Counter, defaultdict
from typing import Literal, NamedTuple

from curation.text.clean import clean_text, text_class

TextKind = Literal["alt", "figcaption", "title", "aria-label", "og", "json-ld"]
DEFAULT_OPT_OUT = ("noai", "noimageai")


class Picture(NamedTuple):
    """One picture of a page: absolute canonical URL and what was said about it, raw, by kind."""

    url: str
    texts: dict[TextKind, str]


class Page(NamedTuple):
    """A page with its pictures in document order; offset is that of its record in the archive read, in bytes."""

    url: str
    language: str | None  # primary subtag of the html lang attribute, lower case
    robots: frozenset[str]  # directives of meta robots, lower case
    pictures: list[Picture]
    offset: int


class Chosen(NamedTuple):
    """The text chosen for a picture: as found and cleaned, with its kind and class."""

    url: str
    raw: str
    text: str
    kind: TextKind | Literal["table"]
    text_class: str


_LANGUAGE = re.compile(r"\s*([A-Za-z]{2,3})(?:[-_][\w-]*)?\s*")


def page_language(attribute: str | None) -> str | None:
    """Primary subtag of a lang attribute (BCP 47), lower case; None when it is none."""
    found = _LANGUAGE.fullmatch(attribute) if attribute else None
    return found[1].lower() if found else None


def robots_directives(content: str) -> frozenset[str]:
    """Directives of a meta robots element: comma or space separated, lower case."""
    return frozenset(word for word in re.split(r"[\s,;]+", content[:1000].lower()) if word)


def choose_texts(
    pictures: list[Picture], kinds: tuple[TextKind, ...], max_chars: int, boilerplate_over: int
) -> list[Chosen]:
    """One text for each picture that has any; pictures without are left out.

    The first of `kinds` whose text is a caption (class ok) is taken, else the first that is not empty. A text that
    stands under more than boilerplate_over different pictures of the page becomes boilerplate.
    """
    chosen: list[Chosen] = []
    urls_of: defaultdict[str, set[str]] = defaultdict(set)
    for url, texts in pictures:
        best: Chosen | None = None
        for kind in kinds:
            raw = texts.get(kind)
            text = clean_text(raw, max_chars) if raw else ""
            if raw and text:
                found = Chosen(url, raw, text, kind, text_class(text))
                if found.text_class == "ok":
                    best = found
                    break
                best = best or found
        if best:
            chosen.append(best)
            urls_of[best.text].add(url)
    if len(chosen) <= boilerplate_over:
        return chosen
    repeated = {text for text, urls in urls_of.items() if len(urls) > boilerplate_over}
    if not repeated:
        return chosen
    return [
        each._replace(text_class="boilerplate") if each.text in repeated and each.text_class == "ok" else each
        for each in chosen
    ]


Tally = Counter[str]
