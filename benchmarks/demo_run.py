"""What the last `make demo` cost: per-stage seconds and rates from receipts, Airflow's share from its database.

python benchmarks/demo_run.py [--store var/store] [--airflow var/airflow/airflow.db] [--dump NAME]
"""

import argparse
import sqlite3
import statistics
from collections import defaultdict

from curation.block import runs
from curation.receipt import Receipt
from curation.store import Store


def receipts_by_stage(store: Store, dump: str) -> dict[str, list[Receipt]]:
    found = defaultdict(list)
    for entry in store.entries(f"dumps/{dump}/"):
        if entry.key.endswith(".parquet") and (receipt := store.read_receipt(entry.key)):
            found[receipt.stage].append(receipt)
    return found


def task_seconds(database: str) -> dict[str, list[float]]:
    """Seconds from start to end of each successful task of the newest run, by the last part of its id."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select task_id, duration from task_instance where state = 'success' and run_id = "
            "(select run_id from dag_run where dag_id = 'curate_block' order by id desc limit 1)"
        ).fetchall()
    found = defaultdict(list)
    for task, seconds in rows:
        found[task.rpartition(".")[2]].append(float(seconds))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--store", default="var/store")
    arguments.add_argument("--airflow", default="var/airflow/airflow.db")
    arguments.add_argument("--dump", help="default: the last by name")
    options = arguments.parse_args()
    tasks = task_seconds(options.airflow)
    store = Store(options.store)
    stages = receipts_by_stage(store, options.dump or runs(store)[-1][0])
    print("| stage | shards | rows in | measured | s a shard | measured/s | peak MiB | task s | outside the stage |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for stage, found in sorted(stages.items(), key=lambda pair: min(r.created_at for r in pair[1])):
        seconds = statistics.median(receipt.seconds for receipt in found)
        measured, total = sum(r.measured for r in found), sum(r.seconds for r in found)
        whole = statistics.median(tasks[stage]) if tasks.get(stage) else float("nan")
        print(
            f"| {stage} | {len(found)} | {sum(r.rows for r in found)} | {measured} | {seconds:.2f} "
            f"| {measured / total if total else 0:.0f} | {max(r.peak_memory_bytes for r in found) >> 20} "
            f"| {whole:.2f} | {whole - seconds:.2f} |"
        )
    for task in sorted(set(tasks) - set(stages)):
        print(f"| {task} | {len(tasks[task])} | | | | | | {statistics.median(tasks[task]):.2f} | |")


if __name__ == "__main__":
    main()
