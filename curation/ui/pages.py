"""Templates to HTML. Every text is escaped; a page runs no script and loads nothing from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CARD_HEADERS = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
}


def render(template: str, /, **values: Any) -> str:
    """One of the templates, filled in."""
    return _templates().get_template(f"{template}.html").render(values)


def style() -> str:
    """The style sheet."""
    return (resources.files("curation") / "ui" / "style.css").read_text()


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("curation", "ui/templates"), autoescape=True, undefined=jinja2.ChainableUndefined
    )
