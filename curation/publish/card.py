"""The data card: one HTML page that needs nothing beside itself."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from rich.filesize import decimal

from curation.gates import Gate
from curation.recipe import Recipe
from curation.reports.funnel import Funnel

_BARS = 25


def render_card(
    recipe: Recipe,
    manifest: dict[str, Any],
    funnel: Funnel,
    quality: dict[str, Any],
    drift: dict[str, float],
) -> str:
    """HTML of the card; everything that came from the web is escaped.

    manifest  of the version, without its files
    drift     population stability index by column against the parent; empty: there is none to compare with
    """
    charts = {name: _chart(histogram) for name, histogram in quality["histograms"].items()}
    gates = [(str(verdict), gate.column, spelt(gate)) for verdict, all_of in recipe.gates.items() for gate in all_of]
    return _template().render(
        recipe=recipe,
        version=manifest["version"],
        created=manifest["created_at"][:19],
        manifest=manifest,
        funnel=funnel,
        quality=quality,
        charts=charts,
        gates=gates,
        drift=drift,
        cost=_cost(funnel, quality["samples"]),
    )


def spelt(gate: Gate) -> str:
    """What a gate asks for, in words: `at least 0.28 where partition is en`."""
    rules = []
    for name, bound in (("at least", gate.at_least), ("at most", gate.at_most)):
        if isinstance(bound, dict):
            rules += [f"{name} {value:g} where {gate.by} is {case}" for case, value in bound.items()]
        elif bound is not None:
            rules.append(f"{name} {bound:g}")
    if gate.one_of is not None:
        rules.append(f"one of {', '.join(gate.one_of)}" if gate.one_of else "no value")
    if gate.none_of is not None:
        rules.append(f"none of {', '.join(gate.none_of)}")
    if gate.equals is not None:
        rules.append("true" if gate.equals else "false")
    return "; ".join(rules)


def _cost(funnel: Funnel, samples: int) -> dict[str, float]:
    """Seconds of task time and bytes stored for each published sample, seconds for each candidate."""
    n = max(samples, 1)
    seconds = sum(stage.seconds for stage in funnel.stages)
    return {
        "samples": n,
        "seconds": seconds / n,
        "bytes": sum(stage.bytes for stage in funnel.stages) / n,
        "seconds_a_candidate": seconds / max(funnel.samples, 1),
    }


def _chart(histogram: dict[str, Any]) -> dict[str, Any]:
    """Bars of a histogram, its bins summed by neighbours, with heights 0..1."""
    step = len(histogram["counts"]) // _BARS
    bars = [sum(histogram["counts"][at : at + step]) for at in range(0, len(histogram["counts"]), step)]
    return {
        "low": histogram["low"],
        "high": histogram["high"],
        "bars": [{"count": count, "height": round(count / max(bars), 4)} for count in bars],
    }


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = (resources.files("curation") / "publish" / "card.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["size"] = decimal
    return environment.from_string(text)
