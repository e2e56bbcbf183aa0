"""Templates to HTML. Every text is escaped; a page loads nothing from elsewhere and works without its script."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
from rich.filesize import decimal

ROOT = "/curation"
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "Cache-Control": "no-store",
}
CARD_HEADERS = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
}
# a picture opened by itself is a document: it may run nothing either
PICTURE_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cache-Control": "private, max-age=300",
}
FILE_HEADERS = _SAFE | {"Cache-Control": "private, max-age=300"}
FILES = {"style.css": "text/css", "pages.js": "text/javascript"}


def address(*names: str) -> str:
    """Path of a page, each name quoted."""
    return "/".join([ROOT, *(quote(name, safe="") for name in names)])


def render(template: str, /, **values: Any) -> str:
    """One of the templates, filled in."""
    return _templates().get_template(f"{template}.html").render(root=ROOT, **values)


def load_templates() -> None:
    """Compile all templates, which is otherwise done by the first page of each kind."""
    for name in _templates().list_templates():
        _templates().get_template(name)


def read_file(name: str) -> str:
    """The style sheet or the script."""
    return (resources.files("curation") / "ui" / name).read_text()


def unsafe(row: dict[str, Any]) -> bool:
    """Whether a picture is shown blurred: what no safety stage called safe and a head finds likely unsafe, too."""
    tag, probability = row.get("safety_tag"), row.get("punsafe")
    return tag not in (None, "safe") or (isinstance(probability, float) and probability >= 0.5)


def plain(text: object) -> str:
    """Text without NUL and other control characters, which browsers show as nothing or as something else."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in str(text or ""))


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("curation", "ui/templates"), autoescape=True, undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
    )  # fmt: skip
    found.filters |= {
        "size": decimal,
        "plain": plain,
        "n": lambda number: f"{number:,}",
        "setting": lambda value: "–" if value is None else value if isinstance(value, str) else json.dumps(value),
        "percent": lambda share: "" if share is None else f"{share:.1%}",
    }
    found.tests["unsafe"] = unsafe
    return found
