"""What every reader of archives hands on: pages with the pictures they show and what they say about them."""

import re
from collections import Counter
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from curation.text.clean import clean_text, text_class

TextKind = Literal["alt", "figcaption", "title", "aria-label", "og", "json-ld"]
SAID: tuple[TextKind, ...] = ("alt", "title", "aria-label")
LAZY_SRCSET = ("srcset", "data-srcset", "data-lazy-srcset")
# what the lazy loaders in use read: lazysizes, vanilla-lazyload, WordPress plugins, jquery.lazyload
LAZY_SRC = (
    "data-src",
    "data-lazy-src",
    "data-original",
    "data-lazy",
    "data-url",
    "data-original-src",
    "data-hi-res-src",
)
DEFAULT_OPT_OUT = ("noai", "noimageai")


class Picture(msgspec.Struct, frozen=True, gc=False):  # there are many: a third of a NamedTuple's time
    """One picture of a page: absolute canonical URL and what was said about it, raw, by kind."""

    url: str
    texts: dict[TextKind, str]


class Page(NamedTuple):
    """A page with its pictures in document order; offset is that of its record in the archive read, in bytes.

    A reader may leave out pictures of which nothing is said and count them in `wordless` instead.
    """

    url: str
    language: str | None  # primary subtag of the html lang attribute, lower case
    robots: frozenset[str]  # directives of meta robots, lower case
    pictures: list[Picture]
    offset: int
    wordless: int = 0


class Chosen(NamedTuple):
    """The text chosen for a picture: as found and cleaned, with its kind and class."""

    url: str
    raw: str
    text: str
    kind: TextKind | Literal["table", "annotated"]
    text_class: str


_LANGUAGE = re.compile(r"\s*([A-Za-z]{2,3})(?:[-_][\w-]*)?\s*")


@lru_cache(4096)
def page_language(attribute: str | None) -> str | None:
    """Primary subtag of a lang attribute (BCP 47), lower case; None when it is none."""
    found = _LANGUAGE.fullmatch(attribute) if attribute else None
    return found[1].lower() if found else None


@lru_cache(4096)
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
    for picture in pictures:
        url, texts = picture.url, picture.texts
        best: Chosen | None = None
        for kind in kinds if texts else ():
            if (raw := texts.get(kind)) and (text := clean_text(raw, max_chars)):
                class_ = text_class(text)
                best = best or Chosen(url, raw, text, kind, class_)
                if class_ == "ok":
                    best = best if best.kind == kind else Chosen(url, raw, text, kind, class_)
                    break
        if best:
            chosen.append(best)
    if len(chosen) <= boilerplate_over:
        return chosen
    often = {text for text, count in Counter(each.text for each in chosen).items() if count > boilerplate_over}
    repeated = {text for text in often if len({each.url for each in chosen if each.text == text}) > boilerplate_over}
    if not repeated:
        return chosen
    return [
        each._replace(text_class="boilerplate") if each.text in repeated and each.text_class == "ok" else each
        for each in chosen
    ]


Tally = Counter[str]
