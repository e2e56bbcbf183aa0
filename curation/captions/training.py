"""Train a student captioner on captioned pictures, all of its weights or adapters, and keep it as a version.

Several GPUs:  accelerate launch --num_processes 4 -m curation.captions.training JOB.json
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.captions import registry
from curation.captions.fitting import Fit, Fitted, alone, fit, world_size
from curation.captions.records import Records
from curation.errors import BadShardError, ConfigError
from curation.images.stored import decode_stored
from curation.models.captioner import Captioner, Dtype, open_captioner
from curation.receipt import digest
from curation.store import Store, cache_folder
from curation.text.clean import clean_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
MAX_CHARS = 20_000  # of a caption before it is cut into tokens: what follows would be cut off anyhow
UNLEARNT = -100

TOWERS: dict[str, tuple[str, ...]] = {
    # lite_blip's grid is a frozen network of ImageNet, what turns it into tokens is trained
    "lite_blip": ("vision_model.tower.",),
    "blip": (),
    "blip-2": ("vision_model.", "language_model."),
    "llava": ("model.vision_tower.",),
    "llava_next": ("model.vision_tower.",),
    "llava_onevision": ("model.vision_tower.",),
    "qwen2_vl": ("model.visual.",),
    "qwen2_5_vl": ("model.visual.",),
}
"""Weights that stay as they are, by model_type, as the models' own recipes have it; of any other kind none."""


class Training(Fit):
    """How a student captioner is trained."""

    student: str = Field(
        "embedded", description="embedded, a folder or hub name, registry:NAME or registry:NAME@VERSION"
    )
    prompt: str = Field("", description="as in the caption stage: what a caption begins with, or what is asked")
    max_tokens: int = Field(512, ge=2, description="of a caption; what is longer is cut, and learnt without an end")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 halves what a frozen model under LoRA takes")


class Job(BaseModel):
    """A training that several processes, or another machine, can take up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    name: str
    records: str  # key of the records in the store
    data: tuple[registry.Data, ...] = ()  # where the records came from
    settings: Training


class Trained(NamedTuple):
    """A fitted captioner and what its captions were like."""

    captioner: Captioner
    fitted: Fitted
    base_model: str
    captions: Counter[str]  # learnt, cleaned, truncated, dropped; pictures that did not decode


class Examples:
    """Pictures with one caption each, as token ids; a picture of several captions comes as often."""

    def __init__(self, captioner: Captioner, records: Records, settings: Training) -> None:
        self.counts: Counter[str] = Counter()
        self._records = records
        longest = captioner.longest(settings.prompt)
        most = settings.max_tokens if longest is None else min(settings.max_tokens, longest)
        if most < 2:
            raise ConfigError(f"prompt: {settings.prompt!r} leaves the student no room for a caption")
        rows: list[int] = []
        ids: list[np.ndarray] = []
        for row, captions in enumerate(records.captions()):
            cleaned = [self._clean(caption) for caption in captions]
            kept = [caption for caption in cleaned if caption]
            self.counts["dropped"] += len(captions) - len(kept)
            for tokens in captioner.tokens(kept) if kept else ():
                if len(tokens) < most:
                    tokens = [*tokens, captioner.end]
                else:  # no end: it must not learn to stop there
                    self.counts["truncated"] += 1
                rows.append(row)
                ids.append(np.array(tokens[:most], np.int32))
        self.counts["learnt"] = len(rows)
        self._rows, self._ids = np.array(rows, np.int64), ids

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[np.ndarray, list[int]]:
        """Pixels, uint8 (h, w, 3), and token ids; of a picture that does not decode the next one that does."""
        for step in range(len(self)):
            at = (number + step) % len(self)
            try:
                pixels = decode_stored(self._records[int(self._rows[at])].image)
            except BadShardError:
                self.counts["pictures_broken"] += 1  # each time it is met
                continue
            return pixels, self._ids[at].tolist()
        raise BadShardError(f"{self._records.key}: none of the pictures decodes")

    def _clean(self, raw: str) -> str:
        text = clean_text(raw[: 2 * MAX_CHARS], MAX_CHARS)
        self.counts["cleaned"] += text != raw
        return text


def train(settings: Training, records: Records, work: Path) -> Trained:
    """Train the student on every caption of the records.

    work     folder for checkpoints of this run alone
    raises   as fit does; ConfigError for a student that can't be loaded
    """
    captioner = open_captioner(settings.student, device="cpu", dtype=settings.dtype)
    examples = Examples(captioner, records, settings)

    def build() -> PreTrainedModel:
        return open_captioner(settings.student, device="cpu", dtype=settings.dtype).model

    def collate(rows: list[tuple[np.ndarray, list[int]]]) -> dict[str, torch.Tensor]:
        return captioner.examples([pixels for pixels, _ in rows], [ids for _, ids in rows], prompt=settings.prompt)

    frozen = TOWERS.get(captioner.model.config.model_type, ())
    fitted = fit(build, examples, collate, caption_loss, settings, work, frozen=frozen)
    base = captioner.identity
    captioner.model = fitted.model.eval()
    return Trained(captioner, fitted, base, examples.counts)


def caption_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
    """Cross-entropy of each token given those before it, summed and divided by the tokens of the whole step."""
    import torch

    logits, wanted = outputs.logits[:, :-1].float(), labels[:, 1:].to(outputs.logits.device)
    count = (wanted != UNLEARNT).sum() if num_items_in_batch is None else num_items_in_batch
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=UNLEARNT, reduction="sum"
    )
    return total / count


def train_version(job: Job, *, work: Path | None = None) -> registry.Manifest | None:
    """Train and register a version; a job that was killed goes on from its last checkpoint, one that is done is done.

    work     where checkpoints lie, below a folder of the job's own; None: the cache
    returns  the manifest; None in a process that is not the first of several
    """
    folder = _folder(job, work)
    if world_size() > 1:  # whoever started them waits for all
        return _train_version(job, folder)
    with alone(folder):
        return _train_version(job, folder)


def _folder(job: Job, work: Path | None) -> Path:
    return (work or cache_folder() / "training") / digest(job.model_dump_json())[:16]


def _train_version(job: Job, folder: Path) -> registry.Manifest | None:
    store = Store(job.store)
    student = place = job.settings.student
    if student.startswith(registry.PREFIX):
        student = registry.resolve(store, student, "captioner", "student")
        place = str(registry.local_folder(store, student))
    before, _, version = student.removeprefix(registry.PREFIX).partition("@")
    parent = version if before == job.name else ""
    records = Records(store, job.records)
    data = (registry.Data(kind="records", name=job.records, version=records.digest, rows=len(records)), *job.data)
    asked = job.settings.model_dump(mode="json") | {"student": student}
    for version in registry.versions(store, job.name):
        made = registry.read(store, job.name, version)
        if (made.data, made.settings, made.parent) == (data, asked, parent):
            return made  # a task that is tried again after all was done
    trained = train(job.settings.model_copy(update={"student": place}), records, folder)
    if not trained.fitted.main:
        return None
    into = folder / "model"
    trained.captioner.save(into)
    (into / "training_log.json").write_text(json.dumps(trained.fitted.log))
    made = registry.register(
        store,
        job.name,
        into,
        role="captioner",
        base_model=trained.base_model,
        data=data,
        settings=asked,
        metrics=trained.fitted.metrics | {"captions": dict(trained.captions)},
        parent=parent,
    )
    shutil.rmtree(folder, ignore_errors=True)  # the checkpoints have served
    return made


def run_job(job: Job, processes: int = 1) -> registry.Manifest:
    """train_version, in this process or in several that accelerate starts, one for each GPU."""
    import subprocess
    import tempfile

    if processes == 1:
        made = train_version(job)
        assert made is not None
        return made
    with alone(_folder(job, None)), tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.json", Path(folder) / "made.json"
        asked.write_text(job.model_dump_json())
        # on a CPU too: its launcher is torchrun's, and the one for CPUs would need MPI
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--max_restarts", "5"]
        command += ["-m", __name__, str(asked), str(answer)]
        subprocess.run(command, check=True)
        return registry.Manifest.model_validate_json(answer.read_bytes())


def main(arguments: Sequence[str]) -> None:
    """One process of a job: the file of the job, and where the manifest is to be written."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("curation").setLevel(os.environ.get("CURATION_LOG", "INFO").upper())
    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    if (made := train_version(job)) is not None and len(arguments) > 1:
        Path(arguments[1]).write_text(made.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
