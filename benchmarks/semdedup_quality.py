"""What each cosine of a model's embeddings finds and takes by mistake, by kind of change made to real pictures.

As dedup_quality.py does for pHash. Recall of a transform at a cosine: the share of pictures whose changed copy reaches
it with its original. Precision: of all pairs that reach it in the set of pictures and copies, those of one picture; and
the same without the pairs that a pHash within 4 finds anyway. Last, what clusters cost: the share of the pairs of one
picture above a cosine that lie in one cluster, and so are found.

    python benchmarks/semdedup_quality.py --pictures DIR --count 120
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from dedup_quality import TRANSFORMS, pictures
from PIL import Image

from curation.images.decode import measure_picture
from curation.joins.cosine import centroids, nearest
from curation.models.clip import load_clip

COSINES = (0.80, 0.85, 0.90, 0.92, 0.94, 0.96, 0.98, 0.99)
CLUSTERS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--pictures", type=Path, required=True)
    options.add_argument("--count", type=int, default=120)
    options.add_argument("--model", default="embedded")
    options.add_argument("--pretrained")
    given = options.parse_args()
    files = pictures(given.pictures, given.count)
    clip = load_clip(given.model, given.pretrained)
    vectors, looks = [], []
    for path in files:
        picture = Image.open(path).convert("RGB")
        bodies = [path.read_bytes(), *(transform(picture) for transform in TRANSFORMS.values())]
        looks.append([int(measure_picture(body, path.name)[0], 16) for body in bodies])
        vectors.append(clip.embed_images([np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies]))
    made = np.stack(vectors).astype(np.float16)  # as they are stored: (pictures, 1 + transforms, d)
    to_original = np.einsum("pd,ptd->pt", made[:, 0].astype(np.float32), made[:, 1:].astype(np.float32))
    print(f"{len(files)} pictures of {given.pictures}, {clip.identity}\n")
    print("| transform | " + " | ".join(f"{c:.2f}" for c in COSINES) + " |\n| --- |" + " ---: |" * len(COSINES))
    for at, name in enumerate(TRANSFORMS):
        print(f"| {name} | " + " | ".join(f"{(to_original[:, at] >= c).mean():.3f}" for c in COSINES) + " |")
    flat = made.reshape(-1, made.shape[-1])
    picture_of = np.repeat(np.arange(len(files)), made.shape[1])
    look = np.array(looks, np.uint64).ravel()
    i, j = np.triu_indices(len(flat), 1)
    cosine = (flat.astype(np.float32) @ flat.astype(np.float32).T)[i, j]
    same = picture_of[i] == picture_of[j]
    unseen = np.bitwise_count(look[i] ^ look[j]) > 4
    for title, of in (("precision", np.ones(len(i), bool)), ("precision beyond pHash 4", unseen)):
        found = [same[of & (cosine >= c)] for c in COSINES]
        print(f"| {title} | " + " | ".join(f"{one.mean():.4f}" if len(one) else "-" for one in found) + " |")
    print("| pairs of different pictures | " + " | ".join(str((~same & (cosine >= c)).sum()) for c in COSINES) + " |")
    print(f"\n{len(i):,} pairs, {same.sum():,} of one picture\n")
    print("| clusters | rows in one | " + " | ".join(f"{c:.2f}" for c in COSINES) + " |")
    print("| ---: | ---: |" + " ---: |" * len(COSINES))
    for clusters in CLUSTERS:
        of = nearest(flat, centroids(flat, clusters))
        together = of[i] == of[j]
        shares = [together[same & (cosine >= c)].mean() for c in COSINES]
        print(f"| {clusters} | {len(flat) // clusters} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
