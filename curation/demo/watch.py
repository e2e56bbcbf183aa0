"""Follow a run of curate_block: a live table of stages and shards on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from curation.demo.airflow_client import AirflowClient
from curation.errors import OutageError

DAG = "curate_block"
TASKS = (
    *("plan", "extract", "match_pairs"),
    *("measure.pairs", "measure.download", "measure.score"),
    "match",
    *("judge.dedup", "judge.safety", "judge.caption", "judge.leakage", "judge.export"),
    *("select", "export_selected", "publish"),
)
ONCE = {"plan", "match_pairs", "match", "select", "publish"}  # a run; the others once a shard
DONE = {"success", "skipped", "failed", "upstream_failed", "removed"}
SIGNS = {
    "success": ("✓", "green"),
    "skipped": ("-", "dim"),
    "failed": ("✗", "bold red"),
    "upstream_failed": ("·", "red"),
    "up_for_retry": ("↻", "yellow"),
    "running": ("▶", "bold cyan"),
    "queued": ("…", "cyan"),
}
WIDEST = 12  # shards side by side; more are counted by state
POLL_S = 1.0
PATIENCE_S = 120  # with an API server that does not answer


@dataclass
class Cell:
    """One task instance as last seen."""

    task: str
    map_index: int
    state: str | None = None
    shard: str = ""
    seconds: float = 0.0
    rows: int | None = None
    row_seconds: float = 0.0
    error: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Task and shard, as a reader says them."""
        return f"{self.shard + ' ' if self.shard else ''}{self.task.rpartition('.')[2]}"

    def line(self) -> str:
        """What became of it, in one line."""
        if self.state == "success":
            took = f"{self.seconds:.1f} s"
            if self.rows is None:
                return f"{self.label}: done in {took}"
            rate = f", {self.rows / self.row_seconds:.0f} rows/s" if self.row_seconds else ""
            return f"{self.label}: {self.rows} rows in {took}{rate}"
        if self.state == "skipped":
            return f"{self.label}: the recipe leaves it out"
        state = "will be tried again" if self.state == "up_for_retry" else self.state
        return f"{self.label}: {state}{': ' + self.error if self.error else ''}"


class Watch:
    """A run and all its task instances, brought up to date by `look`."""

    def __init__(self, client: AirflowClient, run: str, workers: int) -> None:
        self.run, self.state = run, "queued"
        self.cells: dict[tuple[str, int], Cell] = {}
        self._client, self._workers = client, workers
        self._started = time.monotonic()

    def look(self) -> list[Cell]:
        """Ask Airflow; returns the instances that ended, or failed and wait to be tried again, since the last look."""
        self.state = self._client.run_state(DAG, self.run)
        changed = []
        seen = set()
        for raw in self._client.task_instances(DAG, self.run):
            place = (raw["task_id"], raw["map_index"])
            seen.add(place)
            before = self.cells.get(place)
            cell = Cell(*place, state=raw["state"], seconds=raw["duration"] or 0.0, raw=raw)
            cell.shard = raw["rendered_map_index"] or ""
            if before and before.state == cell.state:
                cell.rows, cell.row_seconds, cell.error = before.rows, before.row_seconds, before.error
            elif cell.state in (*DONE, "up_for_retry"):
                self._learn(cell)
                changed.append(cell)
            self.cells[place] = cell
        for place in self.cells.keys() - seen:  # the one instance that stands for a task until it is mapped
            del self.cells[place]
        return sorted(changed, key=lambda cell: str(cell.raw["end_date"]))

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ("success", "failed")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._started

    def failed(self) -> list[Cell]:
        """Instances that failed themselves, in order of shard."""
        return sorted((c for c in self.cells.values() if c.state == "failed"), key=lambda c: (c.map_index, c.task))

    def left_s(self) -> float | None:
        """Seconds left by the mean time of finished instances of each task; None before anything is measured."""
        mapped = [cell for cell in self.cells.values() if cell.map_index >= 0]
        finished = [cell for cell in mapped if cell.state == "success"]
        if not finished:
            return None
        overall = _mean(cell.seconds for cell in finished)
        left = 0.0
        # tasks of a group that isn't expanded yet still stand for all shards
        shards = 1 + max(cell.map_index for cell in mapped)
        for task in TASKS:
            mine = [cell for cell in self.cells.values() if cell.task == task]
            count = 1 if task in ONCE else shards
            done = [cell for cell in mine if cell.state in DONE and cell.state != "removed"]
            mean = _mean(cell.seconds for cell in done) if done else overall
            running = sum(min(mean, cell.seconds) for cell in mine if cell.state == "running")
            left += mean * (count - len(done)) - running
        return max(0.0, left / self._workers)

    def _learn(self, cell: Cell) -> None:
        if cell.state in ("failed", "up_for_retry"):
            cell.error = self._client.error_of(DAG, self.run, cell.raw)
        if cell.state == "success" and cell.map_index >= 0:
            counts = self._client.xcom(DAG, self.run, cell.task, map_index=cell.map_index)
            if isinstance(counts, dict):
                cell.rows, cell.row_seconds = counts.get("rows"), counts.get("seconds") or 0.0


def follow(watch: Watch, console: Console, check: Callable[[], None]) -> None:
    """Show the run until it ends.

    check  called between looks; raises when Airflow is gone
    """
    if not console.is_terminal:
        _follow_plainly(watch, console, check)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            _look(watch, check)
            live.update(Group(_heading(watch), table(watch)), refresh=True)
            if watch.ended:
                return
            time.sleep(POLL_S)


def table(watch: Watch) -> Table:
    """Stages by shards, and rates."""
    shards = sorted({cell.map_index: cell.shard for cell in watch.cells.values() if cell.map_index >= 0}.items())
    wide = len(shards) > WIDEST
    view = Table()
    view.add_column("task")
    for index, label in [] if wide else shards:
        view.add_column(label or f"{index:05d}", justify="center")
    if wide:
        view.add_column(f"{len(shards)} shards")
    view.add_column("rows", justify="right")
    view.add_column("rows/s", justify="right")
    for task in TASKS:
        cells = {cell.map_index: cell for cell in watch.cells.values() if cell.task == task}
        view.add_row(task.rpartition(".")[2], *_states(task, cells, shards, wide), *_rates(cells.values()))
    return view


def _look(watch: Watch, check: Callable[[], None]) -> list[Cell]:
    """Look once; an API server that is away for a while does not end the watch. Raises what check raises."""
    until = time.monotonic() + PATIENCE_S
    while True:
        check()
        try:
            return watch.look()
        except OutageError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)


def _heading(watch: Watch) -> Text:
    left = watch.left_s()
    rest = "" if watch.ended else f" · about {_clock(left)} left" if left is not None else ""
    return Text(f"{watch.run} · {watch.state} · {_clock(watch.elapsed_s)}{rest}", "italic")


def _states(task: str, cells: dict[int, Cell], shards: list[tuple[int, str]], wide: bool) -> list[Text]:
    if wide:
        counts = Counter(cell.state for cell in cells.values())
        return [Text(" ").join(Text(f"{_sign(state).plain}{n}", _sign(state).style) for state, n in counts.items())]
    if task not in ONCE and -1 not in cells:
        return [_sign(cells[index].state) if index in cells else Text("") for index, _ in shards]
    alone = cells.get(-1)
    # what runs once for all shards stands in the first column
    return [_sign(alone.state if alone else None), *[Text("")] * (len(shards) - 1)][: len(shards)]


def _sign(state: str | None) -> Text:
    return Text(*SIGNS.get(state or "", ("·", "dim")))


def _rates(cells: Iterable[Cell]) -> tuple[str, str]:
    measured = [cell for cell in cells if cell.rows is not None]
    rows = sum(cell.rows or 0 for cell in measured)
    seconds = sum(cell.row_seconds for cell in measured)
    return (f"{rows}" if measured else "", f"{rows / seconds:.0f}" if seconds else "")


def _follow_plainly(watch: Watch, console: Console, check: Callable[[], None]) -> None:
    told = time.monotonic()
    while True:
        for cell in _look(watch, check):
            if cell.state not in ("upstream_failed", "removed"):
                _say(console, watch, cell.line())
                told = time.monotonic()
        if watch.ended:
            return
        if time.monotonic() - told > 15:
            running = [cell.label for cell in watch.cells.values() if cell.state == "running"]
            left = watch.left_s()
            rest = f", about {_clock(left)} left" if left is not None else ""
            _say(console, watch, f"running: {', '.join(running) or 'nothing yet'}{rest}")
            told = time.monotonic()
        time.sleep(POLL_S)


def _say(console: Console, watch: Watch, line: str) -> None:
    console.print(f"{watch.elapsed_s:6.0f} s  {line}", markup=False, highlight=False, soft_wrap=True)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
