"""Teach a tower and a decoder that never met to caption, and measure them on held-out pictures beside the untrained.

    python benchmarks/train_captioner.py ../shared/data/captions/flickr8k [--pictures 600] [--epochs 3] [--held-out 120]

The student is the embedded captioner with the layers between picture and words drawn anew, as LLaVA begins: a tower
that knows pictures, a decoder that knows words, and nothing that joins them. It learns from pictures of the split
"train" with five captions each, through the same job as `curation captions train`, and is measured on pictures of
"dev", four captions each as references. Flickr8k has no alt texts; those here are stand-ins, by turns: the fifth human
caption, the file's name, the fifth caption of another picture, boilerplate.

The frozen tower sees each picture once: its outputs are kept by the picture's pixels.
"""

import argparse
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curation.captions import registry
from curation.captions.evaluation import Judges, Protocol, evaluate_version
from curation.captions.records import Record, Records, read_folder, write_records
from curation.captions.training import Job, Training, run_job
from curation.models import lite_blip
from curation.models.captioner import open_captioner
from curation.store import Store

BOILERPLATE = ("click to enlarge", "photo", "read more", "featured image")


def write_student(folder: Path) -> str:
    """The embedded captioner's files with the layers between the frozen tower and the decoder drawn anew."""
    torch.manual_seed(0)
    student = open_captioner("embedded", device="cpu")
    fresh = lite_blip.LiteBlipVisionModel(student.model.config.vision_config)
    fresh.tower.load_state_dict(student.model.vision_model.tower.state_dict())
    student.model.vision_model = fresh
    student.save(folder)
    return str(folder)


def remember_towers() -> None:
    """Let the tower see each picture once: 40 kB of outputs a picture stay in memory."""
    seen: dict[bytes, torch.Tensor] = {}
    grid: Callable[..., torch.Tensor] = lite_blip.LiteBlipVisionModel.grid

    def remembered(self: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        keys = [hashlib.blake2b(one.numpy().tobytes()).digest() for one in pixel_values]
        if new := [at for at, key in enumerate(keys) if key not in seen]:
            with torch.no_grad():
                seen.update(zip([keys[at] for at in new], grid(self, pixel_values[new]).half(), strict=True))
        return torch.stack([seen[key] for key in keys]).float()

    lite_blip.LiteBlipVisionModel.grid = remembered


def held_out(pictures: Path, most: int) -> list[Record]:
    """Dev pictures with four references and a stand-in for the alt text."""
    found = list(read_folder(pictures, split="dev", most=most))
    fifth = [record.captions[4] for record in found]
    alts = [
        (fifth[at], record.sample_id, fifth[at - 1], BOILERPLATE[at // 4 % 4])[at % 4]
        for at, record in enumerate(found)
    ]
    return [record._replace(captions=record.captions[:4], alt=alt) for record, alt in zip(found, alts, strict=True)]


def main() -> None:
    """Train, measure, promote, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--pictures", dest="count", type=int, default=600)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--held-out", type=int, default=120)
    asked = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("curation").setLevel("INFO")
    remember_towers()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        learnt = write_records(store, read_folder(asked.pictures, split="train", most=asked.count))
        measured = write_records(store, held_out(asked.pictures, asked.held_out))
        settings = Training(
            student=write_student(Path(folder) / "student"), epochs=asked.epochs, batch_size=64, micro_batch=64,
            learning_rate=1e-3, warmup=0.1, max_tokens=26, log_every=10, save_every=50, device="cpu",
        )  # fmt: skip
        made = run_job(Job(store=store.root, name="flickr", records=learnt.key, settings=settings))
        judges = Judges(Records(store, measured.key), Protocol(), device="cpu")
        found = evaluate_version(store, "flickr", made.version, judges, device="cpu")
        print("loss by step: " + ", ".join(f"{line['step']:.0f} {line['loss']:.2f}" for line in made.metrics["log"]))
        print(f"{made.metrics['captions']['learnt']} captions, {made.metrics['steps']} steps, "
              f"{made.metrics['seconds']:.0f} s")  # fmt: skip
        print(f"| {found.pictures} held-out pictures | " + " | ".join(found.metrics) + " |\n| --- |" + " --- |" * 5)
        for whose, metrics in {**found.beside, "trained": found.metrics}.items():
            print(f"| {whose} | " + " | ".join(f"{value:.3f}" for value in metrics.values()) + " |")
        print(registry.promote(store, "flickr", made.version, by="benchmark").reason)
        trained = open_captioner(str(registry.local_folder(store, f"registry:flickr@{made.version}")), device="cpu")
        print(*judges.captions(trained)[:5], sep="\n")


if __name__ == "__main__":
    main()
