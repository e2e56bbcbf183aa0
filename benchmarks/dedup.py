"""Near-duplicates among 64-bit hashes at a radius: this project's join beside imagededup's and faiss' binary indexes.

Real hashes: pictures of a folder, each through random transforms, hashed as the download stage hashes. They are few, so
the larger sets are copies of the whole set, each moved (XOR) by the difference of two real hashes: distances within a
copy stay, and bits that are alike in all real hashes stay alike, so that the skew is the real one.

Peers run in an environment of their own (--peers PYTHON with imagededup and faiss-cpu), each in its own process with a
time limit; all answer on the same hashes and their pairs are compared with ours.

    python benchmarks/dedup.py --pictures DIR --peers /tmp/peers/bin/python --rows 100000 1000000 10000000
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PEERS = """
import json, sys, time
import numpy as np
peak = lambda: next(int(x.split()[1]) >> 10 for x in open("/proc/self/status") if x.startswith("VmHWM"))
if __name__ == "__main__":  # imagededup starts processes that read this file again
    name, path, radius = sys.argv[1], sys.argv[2], int(sys.argv[3])
    hashes = np.load(path)
    started = time.perf_counter()
    if name.startswith("imagededup"):
        from imagededup.handlers.search.retrieval import HashEval
        named = {str(at): f"{value:016x}" for at, value in enumerate(hashes.tolist())}
        from imagededup.methods import PHash
        kind = name.split(":")[1]
        found = HashEval(named, named, PHash.hamming_distance, verbose=False, threshold=radius, search_method=kind,
                         num_dist_workers=2).retrieve_results(scores=False)
        pairs = sum(len(near) for near in found.values()) // 2
    else:
        import faiss
        faiss.omp_set_num_threads(2)
        bytes_ = hashes.view(np.uint8).reshape(-1, 8)
        if name == "faiss:flat":
            index = faiss.IndexBinaryFlat(64)
        elif name == "faiss:multihash":
            index = faiss.IndexBinaryMultiHash(64, 4, 16)
            index.nflip = radius // 4
        else:
            raise SystemExit(name)
        index.add(bytes_)
        pairs = 0
        for start in range(0, len(bytes_), 4096):
            limits, _, _ = index.range_search(bytes_[start:start + 4096], radius + 1)
            pairs += int(limits[-1])
        pairs = (pairs - len(bytes_)) // 2
    print(json.dumps({"s": time.perf_counter() - started, "pairs": pairs,
                      "mib": peak()}))
"""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--pictures", type=Path, required=True)
    options.add_argument("--cache", type=Path, default=Path("/tmp/real_hashes.npy"))
    options.add_argument("--peers", default="")
    options.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    options.add_argument("--radius", type=int, nargs="+", default=[4])
    options.add_argument("--limit-s", type=int, default=180)
    options.add_argument("--brute-force", type=int, default=0, help="compare so many real hashes with all pairs")
    given = options.parse_args()
    real = real_hashes(given.pictures, given.cache)
    print(f"{len(real)} real hashes of {given.pictures}, {len(np.unique(real))} distinct", flush=True)
    if given.brute_force:
        prove(real[: given.brute_force], given.radius)
    for rows in given.rows:
        hashes = grown(np.unique(real), rows)
        path = given.cache.with_name(f"hashes_{rows}.npy")
        np.save(path, hashes)
        for radius in given.radius:
            answer = json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--pictures", "x", "--cache", "x", "--one", str(path), str(radius)],
                    capture_output=True, text=True, check=True,
                ).stdout
            )  # fmt: skip
            tell("curation", rows, radius, answer)
            if given.peers:
                for peer in ("faiss:multihash", "faiss:flat", "imagededup:bktree", "imagededup:brute_force_cython"):
                    beside(given.peers, peer, path, rows, radius, given.limit_s)


def beside(python: str, peer: str, path: Path, rows: int, radius: int, limit_s: int) -> None:
    script = path.with_name("dedup_peers.py")
    script.write_text(PEERS)
    command = [python, str(script), peer, str(path), str(radius)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        print(f"| {peer} | {rows:,} | {radius} | not done in {limit_s} s | | |", flush=True)
        return
    if done.returncode:
        print(f"| {peer} | {rows:,} | {radius} | failed: {done.stderr.strip().splitlines()[-1][:80]} | | |", flush=True)
    else:
        tell(peer, rows, radius, json.loads(done.stdout.splitlines()[-1]))


def tell(who: str, rows: int, radius: int, answer: dict[str, float]) -> None:
    print(f"| {who} | {rows:,} | {radius} | {answer['s']:.2f} | {answer['pairs']:,} | {answer['mib']:,} |", flush=True)


def one(path: str, radius: int) -> None:
    from curation.joins.hamming import pairs_within

    hashes = np.load(path)
    pairs_within(hashes[:4096], radius)  # compiled here: 2 to 4 s, once a process
    started = time.perf_counter()
    left, _ = pairs_within(hashes, radius)
    seconds = time.perf_counter() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    mib = int(peak.split()[1]) >> 10  # not getrusage: that begins with the parent's
    print(json.dumps({"s": seconds, "pairs": len(left), "mib": mib}))


def prove(hashes: np.ndarray, radii: list[int]) -> None:
    from curation.joins.hamming import pairs_within

    counts = np.zeros(65, np.int64)
    sums = np.zeros(65, np.uint64)  # of i * n + j, modulo 2**64: equal sets of pairs have equal sums
    for start in range(0, len(hashes), 64):
        distances = np.bitwise_count(hashes[start : start + 64, None] ^ hashes[None, start:])
        distances[np.tril_indices(len(distances), 0, distances.shape[1])] = 99
        for radius in radii:
            i, j = np.nonzero(distances <= radius)
            counts[radius] += len(i)
            sums[radius] += (
                (i + start).astype(np.uint64) * np.uint64(len(hashes)) + (j + start).astype(np.uint64)
            ).sum()
    for radius in radii:
        i, j = (side.astype(np.uint64) for side in pairs_within(hashes, radius))
        same = len(i) == counts[radius] and (i * np.uint64(len(hashes)) + j).sum() == sums[radius]
        print(f"{len(hashes)} real hashes, radius {radius}: {len(i)} pairs, all pairs say the same: {same}", flush=True)


def grown(real: np.ndarray, rows: int) -> np.ndarray:
    """So many hashes: the real ones, and copies of the whole set, each moved by the difference of two real hashes."""
    rng = np.random.default_rng(0)
    parts = [real[:rows]]
    while sum(map(len, parts)) < rows:
        a, b = real[rng.integers(0, len(real), 2)]
        parts.append(real ^ (a ^ b))
    return np.concatenate(parts)[:rows]


def real_hashes(folder: Path, cache: Path, copies: int = 44) -> np.ndarray:
    """Hashes of every picture and of its copies through random transforms, duplicates of hashes included."""
    if cache.exists():
        return np.load(cache)
    from concurrent.futures import ProcessPoolExecutor

    files = sorted(path for path in folder.rglob("*.jpg"))
    with ProcessPoolExecutor(2) as pool:
        found = np.concatenate(list(pool.map(_hashed, files, [copies] * len(files), chunksize=20)))
    np.save(cache, found)
    return found


def _hashed(path: Path, copies: int) -> np.ndarray:
    from PIL import Image, ImageEnhance, ImageFilter

    from curation.images.phash import phash

    rng = np.random.default_rng(int.from_bytes(path.name.encode()[-8:], "big"))
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    found = [int(phash(np.asarray(picture))[0], 16)]
    for _ in range(copies):
        kind, strength = rng.integers(0, 4), rng.random()
        width, height = picture.size
        if kind == 0:
            cut = strength * 0.12
            copy = picture.crop((int(cut * width * rng.random()), int(cut * height * rng.random()), width, height))
        elif kind == 1:
            copy = picture.filter(ImageFilter.GaussianBlur(0.5 + 4 * strength))
        elif kind == 2:
            copy = ImageEnhance.Contrast(picture).enhance(0.5 + strength)
        else:
            copy = picture.resize((int(40 + 120 * strength), int(40 + 120 * rng.random())))
        found.append(int(phash(np.asarray(copy))[0], 16))
    return np.array(found, np.uint64)


if __name__ == "__main__":
    if "--one" in sys.argv:
        one(sys.argv[-2], int(sys.argv[-1]))
    else:
        main()
