"""The data card: one HTML page that needs nothing beside itself."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2

from curation.recipe import Recipe
from curation.reports.funnel import Funnel


def render_card(recipe: Recipe, version: str, created: str, funnel: Funnel, quality: dict[str, Any]) -> str:
    """HTML of the card; everything that came from the web is escaped."""
    return _template().render(recipe=recipe, version=version, created=created, funnel=funnel, quality=quality)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = (resources.files("curation") / "publish" / "card.html").read_text()
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
