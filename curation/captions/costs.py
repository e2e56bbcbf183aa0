"""What a million captions cost: of a teacher by its tokens, of a student by how many it writes in an hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from curation.captions.asking import Taught
from curation.captions.endpoint import Endpoint
from curation.errors import ConfigError
from curation.recipe import Recipe
from curation.runner import receipt_of
from curation.store import Store

MILLION = 1_000_000


class Cost(NamedTuple):
    """Of a teacher or a student; what it rests on, in words, is `basis`."""

    who: str
    per_caption: float  # currency of the prices
    per_million: float
    basis: str


def of_teacher(taught: Taught, endpoint: Endpoint) -> Cost:
    """By what a job was charged, refusals and truncations included. Raises ConfigError where it has no caption."""
    if not taught.captions:
        raise ConfigError(f"{taught.key}: no caption was written, so none has a price")
    tokens = taught.tokens / taught.captions
    basis = f"{taught.captions} captions, {tokens:.0f} tokens each, {endpoint.price_prompt:g} and "
    basis += f"{endpoint.price_completion:g} a million prompt and completion tokens"
    return Cost(f"teacher {endpoint.model}", taught.money_per_caption, taught.money_per_caption * MILLION, basis)


def of_tokens(endpoint: Endpoint, prompt_tokens: float, completion_tokens: float, *, batch: bool = False) -> Cost:
    """Of a teacher that was not asked yet, by an estimate of what an answer takes."""
    money = (prompt_tokens * endpoint.price_prompt + completion_tokens * endpoint.price_completion) / MILLION
    money *= endpoint.batch_price if batch else 1
    basis = f"{prompt_tokens:g} prompt and {completion_tokens:g} completion tokens a caption, estimated"
    return Cost(f"teacher {endpoint.model}", money, money * MILLION, basis)


def of_student(captions_per_second: float, price_per_hour: float, *, who: str = "student", basis: str = "") -> Cost:
    """Of a model on a machine that costs so much an hour. Raises ConfigError where it writes nothing."""
    if captions_per_second <= 0:
        raise ConfigError(f"captions_per_second: expected more than 0, found {captions_per_second:g}")
    money = price_per_hour / 3600 / captions_per_second
    told = f"{captions_per_second:.2f} captions/s, {price_per_hour:g} an hour"
    return Cost(who, money, money * MILLION, f"{told}{basis and '; '}{basis}")


def captioning_rate(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> float:
    """Captions a second of one task of the caption stage, filter included, by the receipts of finished shards.

    raises   ConfigError where the stage wrote no caption
    """
    found = [one for shard in shards if (one := receipt_of(store, recipe, dump, shard, "caption")) is not None]
    captions, seconds = sum(one.tally.get("captions", 0) for one in found), sum(one.seconds for one in found)
    if not captions or not seconds:
        raise ConfigError(f"{dump}: the stage caption of recipe {recipe.name} wrote no captions yet")
    return captions / seconds
