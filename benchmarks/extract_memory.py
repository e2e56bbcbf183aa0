"""Peak memory of extract over growing archives.

python benchmarks/extract_memory.py ARCHIVE [--kind warc] [--times 1 10]

The archive is read as often as `times` says, as one stream, each in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import BinaryIO, cast


class Repeated:
    """A file read several times in a row; gzip members may follow one another."""

    def __init__(self, path: Path, times: int) -> None:
        self._left = [path] * times
        self._stream: BinaryIO | None = None

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._stream is None:
                if not self._left:
                    return b""
                self._stream = self._left.pop().open("rb")
            if part := self._stream.read(size):
                return part
            self._stream.close()
            self._stream = None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("archive", type=Path)
    arguments.add_argument("--kind", choices=("wat", "warc"), default="warc")
    arguments.add_argument("--times", type=int, nargs="+", default=[1, 10])
    arguments.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if not given.alone:
        for times in given.times:
            own = [str(given.archive), "--kind", given.kind, "--times", str(times), "--alone"]
            subprocess.run([sys.executable, __file__, *own], check=True)
        return
    from curation.stages.extract import Extract

    tally: Counter[str] = Counter()
    stream = cast(BinaryIO, Repeated(given.archive, given.times[0]))
    started = time.process_time()
    rows = sum(batch.num_rows for batch in Extract(archive=given.kind).read(stream, "x", tally))
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = tally["bytes_read"] / 1e6
    print(f"{size:8.1f} MB, {rows:8} rows, {peak:6.0f} MiB at most, {size / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
