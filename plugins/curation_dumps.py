"""A calendar whose days are Common Crawl's dumps: backfills and runs by hand speak of `CC-MAIN-2026-05`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from airflow.exceptions import InvalidPartitionKeyError
from airflow.plugins_manager import AirflowPlugin
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable
from pendulum import DateTime, instance

DUMP = re.compile(r"CC-MAIN-(\d{4})-(\d{2})")


def dump_date(dump: str) -> datetime:
    """First moment of the week that a dump is named after. Raises ValueError for what names no week."""
    found = DUMP.fullmatch(dump)
    if not found:
        raise ValueError(f"{dump!r} is no dump of Common Crawl: expected CC-MAIN-year-week, such as CC-MAIN-2026-05")
    return datetime.fromisocalendar(int(found[1]), int(found[2]), 1).replace(tzinfo=UTC)


class DumpTimetable(Timetable):
    """Partitions are dumps, dated by their week. Nothing runs by itself: a dump is 90,000 archives.

    The list is Common Crawl's as the store has it, or the one that came with this release.
    """

    description = "one run for each dump of Common Crawl, when asked for"
    partitioned = True

    @property
    def summary(self) -> str:
        """What the list of DAGs shows."""
        return "dumps"

    def next_dagrun_info_v2(self, *, last_dagrun_info: DagRunInfo | None, restriction: TimeRestriction) -> None:
        """Nothing runs by itself."""

    def infer_manual_data_interval(self, *, run_after: DateTime) -> DataInterval:
        """A run by hand covers no time: its dump is its partition key or its parameter."""
        return DataInterval.exact(run_after)

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """Dumps of the range, oldest first; never one that is yet to come, which would stand in the queue till then."""
        from curation_dags import store

        from curation.dumps import known_dumps

        until = min(latest, datetime.now(UTC))
        for date, dump in sorted((dump_date(dump), dump) for dump in known_dumps(store()) if DUMP.fullmatch(dump)):
            if earliest <= date <= until:
                at = instance(date)
                yield DagRunInfo(run_after=at, data_interval=None, partition_date=at, partition_key=dump)

    def generate_run_id(
        self, *, run_type: Any, run_after: DateTime, data_interval: DataInterval | None, **extra: Any
    ) -> str:
        """Name the run after its dump where Airflow tells it: in backfills."""
        suffix = "__".join(filter(None, [extra.get("partition_key"), datetime.now(UTC).isoformat(timespec="seconds")]))
        return str(run_type.generate_run_id(suffix=suffix))

    def _decode_partition_date(self, partition_key: str) -> datetime:
        try:
            return instance(dump_date(partition_key))
        except ValueError as error:
            raise InvalidPartitionKeyError(str(error)) from error


class CurationDumps(AirflowPlugin):
    """Make the calendar known to the scheduler."""

    name = "curation_dumps"
    timetables = [DumpTimetable]  # noqa: RUF012  Airflow's form
