"""From encoded bytes to the perceptual hash: ours beside imagehash on Pillow, CPU time of one thread.

    python benchmarks/download_phash.py

The pictures are those of download_web.py. `bits apart` compares hashes of the same file: ours is made from the picture
scaled to 256 px, as every copy of it will be, Pillow's from all pixels. From the same pixels the bits are identical:
tests/curation/images/test_phash.py.
"""

import io
import statistics
import time
from collections import defaultdict
from pathlib import Path

import imagehash
from download_web import pictures
from PIL import Image

from curation.images.decode import measure_picture


def of_pillow(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        return str(imagehash.phash(picture))


def of_ours(data: bytes) -> str:
    return measure_picture(data, "")[0]


def main() -> None:
    files = defaultdict(list)
    for data, media in pictures(Path(__file__).resolve().parents[2] / "shared" / "data"):
        files[media].append(data)
    print("| format | files | imagehash on Pillow, ms | ours, ms | ratio | bits apart, mean |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    sums = defaultdict(float)
    for media, bodies in sorted(files.items()):
        took = {}
        for name, made in (("theirs", of_pillow), ("ours", of_ours)):
            made(bodies[0])
            rounds = []
            for _ in range(3):
                began = time.thread_time()
                hashes = [made(data) for data in bodies]
                rounds.append((time.thread_time() - began) / len(bodies) * 1000)
            took[name] = min(rounds), hashes
            sums[name] += min(rounds) * len(bodies)
        pairs = zip(took["theirs"][1], took["ours"][1], strict=True)
        apart = statistics.mean((int(one, 16) ^ int(other, 16)).bit_count() for one, other in pairs)
        theirs, ours = took["theirs"][0], took["ours"][0]
        print(f"| {media} | {len(bodies)} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} | {apart:.1f} |")
    count = sum(map(len, files.values()))
    theirs, ours = sums["theirs"] / count, sums["ours"] / count
    print(f"| all | {count} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} | |")


if __name__ == "__main__":
    main()
