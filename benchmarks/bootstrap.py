"""Rounds of bootstrapping on real pictures, half of whose alt texts are wrong: metrics of both models round by round.

    python benchmarks/bootstrap.py ../shared/data/captions/flickr8k [--human 150] [--web 450] [--rounds 2] [--steps 70]

Pictures of the split "train": the first ones with the captions of people, the next ones with one caption as their alt
text, which for half of them is another picture's. Held out are pictures of "dev" with four references. The captioner
begins as in benchmarks/train_captioner.py, with the layers between picture and words drawn anew; the filter likewise,
and with a new matching head. Beside the rounds stands a captioner that learnt from the captions by
people and every web text, wrong ones included, as long as a round does. Which web texts are right is known, so the
share of right ones among those that were kept is, too.

The frozen towers see each picture once: their outputs are kept by the picture's pixels.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_captioner import held_out, remember_towers, write_student

from curation.captions.bootstrap import PART_ROWS, Plan, plan, run
from curation.captions.evaluation import Judges, evaluate_version
from curation.captions.records import Record, Records, read_folder, write_records
from curation.captions.training import Job, run_job
from curation.models import lite_blip
from curation.models.matcher import open_matcher
from curation.store import Store

METRICS = ("bleu4", "rouge_l", "cider", "clip_score", "itm_auc")


def write_matcher(folder: Path) -> str:
    """The embedded matcher's files with its head and the layers after the frozen tower drawn anew."""
    torch.manual_seed(0)
    matcher = open_matcher("embedded", device="cpu")
    fresh = lite_blip.LiteBlipVisionModel(matcher.model.config.vision_config)
    fresh.tower.load_state_dict(matcher.model.vision_model.tower.state_dict())
    matcher.model.vision_model = fresh
    matcher.model.itm_head.reset_parameters()
    matcher.save(folder)
    return str(folder)


def plant(records: list[Record]) -> tuple[list[Record], list[bool]]:
    """Web pairs: one caption as the alt text, of half of the pictures another picture's; and which are right."""
    wrong = np.random.default_rng(0).random(len(records)) < 0.5
    texts = [records[(at + len(records) // 2) % len(records)].captions[0] if wrong[at] else record.captions[0]
             for at, record in enumerate(records)]  # fmt: skip
    pairs = [record._replace(captions=(), alt=text) for record, text in zip(records, texts, strict=True)]
    return pairs, [not one for one in wrong]


def right_share(store: Store, planned: Plan, number: int, right: list[bool]) -> float:
    """Share of right ones among the web texts that a round kept."""
    web = Records(store, planned.settings.web)
    kept = []
    for start in range(0, len(web), PART_ROWS):
        part = json.loads(store.read_bytes(f"{planned.folder}/{number}-clean/{start // PART_ROWS:06d}.json"))
        for at, captions in enumerate(part["captions"], start):
            if web[at].alt in captions:
                kept.append(right[at])
    return float(np.mean(kept)) if kept else 0.0


def main() -> None:
    """Run the rounds and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--human", type=int, default=150)
    parser.add_argument("--web", type=int, default=450)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=70)
    asked = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("curation").setLevel("INFO")
    began = time.monotonic()
    remember_towers()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        pictures = list(read_folder(asked.pictures, split="train", most=asked.human + asked.web))
        people, (pairs, right) = pictures[: asked.human], plant(pictures[asked.human :])
        quick = {"max_steps": asked.steps, "batch_size": 64, "micro_batch": 64, "learning_rate": 1e-3, "warmup": 0.1,
                 "device": "cpu"}  # fmt: skip
        given = {
            "name": "flickr", "rounds": asked.rounds,
            "human": write_records(store, people).key, "web": write_records(store, pairs).key,
            "held_out": write_records(store, held_out(asked.pictures, asked.held_out)).key,
            "training": quick | {"student": write_student(Path(folder) / "student"), "max_tokens": 26},
            "matching": quick | {"matcher": write_matcher(Path(folder) / "matcher")},
        }  # fmt: skip
        planned = plan(store, given)
        rows = run(store, planned, by="benchmark")

        taken = [record._replace(captions=(record.alt or "",)) for record in pairs]
        job = Job(store=store.root, name="unfiltered", records=write_records(store, [*taken, *people]).key,
                  settings=planned.settings.training)  # fmt: skip
        judges = Judges(Records(store, given["held_out"]), planned.settings.protocol, device="cpu")
        made = run_job(job).version
        unfiltered = evaluate_version(store, "unfiltered", made, judges, untrained=False, device="cpu").metrics

        print(f"| | {' | '.join(METRICS)} | promoted", end=" | ")
        print("filter itm_auc | promoted | web texts | of them right | synthetic |")
        print("| --- |" + " ---: |" * len(METRICS) + " --- | ---: | --- | ---: | ---: | ---: |")
        for row in rows:
            one, other, cleaned = row["captioner"], row["filter"], row.get("cleaned")
            cells = [str(row["round"]), *(f"{one['metrics'][name]:.3f}" for name in METRICS), told(one)]
            cells += [f"{other['metrics']['itm_auc']:.3f}", told(other)]
            if cleaned:
                share = f"{right_share(store, planned, row['round'], right):.0%}"
                cells += [str(cleaned["web_kept"]), share, str(cleaned["synthetic_kept"])]
            else:
                cells += [""] * 3
            print(f"| {' | '.join(cells)} |")
        cells = ["people and all web texts", *(f"{unfiltered[name]:.3f}" for name in METRICS), "", "", ""]
        print(f"| {' | '.join([*cells, str(len(right)), f'{np.mean(right):.0%}', '0'])} |")
        print(*(f"round {row['round']}: {row[role]['reason']}" for row in rows[1:] for role in ("captioner", "filter")),
              sep="\n")  # fmt: skip
        print(f"{time.monotonic() - began:.0f} s, the machine shared")


def told(found: dict[str, object]) -> str:
    """Whether a model was promoted; "" for one that began."""
    return ("yes" if found["promoted"] else "no") if "promoted" in found else ""


if __name__ == "__main__":
    main()
