"""What a stage has just made of a shard, told to whoever listens: Airflow's plugins do, and nothing here knows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from curation.receipt import Receipt


class Made(NamedTuple):
    """A table that was written now; one that stood there already is not told of again."""

    root: str  # of the store
    receipt: Receipt
    before: Receipt | None  # of the stage before, None for the first

    @property
    def inputs(self) -> list[str]:
        """Where the tables lie that the dump's tables of this stage are made from: a folder for all shards."""
        return [] if self.before is None else [f"{self.root}/{self.before.key.rpartition('/')[0]}"]

    @property
    def output(self) -> str:
        """Where the dump's tables of this stage lie."""
        return f"{self.root}/{self.receipt.key.rpartition('/')[0]}"


class Count(NamedTuple):
    """Something to be added up over all tasks: `samples.download.http_404`, 17."""

    name: str
    value: int


Listener = Callable[[Made], None]
listeners: list[Listener] = []
"""Called in the task's process, once the table stands in the store; none may raise."""


def tell(made: Made) -> None:
    """Tell all listeners."""
    for listener in listeners:
        listener(made)


def counts(made: Made) -> Iterator[Count]:
    """Take a receipt apart into counters, named {what}.{stage} or samples.{stage}.{outcome}.

    samples  outcome is `measured`, a fault, or the verdict for which the gates before this stage let a sample go; the
             verdicts of earlier gates are counted where they fell, so that a sum over stages counts each sample once
    bytes    read from the archive, fetched from the web (`bytes_fetched`), as the stage has counted them
    """
    receipt = made.receipt
    yield Count(f"shards.{receipt.stage}", 1)
    yield Count(f"milliseconds.{receipt.stage}", round(1000 * receipt.seconds))
    yield Count(f"samples.{receipt.stage}.measured", receipt.measured)
    fresh = Counter(receipt.dropped)
    if made.before is not None:
        fresh.subtract(made.before.dropped)
        fresh.subtract(made.before.faults)
    fresh.update(receipt.faults)
    for outcome, value in sorted((+fresh).items()):
        yield Count(f"samples.{receipt.stage}.{outcome}", value)
    for what in ("bytes_read", "bytes_fetched", "pictures", "records_bad", "decoder_deaths"):
        if value := receipt.tally.get(what, 0):
            yield Count(f"{what}.{receipt.stage}", value)
