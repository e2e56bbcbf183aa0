"""Writing samples that are in memory: MB/s and samples/s of one process, beside img2dataset's and datasets' writers.

    python benchmarks/export_writers.py make /tmp/samples
    python benchmarks/export_writers.py curation /tmp/samples
    PEERS/bin/python benchmarks/export_writers.py img2dataset /tmp/samples
    python benchmarks/export_writers.py datasets-parquet /tmp/samples

PEERS is an environment with img2dataset. The pictures are 256-pixel JPEGs cut from scikit-image's photographs.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

PICTURES = 200
SAMPLES = 10_000


def make(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    photographs = [data.chelsea(), data.coffee(), data.astronaut(), data.rocket()]
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        photograph = photographs[number % len(photographs)]
        top, left = (int(rng.integers(0, size - 256)) for size in photograph.shape[:2])
        out = io.BytesIO()
        Image.fromarray(photograph[top : top + 256, left : left + 256]).save(out, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(out.getvalue())


def described(number: int) -> dict:
    return {
        "sample_id": f"{number * 2654435761 % 2**128:032x}",
        "url": f"https://host{number % 997}.example/pictures/{number}.jpg",
        "text": f"A photograph with the number {number} of a thing on a table",
        "alt": f"A photograph with the number {number} of a thing on a table",
        "page_url": f"https://host{number % 997}.example/page{number // 7}.html",
        "language": "en",
        "partition": "en",
        "sha256": f"{number:064x}",
        "phash": f"{number * 11400714819323198485 % 2**64:016x}",
        "original_width": 640,
        "original_height": 480,
        "min_side": 480,
        "aspect": 1.33,
        "width": 256,
        "height": 256,
        "similarity": 0.31,
        "image_format": "jpeg",
    }


def by_curation(pictures: list[bytes], folder: Path, kinds: tuple[str, ...]) -> None:
    import pyarrow as pa

    from curation.publish.export import Outputs
    from curation.publish.quality import Quality
    from curation.publish.settings import Publish
    from curation.publish.writers import file_of
    from curation.store import TableWriter

    quality, table = Quality(), None
    paths = {kind: folder / f"{kind}.out" for kind in kinds}
    with contextlib.ExitStack() as stack:
        outputs = Outputs(stack, Publish(), {kind: path for kind, path in paths.items() if kind != "metadata"})
        for start in range(0, SAMPLES, 1024):
            rows = [described(n) for n in range(start, min(start + 1024, SAMPLES))]
            if "metadata" in paths:
                batch = pa.RecordBatch.from_pylist(rows)
                table = table or TableWriter(paths["metadata"], batch.schema)
                table.write(batch)
            for number, row in enumerate(rows, start):
                row |= {"key": f"{number:012d}", "dump": "d", "shard": 0, "image": pictures[number % PICTURES]}
                outputs.add(row)
            quality.add_rows(rows)
        if table:
            table.close()
    for kind, path in paths.items():
        file_of(kind, path)  # sha256 is part of an export


def by_img2dataset(pictures: list[bytes], folder: Path) -> None:
    import pyarrow as pa
    from img2dataset.writer import WebDatasetSampleWriter

    names = [name for name in described(0) if name != "text"]
    first = described(0)
    schema = pa.schema([pa.field(name, pa.array([first[name]]).type) for name in names])
    schema = schema.append(pa.field("key", pa.string())).append(pa.field("caption", pa.string()))
    writer = WebDatasetSampleWriter(0, str(folder), True, 5, schema, "jpg")
    for number in range(SAMPLES):
        row = described(number)
        key, caption = f"{number:09d}", row.pop("text")
        writer.write(pictures[number % PICTURES], key, caption, row | {"key": key, "caption": caption})
    writer.close()


def rows_with_pictures(pictures: list[bytes]) -> list[dict]:
    return [described(n) | {"image": {"bytes": pictures[n % PICTURES], "path": None}} for n in range(SAMPLES)]


def by_datasets(pictures: list[bytes], folder: Path) -> None:
    from datasets.arrow_writer import ArrowWriter

    writer = ArrowWriter(path=str(folder / "out.arrow"))
    for number in range(SAMPLES):
        writer.write(described(number) | {"image": {"bytes": pictures[number % PICTURES], "path": None}})
    writer.finalize()


def by_datasets_parquet(pictures: list[bytes], folder: Path) -> None:
    from datasets import Dataset

    rows = rows_with_pictures(pictures)
    Dataset.from_list(rows).to_parquet(str(folder / "out.parquet"))


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        make(folder)
        return
    pictures = [(folder / f"{number}.jpg").read_bytes() for number in range(PICTURES)]
    writers = {
        "curation": lambda out: by_curation(pictures, out, ("webdataset", "metadata")),
        "curation-tar": lambda out: by_curation(pictures, out, ("webdataset",)),
        "img2dataset": lambda out: by_img2dataset(pictures, out),
        "datasets-arrow": lambda out: by_datasets(pictures, out),
        "datasets-parquet": lambda out: by_datasets_parquet(pictures, out),
    }
    best = None
    for _ in range(3):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            wall, cpu = time.perf_counter(), time.process_time()
            writers[what](Path(out))
            taken = (time.process_time() - cpu, time.perf_counter() - wall)
            size = sum(path.stat().st_size for path in Path(out).iterdir())
        best = min(best or taken, taken)
    megabytes = sum(len(pictures[n % PICTURES]) for n in range(SAMPLES)) / 1e6
    print(
        json.dumps(
            {
                "writer": what,
                "samples": SAMPLES,
                "picture_mb": round(megabytes),
                "written_mb": round(size / 1e6),
                "cpu_s": round(best[0], 2),
                "wall_s": round(best[1], 2),
                "mb_per_cpu_s": round(megabytes / best[0]),
                "samples_per_cpu_s": round(SAMPLES / best[0]),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            }
        )
    )


if __name__ == "__main__":
    main()
