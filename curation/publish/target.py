"""What a dataset is meant to become: samples wanted, quality bars, and how far a version is from them."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.publish.quality import COUNTED, MEASURED

Statistic = Literal["mean", "p05", "p25", "p50", "p75", "p95", "share"]
_TEXTS = ("mtld", "ttr", "mattr", "noun_phrase_variety", "perplexity")  # one number of a version
_KNOWN = (*MEASURED, *COUNTED, *_TEXTS)


class Bar(BaseModel):
    """One number of quality.json and its bound; a version that equals the bound meets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = Field(description=f"what is measured: {', '.join(_KNOWN)}")
    statistic: Statistic = Field("mean", description="share: of the samples whose value is one of `values`")
    values: tuple[str, ...] = Field((), description="with share: the values that count")
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.of not in _KNOWN:
            raise ValueError(f"of: {self.of!r} is not measured of a version; known: {', '.join(_KNOWN)}")
        if (self.of in COUNTED) != (self.statistic == "share"):
            fix = "a share" if self.of in COUNTED else "a mean or a quantile"
            raise ValueError(f"statistic: of {self.of} there is {fix}, no {self.statistic}")
        if self.of in _TEXTS and self.statistic != "mean":
            raise ValueError(f"statistic: of {self.of} there is one number a version: leave statistic out")
        if (self.statistic == "share") != bool(self.values):
            raise ValueError("values: name those that count, with statistic: share and only with it")
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least: {self.at_least:g} is more than at_most, {self.at_most:g}: nothing meets both")
        return self

    def measured(self, quality: dict[str, Any]) -> float | None:
        """The number in a version's quality report, None when it was not measured."""
        if not quality["samples"]:
            return None
        if self.statistic == "share":
            counts = quality["groups"].get(self.of, quality["flags"].get(self.of))
            return (
                sum(counts.get(value, 0) for value in self.values) / quality["samples"] if counts is not None else None
            )
        numbers: dict[str, float | None] = quality["means"]
        if self.of in _TEXTS:
            numbers = {**quality["lexical"], **quality.get("grammar", {}), "perplexity": quality["perplexity"]}
        elif self.statistic != "mean":
            numbers = {self.of: quality["quantiles"].get(self.of, {}).get(self.statistic)}
        return numbers.get(self.of)

    def asks(self) -> str:
        """The bar in words: `mean similarity at least 0.3`."""
        what = f"share of {self.of} {' or '.join(self.values)}" if self.values else f"{self.statistic} {self.of}"
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return f"{what} {' and '.join(f'{name} {bound:g}' for name, bound in bounds if bound is not None)}"


class Target(BaseModel):
    """What the dataset is meant to become. It drops nothing and stops no release: it is reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int | None = Field(None, ge=1, description="samples wanted")
    bars: dict[str, Bar] = Field({}, description="by a name of your choice")


class Distance(BaseModel):
    """How far a version is from one wish: `short` is 0 where it is met, None where nothing was measured."""

    model_config = ConfigDict(frozen=True)

    name: str
    asks: str
    found: float | None
    short: float | None
    told: str

    @property
    def met(self) -> bool:
        """Whether the wish is fulfilled."""
        return self.short == 0


def distances(target: Target, quality: dict[str, Any]) -> list[Distance]:
    """How far a version is from its target, the number of samples first.

    quality  of quality.json
    """
    n = int(quality["samples"])
    found = []
    if target.samples is not None:
        short = max(0, target.samples - n)
        told = f"{n:,} of {target.samples:,} samples ({n / target.samples:.1%})"
        told = f"{told}: {short:,} more are needed" if short else f"{told}: reached"
        asks = f"at least {target.samples:,} samples"
        found.append(Distance(name="samples", asks=asks, found=n, short=short, told=told))
    return found + [_distance(name, bar, quality, n) for name, bar in target.bars.items()]


def _distance(name: str, bar: Bar, quality: dict[str, Any], n: int) -> Distance:
    value = bar.measured(quality)
    if value is None:
        told = "not measured: the version has no samples" if not n else f"not measured: no stage gives {bar.of}"
        return Distance(name=name, asks=bar.asks(), found=None, short=None, told=told)
    below = bar.at_least - value if bar.at_least is not None else 0.0
    above = value - bar.at_most if bar.at_most is not None else 0.0
    short = max(0.0, below, above)
    told = f"{value:.4g}: " + (f"{short:.4g} {'below' if below > 0 else 'above'} the bar" if short else "met")
    if short and bar.statistic == "share" and below > 0 and bar.at_least is not None and bar.at_least < 1:
        # only samples that count are added: (counted + x) / (n + x) = at_least
        more = math.ceil(round((bar.at_least - value) * n / (1 - bar.at_least), 6))
        told += f"; {more:,} more samples that count would do"
    return Distance(name=name, asks=bar.asks(), found=value, short=short, told=told)
