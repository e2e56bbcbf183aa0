"""From encoded bytes to the perceptual hash: ours beside imagehash on Pillow, CPU time of one thread.

    python benchmarks/download_phash.py

The pictures are those of download_web.py. `bits apart` compares hashes of the same file: ours is made from the picture
scaled to 256 px, as every copy of it will be, Pillow's from all pixels. From the same pixels the bits are identical:
tests/curation/images/test_phash.py.

Second table: JPEGs by size, of a photograph (scikit-learn's china.jpg) laid side by side, so that each pixel costs what
it costs in a photograph.
"""

import io
import statistics
import time
from collections import defaultdict
from pathlib import Path

import imagehash
import numpy as np
from download_web import pictures
from PIL import Image
from sklearn.datasets import load_sample_image

from curation.images import gif_kernel, phash_kernel, png_kernel  # noqa: F401  as decoders have them after 200 pictures
from curation.images.decode import measure_picture


def of_pillow(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        return str(imagehash.phash(picture))


def of_ours(data: bytes) -> str:
    return measure_picture(data, "")[0]


def by_size() -> None:
    photograph = load_sample_image("china.jpg")
    print("| JPEG, px | KiB | imagehash on Pillow, ms | ours, ms | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for width, height in ((640, 427), (1280, 960), (2048, 1536), (4000, 3000)):
        times = (-(-height // photograph.shape[0]), -(-width // photograph.shape[1]), 1)
        out = io.BytesIO()
        Image.fromarray(np.tile(photograph, times)[:height, :width]).save(out, "JPEG", quality=85)
        took = []
        for made in (of_pillow, of_ours):
            rounds = []
            for _ in range(5):
                began = time.thread_time()
                made(out.getvalue())
                rounds.append((time.thread_time() - began) * 1000)
            took.append(min(rounds))
        kib = len(out.getvalue()) / 1024
        print(f"| {width} x {height} | {kib:.0f} | {took[0]:.1f} | {took[1]:.1f} | {took[0] / took[1]:.1f} |")


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
    print(f"| all | {count} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} | |\n")
    by_size()


if __name__ == "__main__":
    main()
