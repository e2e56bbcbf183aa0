"""CapFilt on pictures with planted wrong captions, and captions a second beside a plain generate loop.

    python benchmarks/capfilt.py PICTURES                                    # a folder of captions.jsonl and images/
    python benchmarks/capfilt.py FOLDER --captioner Salesforce/blip-image-captioning-base --matcher ...

captions.jsonl has a line a picture: image, split, en (a list of captions); split dev is read. Half of the pictures get
the caption of another one. Whether an original is right is known. A synthetic caption has no key, so a judge that takes
no part in the filter tells: the embedded CLIP, with the cosine that best parts right from wrong captions on the first
half of the pictures, and the share that passes corrected for how often it errs there (Rogan and Gladen 1978). The
table is of the second half.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation.captions.policies import Policy, choose, draws_synthetic
from curation.models.captioner import load_captioner
from curation.models.matcher import load_clip_matcher
from curation.stages.caption import Caption

BATCH = 32
ROUNDS = 3


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--speed-pictures", type=int, default=128)
    parser.add_argument("--captioner", default="embedded")
    parser.add_argument("--matcher", default="embedded")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of a CPU: on a machine that others use too")
    arguments = parser.parse_args()
    files, right = read_dev(arguments.folder, arguments.pictures)
    n = len(files)
    wrong = np.random.default_rng(0).random(n) < 0.5
    texts = [right[(at + n // 2) % n] if wrong[at] else right[at] for at in range(n)]
    half = n // 2
    judge = Judge(files[:half], right[:half], [right[(at + 7) % half] for at in range(half)])
    models = {"captioner": arguments.captioner, "matcher": arguments.matcher}
    quality(files[half:], texts[half:], ~wrong[half:], judge, models)
    if arguments.speed_pictures:
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        speed(files[: arguments.speed_pictures], texts[: arguments.speed_pictures], models, clock)


def read_dev(folder: Path, most: int) -> tuple[list[bytes], list[str]]:
    """Files of the dev pictures and the first caption of each."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev"][:most]
    return [(folder / "images" / row["image"]).read_bytes() for row in rows], [row["en"][0] for row in rows]


class Judge:
    """The embedded CLIP, calibrated on pictures that the table does not hold."""

    def __init__(self, files: Sequence[bytes], right: Sequence[str], wrong: Sequence[str]) -> None:
        self._clip = load_clip_matcher("embedded")
        scores = self.cosines(files, right), self.cosines(files, wrong)
        bounds = np.sort(np.concatenate(scores))
        self._bound = max(bounds, key=lambda bound: (scores[0] >= bound).mean() - (scores[1] >= bound).mean())
        self.passes_right, self.passes_wrong = ((part >= self._bound).mean() for part in scores)

    def cosines(self, files: Sequence[bytes], texts: Sequence[str]) -> np.ndarray:
        """Cosine of each text with its picture."""
        return self._clip.match([pixels(file) for file in files], texts)

    def share_right(self, files: Sequence[bytes], texts: Sequence[str]) -> float:
        """Share of right captions, corrected for the judge's errors."""
        passed = float((self.cosines(files, texts) >= self._bound).mean())
        return float(np.clip((passed - self.passes_wrong) / (self.passes_right - self.passes_wrong), 0, 1))


def quality(
    files: Sequence[bytes], texts: Sequence[str], right: np.ndarray, judge: Judge, models: dict[str, str]
) -> None:
    """Pairs and the share of right ones, as the web gave them, filtered, synthetic, and mixed."""
    rows = measured(Caption(**models, policy="keep_text"), files, texts)
    policies = {"both_above_threshold": 0.5, "prefer_synthetic": 0.8, "mix": 0.0}
    chosen_by = {policy: [choices(policy, threshold, row) for row in rows] for policy, threshold in policies.items()}
    n = range(len(files))
    made = [at for at in n if rows[at]["synthetic"]]

    def chosen(policy: str, source: str) -> list[int]:
        return [at for at in n if source in chosen_by[policy][at]]

    table: dict[str, tuple[list[int], list[int]]] = {
        "raw": (list(n), []),
        "filtered (web text from 0.5)": (chosen("both_above_threshold", "text"), []),
        "synthetic only": ([], made),
        "synthetic, filtered (from 0.5)": ([], chosen("both_above_threshold", "synthetic")),
    }
    table |= {policy: (chosen(policy, "text"), chosen(policy, "synthetic")) for policy in policies}
    print(f"{len(files)} pictures, {int((~right).sum())} with the caption of another; the judge passes", end=" ")
    print(f"{judge.passes_right:.0%} of right and {judge.passes_wrong:.0%} of wrong captions\n")
    print("| | web texts | of them right | synthetic | of them right | pairs | right |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (web, synthetic) in table.items():
        web_right = float(right[web].mean()) if web else 0.0
        texts_made = [rows[at]["synthetic"] for at in synthetic]
        made_right = judge.share_right([files[at] for at in synthetic], texts_made) if synthetic else 0.0
        pairs = len(web) + len(synthetic)
        share = (len(web) * web_right + len(synthetic) * made_right) / max(1, pairs)
        cells = [len(web), f"{web_right:.0%}" if web else "", len(synthetic), f"{made_right:.0%}" if synthetic else ""]
        print(f"| {name} | {' | '.join(map(str, cells))} | {pairs} | {share:.0%} |")


def choices(policy: Policy, threshold: float, row: dict[str, Any]) -> list[str]:
    """Sources of the texts that a policy takes: captions are made and matched once, each policy judges them."""
    scores = (row["itm_text"], row["itm_synthetic"])
    drawn = draws_synthetic(row["sample_id"], 0.5, 0)
    return [source for _, source in choose(policy, threshold, row["text"], row["synthetic"], *scores, drawn=drawn)]


def speed(
    files: Sequence[bytes], texts: Sequence[str], models: dict[str, str], clock: Callable[[], float]
) -> None:  # fmt: skip
    """Captions and tokens a second: medians of the whole stage, of its captioner alone, and of plain loops."""
    captioner = load_captioner(models["captioner"])
    images = [pixels(file) for file in files]

    def plain(batch: int) -> Callable[[], list[str]]:
        def loop() -> list[str]:
            made: list[str] = []
            for start in range(0, len(images), batch):
                inputs = captioner._inputs(images[start : start + batch], "")
                with torch.inference_mode():
                    tokens = captioner.model.generate(
                        **inputs, do_sample=True, top_p=0.9, repetition_penalty=1.1, min_new_tokens=5, max_new_tokens=20
                    )
                made += captioner._tokenizer.batch_decode(tokens, skip_special_tokens=True)
            return made

        return loop

    contenders: dict[str, Callable[[], list[str]]] = {
        "plain generate, picture by picture": plain(1),
        f"plain generate, batches of {BATCH}": plain(BATCH),
        "captioner of the stage": lambda: captioner.caption(images, top_p=0.9, repetition_penalty=1.1),
        "stage: decode, caption, match both texts": lambda: [
            row["synthetic"] or "" for row in measured(Caption(**models), files, texts)
        ],
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(1 + ROUNDS):  # in turns: what else the machine does meets all of them
        for name, work in contenders.items():
            started = clock()
            made = work()
            seconds = clock() - started
            tokens = sum(len(one) + 1 for one in captioner.tokens(made))  # each ends with one
            rates[name].append((len(images) / seconds, tokens / seconds))
    print(f"\n| {len(images)} pictures | captions/s | tokens/s |\n| --- | --- | --- |")
    for name, measured_rates in rates.items():
        captions, tokens = np.median(measured_rates[1:], axis=0)  # the first one warms the models up
        print(f"| {name} | {captions:.1f} | {tokens:.0f} |")


def measured(stage: Caption, files: Sequence[bytes], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The stage's answer on pictures and their texts."""
    columns = {"sample_id": [f"{at:032x}" for at in range(len(files))], "image": list(files), "text": list(texts)}
    batch = pa.RecordBatch.from_pydict(columns | {"partition": ["en"] * len(files)}, schema=stage.consumes)
    (answer,) = stage(iter([batch]), Counter())
    return [
        {**row, "text": text, "sample_id": sample_id}
        for row, text, sample_id in zip(answer.to_pylist(), texts, columns["sample_id"], strict=True)
    ]


def pixels(file: bytes) -> np.ndarray:
    """The picture, uint8 (h, w, 3), RGB."""
    from curation.images.stored import decode_stored

    return decode_stored(file)


if __name__ == "__main__":
    main()
