"""Progress bars for a terminal: one for each step over all shards, moving with the rows of the shards at work."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_ALMOST = 0.999  # all rows are measured, the table is not yet written


class Bars:
    """A curation.local.Watcher that draws; it keeps still where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            TextColumn("{task.fields[shards]} shards"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}
        self._parts: dict[str, dict[int, float]] = {}
        self._totals: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, step: str, shards: int) -> None:
        """A step begins that takes so many shards."""
        self._bars[step] = self._progress.add_task(step, total=shards, shards=f"0/{shards}")
        self._parts[step], self._totals[step] = {}, shards

    def move(self, step: str, shard: int, rows: int, of: int) -> None:
        """A shard has got so far in a step."""
        if of:
            self._show(step, shard, min(rows / of, _ALMOST))

    def finish(self, step: str, shard: int) -> None:
        """A shard has done a step."""
        self._show(step, shard, 1.0)

    def _show(self, step: str, shard: int, part: float) -> None:
        self._parts[step][shard] = part
        parts = list(self._parts[step].values())  # a copy: other workers add to it meanwhile
        self._progress.update(self._bars[step], completed=sum(parts), shards=f"{parts.count(1.0)}/{self._totals[step]}")
