"""Download and resize: the download stage beside img2dataset, on one loopback web, the same URLs.

Both fetch with one attempt and a limit of 10 s, resize to 256 px on the shorter side, encode JPEG at quality 92, hash
and write Parquet; time is that of the whole command. img2dataset runs in its own environment with several counts of
processes, threads and shards a process, the best of which counts: it waits at the end of each shard for the slowest
URLs, so few shards are best. Then which pictures arrived, and in which size, is compared.

    python -m venv /tmp/img2dataset && /tmp/img2dataset/bin/pip install img2dataset
    python benchmarks/download.py --peer /tmp/img2dataset/bin/python

--only measures our side alone; --urls N1,N2 shows how memory grows with the work.
"""

import argparse
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HOSTS = 40
PEER = """
import sys, json
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url", caption_col="text",
             output_format="parquet", resize_mode="keep_ratio", image_size=256, resize_only_if_bigger=True,
             encode_format="jpg", encode_quality=92, compute_hash="sha256", timeout=10, retries=0,
             processes_count=int(sys.argv[3]), thread_count=int(sys.argv[4]), number_sample_per_shard=int(sys.argv[5]))
"""


class Watch:
    """CPU seconds and peak memory of a process and its children, sampled.

    Memory each second, CPU four times as often: the kernel walks all pages of a process to tell what it holds.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self.cpu = 0.0
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(psutil.Process(pid),))
        self._thread.start()

    def _run(self, root: psutil.Process) -> None:
        for sample in itertools.count():
            if self._stop.wait(0.25):
                return
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                return
            memory = 0
            for process in family:
                try:
                    if sample % 4 == 0:
                        memory += process.memory_full_info().pss
                    times = process.cpu_times()
                    self._seen[process.pid] = times.user + times.system
                except psutil.Error:
                    pass
            self.peak = max(self.peak, memory)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu = sum(self._seen.values())


def timed(command: list[str]) -> tuple[float, Watch]:
    """Wall time of a command, and what it took."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        watch = Watch(process.pid)
        if process.wait() != 0:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-3000:])
    seconds = time.monotonic() - started
    watch.end()
    return seconds, watch


def ours(urls: str, out: str, address: str, connections: int) -> None:
    """The stage as the runner drives it: batches of 1,024 in, one Parquet table out."""
    from curation.schema import schema
    from curation.stages.download import Download
    from curation.store import TableWriter

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    stage = Download(connect_to={"127.0.0.*": address}, attempts=1, connections=connections)
    table = pq.read_table(urls, columns=["url"])
    empty = {name: pa.nulls(table.num_rows, schema(name).field(0).type) for name in stage.consumes.names[1:]}
    entering = pa.table({"url": table["url"], **empty}, schema=stage.consumes)
    tally: Counter[str] = Counter()
    writer = TableWriter(Path(out), stage.produces)
    for batch in stage(iter(entering.to_batches(max_chunksize=1024)), tally):
        writer.write(batch)
    writer.close()
    print(json.dumps(tally))


def outcome_of_ours(path: Path, urls: list[str]) -> dict[str, tuple[int, int]]:
    table = pq.read_table(path, columns=["width", "height", "fault"])
    good = pc.is_null(table["fault"]).to_pylist()
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    return {url: size for url, size, arrived in zip(urls, sizes, good, strict=True) if arrived}


def outcome_of_peer(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["url", "status", "width", "height"]).to_pylist()
        found.update({row["url"]: (row["width"], row["height"]) for row in table if row["status"] == "success"})
    return found


def server_time(pids: list[psutil.Process]) -> float:
    return sum(process.cpu_times().user + process.cpu_times().system for process in pids)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="python of an environment with img2dataset")
    parser.add_argument("--urls", default="6000")
    parser.add_argument("--trial-urls", type=int, default=1500, help="for choosing img2dataset's settings")
    parser.add_argument(
        "--settings", default="2x64x1,2x256x1,2x256x3,4x256x1", help="processes x threads x shards a process to try"
    )
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--only", action="store_true")
    parser.add_argument("--ours", nargs=4)
    args = parser.parse_args()
    if args.ours:
        urls, out, address, connections = args.ours
        return ours(urls, out, address, int(connections))
    web_file = Path(__file__).with_name("download_web.py")
    web = subprocess.Popen([sys.executable, str(web_file)], stdout=subprocess.PIPE, text=True)
    assert web.stdout is not None
    port, n_files, mean_bytes = map(int, web.stdout.readline().split())
    serving = psutil.Process(web.pid)
    print(f"{n_files} files of {mean_bytes / 1024:.0f} KiB on average, {HOSTS} hosts, {psutil.cpu_count()} cores\n")
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)

            def url_list(count: int, first: int) -> tuple[str, list[str]]:
                urls = [f"http://127.0.0.{n % HOSTS + 1}:{port}/pictures/{n}.jpg" for n in range(first, first + count)]
                path = folder / f"{first}-{count}.parquet"
                pq.write_table(pa.table({"url": urls, "text": ["a picture"] * count}), path)
                return str(path), urls

            def peer(setting: str, path: str, out: Path, count: int) -> list[str]:
                processes, threads, shards = map(int, setting.split("x"))
                a_shard = -(-count // (processes * shards))
                return [args.peer, str(peer_script), path, str(out), str(processes), str(threads), str(a_shard)]

            def run(label: str, command: list[str], count: int) -> float:
                before = server_time([serving])
                seconds, watch = timed(command)
                share = (server_time([serving]) - before) / seconds
                cells = f"{count / seconds:.0f} | {watch.cpu / count * 1000:.1f} | {watch.peak >> 20} | {share:.0%}"
                print(f"| {label} | {count} | {seconds:.1f} | {cells} |", flush=True)
                return count / seconds

            print("| | URLs | s | URLs/s | CPU ms a URL | peak MiB | server's CPU |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
            peer_script = folder / "peer.py"
            peer_script.write_text(PEER)
            best = ""
            if args.peer and not args.only:
                rates = {}
                trial, _ = url_list(args.trial_urls, 10_000_000)
                for number, setting in enumerate(args.settings.split(",")):
                    command = peer(setting, trial, folder / f"trial-{number}", args.trial_urls)
                    rates[setting] = run(f"img2dataset {setting}, trial", command, args.trial_urls)
                best = max(rates, key=lambda setting: rates[setting])
            for count in map(int, args.urls.split(",")):
                path, urls = url_list(count, 0)
                out = folder / f"ours-{count}.parquet"
                command = [sys.executable, __file__, "--ours", path, str(out), f"127.0.0.1:{port}"]
                rate = run("curation", [*command, str(args.connections)], count)
                found = outcome_of_ours(out, urls)
                print(f"arrived with curation: {len(found) / count:.4f}")
                if not best:
                    continue
                there = folder / f"peer-{count}"
                peer_rate = run(f"img2dataset {best}", peer(best, path, there, count), count)
                theirs = outcome_of_peer(there)
                off = [url for url in found.keys() & theirs.keys() if _apart(found[url], theirs[url]) > 1]
                print(
                    f"\narrived: curation {len(found)} ({len(found) / count:.4f}), img2dataset {len(theirs)} "
                    f"({len(theirs) / count:.4f}); only curation {len(found.keys() - theirs.keys())}, only img2dataset "
                    f"{len(theirs.keys() - found.keys())}; sizes more than a pixel apart: {len(off)}\n"
                    f"curation / img2dataset: {rate / peer_rate:.2f}"
                )
    finally:
        web.terminate()


def _apart(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]))


if __name__ == "__main__":
    main()
