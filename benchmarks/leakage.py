"""Planted leaks found by kind of change, hits on unrelated pictures, and the speed against a million items.

One half of the pictures is the evaluation set, the other half unrelated; copies of the first half through transforms
are the planted leaks. The cosine's threshold is calibrated on the unrelated half: the smallest that at most `--rate` of
them exceeds with their largest cosine to any item, the score that DataComp too compares with its threshold. It is set
on every second unrelated picture and the false positives are counted on the others.

    python benchmarks/leakage.py --pictures DIR --count 1000
    python benchmarks/leakage.py --items 1000000 --samples 10000
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dedup_quality import MIN_SPREAD, TRANSFORMS, pictures
from PIL import Image

from curation.evalsets import EVALSET, SPACE_KEY
from curation.images.decode import measure_picture
from curation.stages.leakage import Leakage

RADII = (0, 2, 4, 6, 8, 10)


def _bodies(path: Path) -> list[bytes]:
    picture = Image.open(path).convert("RGB")
    return [path.read_bytes(), *(transform(picture) for transform in TRANSFORMS.values())]


def _hash(body: bytes) -> tuple[int, float]:
    phash, spread = measure_picture(body, "")
    return int(phash, 16), spread


def quality(folder: Path, count: int, rate: float, embeddings: bool) -> None:
    files = pictures(folder, count)
    items, others = files[::2], files[1::2]
    with ProcessPoolExecutor(2) as pool:
        copies = list(pool.map(_bodies, items, chunksize=10))
        hashed = list(pool.map(_hash, (body for row in copies for body in row), chunksize=50))
        unrelated = list(pool.map(_hash, [path.read_bytes() for path in others], chunksize=50))
    looks = np.array([look for look, _ in hashed], np.uint64).reshape(len(items), -1)
    flat = np.array([spread < MIN_SPREAD for _, spread in hashed]).reshape(len(items), -1)
    nearest = np.full((len(TRANSFORMS), len(items)), 99)
    for at in range(len(TRANSFORMS)):
        bits = np.bitwise_count(looks[:, None, at + 1] ^ looks[None, :, 0]).astype(int)
        bits[flat[:, at + 1]] = 99
        bits[:, flat[:, 0]] = 99
        nearest[at] = bits.min(axis=1)
    kept = looks[~flat[:, 0], 0]
    false = np.array(
        [int(np.bitwise_count(np.uint64(h) ^ kept).min()) if spread >= MIN_SPREAD else 99 for h, spread in unrelated]
    )
    print(f"{len(items)} items, {len(others)} unrelated pictures\n")
    names = [f"pHash {r}" for r in RADII]
    columns = [[(nearest[at] <= r).mean() for at in range(len(TRANSFORMS))] for r in RADII]
    wrong = [(false <= r).mean() for r in RADII]
    if embeddings:
        from curation.models.clip import load_clip

        clip = load_clip("embedded")
        index = clip.embed_images([_rgb(row[0]) for row in copies])
        far = (clip.embed_images([_rgb(path.read_bytes()) for path in others]) @ index.T).max(axis=1)
        threshold = float(np.quantile(far[::2], 1 - rate, method="higher"))
        names.append(f"cosine {threshold:.3f}")
        columns.append(
            [
                ((clip.embed_images([_rgb(row[at + 1]) for row in copies]) @ index.T).max(axis=1) > threshold).mean()
                for at in range(len(TRANSFORMS))
            ]
        )
        wrong.append((far[1::2] > threshold).mean())
    print("| planted leak | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for at, name in enumerate(TRANSFORMS):
        print(f"| {name} | " + " | ".join(f"{column[at]:.3f}" for column in columns) + " |")
    print("| unrelated pictures hit | " + " | ".join(f"{one:.4f}" for one in wrong) + " |")


def _rgb(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def speed(n_items: int, n_samples: int, dim: int) -> None:
    rng = np.random.default_rng(0)

    def hashes(n: int) -> list[str]:
        return [f"{h:016x}" for h in rng.integers(0, 2**64, n, np.uint64).tolist()]

    def vectors(n: int) -> pa.ListArray:
        found = rng.normal(size=(n, dim)).astype(np.float16)
        return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * dim), pa.array(found.ravel()))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big" / "0.parquet"
        path.parent.mkdir()
        grams = pa.ListArray.from_arrays(
            pa.array(np.arange(n_items + 1, dtype=np.int32) * 4), pa.array(rng.integers(0, 2**62, n_items * 4))
        )
        columns = [
            pa.array([str(at) for at in range(n_items)]), pa.array([h * 4 for h in hashes(n_items)]),
            pa.array(hashes(n_items)), pa.array(np.full(n_items, 50, np.float32)), pa.nulls(n_items, pa.string()),
            grams, vectors(n_items), pa.nulls(n_items, pa.binary()),
        ]  # fmt: skip
        pq.write_table(pa.table(columns, schema=EVALSET.with_metadata({SPACE_KEY: b"embedded"})), path)
        del columns
        for cosine in (None, 0.9):
            stage = Leakage(evalsets=(str(path),), embedding_cosine=cosine)
            caption = " ".join(f"word{at}" for at in range(12))
            sample = {
                "sha256": [h * 4 for h in hashes(n_samples)], "phash": hashes(n_samples),
                "phash_spread": [50.0] * n_samples, "text": [caption] * n_samples,
            }  # fmt: skip
            if cosine:
                sample["img_emb"] = vectors(n_samples)
            batches = pa.table(sample).select(stage.consumes.names).cast(stage.consumes).to_batches(1024)
            started = time.perf_counter()
            assert stage._items.n == n_items
            loaded = time.perf_counter()
            list(stage(iter(batches[:1]), Counter()))
            warm = time.perf_counter()
            list(stage(iter(batches), Counter()))
            done = time.perf_counter() - warm
            peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
            what = "sha256, pHash, text" + (f", cosine of {dim}" if cosine else "")
            print(
                f"{n_items:,} items, {n_samples:,} samples, {what}: load {loaded - started:.1f} s, "
                f"match {done:.1f} s, peak {int(peak.split()[1]) >> 10} MiB",
                flush=True,
            )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--pictures", type=Path)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--rate", type=float, default=0.002)
    options.add_argument("--no-embeddings", action="store_true")
    options.add_argument("--items", type=int, default=0)
    options.add_argument("--samples", type=int, default=10_000)
    options.add_argument("--dim", type=int, default=512)
    given = options.parse_args()
    if given.pictures:
        quality(given.pictures, given.count, given.rate, not given.no_embeddings)
    if given.items:
        speed(given.items, given.samples, given.dim)


if __name__ == "__main__":
    main()
