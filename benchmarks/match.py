"""The whole of a match task at the scale of a block: keys in, decisions out, alone and against an index.

Of the rows, 5 % repeat the bytes of another, 10 % are moved by one or two bits of another's pHash, 5 % share a URL; the
other bits are even. Each size runs in a process of its own. The time to read tables from the store is not part of it.

    python benchmarks/match.py --rows 1000000 --stage dedup
    python benchmarks/match.py --rows 1000000 --stage dedup --index-rows 10000000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.stages.base import Join
from curation.stages.dedup import Dedup
from curation.stages.pairs import Pairs

SHARD_ROWS = 15_000


def keys_of(stage: Join, rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)

    def ids() -> pa.Array:
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))])

    look, url = (rng.integers(0, 2**64, rows, np.uint64) for _ in range(2))
    at = rng.permutation(rows)
    near, of = at[: rows // 10], at[-(rows // 10) :]
    look[near] = look[of] ^ (np.uint64(1) << rng.integers(0, 64, len(near)).astype(np.uint64))
    url[at[: rows // 20]] = url[of[: rows // 20]]
    content = ids()
    repeated = np.arange(rows)
    repeated[at[: rows // 20]] = of[: rows // 20]
    columns = {
        "pair": ids(),
        "content": content.take(pa.array(repeated)),
        "url": pa.array(url),
        "look": pa.array(look),
        "pixels": pa.array(rng.integers(10_000, 10_000_000, rows)),
        "similarity": pa.array(rng.normal(0.3, 0.05, rows).astype(np.float32)),
        "shard": pa.array((np.arange(rows) // SHARD_ROWS).astype(np.int32)),
    }
    return pa.table({name: columns[name] for name in [*stage.keys.names, "shard"]})


def peak_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--stage", choices=["dedup", "pairs"], default="dedup")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--index-rows", type=int, default=0, help="kept before, in generations as large as the block")
    given = options.parse_args()
    stage: Join = Dedup() if given.stage == "dedup" else Pairs()
    stage.match(keys_of(stage, 30_000, 9), iter(()))  # compiles
    keys = keys_of(stage, given.rows, 0)
    generations = max(1, given.index_rows // given.rows)
    index = (
        keys_of(stage, given.index_rows // generations, 1 + at) for at in range(generations if given.index_rows else 0)
    )
    held = peak_mib()
    started = time.perf_counter()
    decisions = stage.match(keys, index)
    seconds = time.perf_counter() - started
    kept = stage.kept(decisions).num_rows
    print(
        f"{given.stage}, {given.rows:,} rows, {given.index_rows:,} in the index: "
        f"{seconds:.1f} s, peak {peak_mib()} MiB ({held} before), {kept:,} kept",
        flush=True,
    )


if __name__ == "__main__":
    main()
