"""A student learns, by the classes of production: killed, out of memory, with adapters, from hostile captions."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft", reason="needs the extras: pip install curation[models,train]")

import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from curation.captions import registry, training
from curation.captions.fitting import Lora
from curation.captions.records import Record, Records, read_folder, write_records
from curation.captions.training import Examples, Job, Training, train, train_version
from curation.cli import app
from curation.errors import BadShardError, ConfigError, OutageError
from curation.images.stored import decode_stored
from curation.models import lite_blip
from curation.models.captioner import load_captioner, open_captioner
from curation.store import Store
from tests.curation.models.tiny import SAVERS, save_tiny_blip

ROOT = Path(__file__).resolve().parents[3]
CAPTIONS = ("a red ball", "snow")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), ((200, 0, 0), (255, 255, 255))[number % 2]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # models of two layers: threads would wait for each other
        yield str(save_tiny_blip(tmp_path_factory.mktemp("student")))
        torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def records(store: Store, rows: int = 12) -> Records:
    made = write_records(store, (Record(f"{n:032x}", picture(n), (CAPTIONS[n % 2],)) for n in range(rows)))
    assert write_records(store, Records(store, made.key)) == made  # named by what it holds
    return Records(store, made.key)


def settings(student: str, **changes: Any) -> Training:
    given = {"max_steps": 12, "batch_size": 4, "micro_batch": 4, "learning_rate": 1e-2, "log_every": 2, "save_every": 4}
    return Training.model_validate({"student": student, "device": "cpu", **given, **changes})


def weights(trained: training.Trained) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trained.captioner.model.state_dict().items()}


def expect_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["blip", *SAVERS])
def test_the_prompt_the_picture_and_the_padding_are_not_learnt(family: str, tmp_path: Path) -> None:
    saver = {"blip": save_tiny_blip, **SAVERS}[family]
    captioner = open_captioner(str(saver(tmp_path / family)), device="cpu")
    answers = [[*tokens, captioner.end] for tokens in captioner.tokens(CAPTIONS)]
    pixels = [decode_stored(picture(0)), np.zeros((60, 20, 3), np.uint8)]
    inputs = captioner.examples(pixels, answers, prompt="a dog runs")
    labels = inputs.pop("labels")
    assert [[int(t) for t in row if t != -100] for row in labels] == answers
    assert labels.shape == inputs["input_ids"].shape == inputs["attention_mask"].shape
    asked = labels.shape[1] - max(map(len, answers))
    assert (labels[:, :asked] == -100).all()
    for row, answer in enumerate(answers):
        assert inputs["input_ids"][row, asked : asked + len(answer)].tolist() == answer
        assert not inputs["attention_mask"][row, asked + len(answer) :].any()
    with torch.inference_mode():
        logits = captioner.model(**inputs).logits
    assert logits.shape[:2] == labels.shape
    # what comes later says nothing about what comes before: the answer can't be read off the input
    with torch.inference_mode():
        changed = inputs["input_ids"].clone()
        changed[:, -1] = 6
        later = captioner.model(**inputs | {"input_ids": changed}).logits
    torch.testing.assert_close(later[:1, : labels.shape[1] - 1], logits[:1, : labels.shape[1] - 1])


def test_a_student_learns_and_becomes_a_version_that_captions(
    student: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATION_CACHE", str(tmp_path / "cache"))
    seed_set = registry.Data(kind="seed_set", name="first", version="ab", rows=9)
    chosen, kept = settings(student, max_steps=40, save_every=40), records(store)
    job = Job(store=store.root, name="tiny", records=kept.key, data=(seed_set,), settings=chosen)
    made = train_version(job, work=tmp_path / "work")
    assert made is not None
    assert made.metrics["last_loss"] < 0.3 * made.metrics["first_loss"]
    assert [line["step"] for line in made.metrics["log"]] == [1, *range(2, 41, 2)]
    assert made.metrics["captions"]["learnt"] == 12
    assert [one.kind for one in made.data] == ["records", "seed_set"]
    assert made.settings["learning_rate"] == 1e-2
    assert "training_log.json" in {file.name for file in made.files}
    folder = registry.local_folder(store, f"registry:tiny@{made.version}")
    said = load_captioner(str(folder), device="cpu").caption([decode_stored(picture(n)) for n in (0, 1)], min_length=0)
    assert [text.removeprefix("[DEC] ") for text in said] == list(CAPTIONS)  # the tiny tokenizer keeps the start token
    assert train_version(job, work=tmp_path / "work") == made  # done before: nothing is trained again
    # the command is the same job
    asked = [f"--set={name}={value}" for name, value in chosen.model_dump(exclude_defaults=True).items()]
    command = ["captions", "train", "other", "--records", kept.key, *asked, "--set=max_steps=1", "--store", store.root]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert registry.read(store, "other", registry.versions(store, "other")[0]).metrics["steps"] == 1


def test_an_attempt_that_lives_on_and_the_next_one_train_once(
    student: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(store=store.root, name="once", records=records(store).key, settings=settings(student, max_steps=2))
    begun: list[Path] = []
    both = threading.Barrier(2)

    def counted(chosen: Training, kept: Records, work: Path) -> training.Trained:
        begun.append(work)
        return train(chosen, kept, work)

    def attempt(_: int) -> registry.Manifest | None:
        both.wait()
        return train_version(job, work=tmp_path / "work")

    monkeypatch.setattr(training, "train", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(attempt, range(2))
    assert one == other
    assert len(begun) == 1


def test_killed_in_a_step_it_goes_on_and_ends_where_it_would_have(
    student: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, kept = settings(student, batch_size=4, micro_batch=2), records(store)
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from curation.captions import training
        from curation.captions.records import Records
        from curation.store import Store
        decode, seen = training.decode_stored, []
        def deadly(data):
            seen.append(1)
            if len(seen) == 4 * 9 + 1:  # in the middle of the tenth step; the last checkpoint is the eighth's
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(data)
        training.decode_stored = deadly
        settings = training.Training.model_validate_json({chosen.model_dump_json()!r})
        training.train(settings, Records(Store({store.root!r}), {kept.key!r}), Path({str(tmp_path / "killed")!r}))
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    # as if the kill had come while the last one was written
    (tmp_path / "killed" / "checkpoint-8" / "optimizer.pt").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        resumed = train(chosen, kept, tmp_path / "killed")
    assert "checkpoint-8 is not whole" in caplog.text
    assert (resumed.fitted.resumed_from, resumed.fitted.steps) == (4, 12)
    whole = train(chosen, kept, tmp_path / "whole")
    assert whole.fitted.resumed_from == 0
    expect_same(weights(whole), weights(resumed))
    assert [line["loss"] for line in resumed.fitted.log] == pytest.approx([one["loss"] for one in whole.fitted.log])


def test_two_processes_train_as_one_and_go_on_when_one_of_them_was_killed(
    student: str, store: Store, tmp_path: Path
) -> None:
    chosen, kept = settings(student, max_steps=6, micro_batch=2, save_every=2), records(store)
    (tmp_path / "job.json").write_text(
        Job(store=store.root, name="two", records=kept.key, settings=chosen).model_dump_json()
    )
    # as accelerate's launcher starts them, but for the imports, which the two share
    script = textwrap.dedent(f"""
        import os, signal
        import accelerate, transformers.trainer
        from curation.captions import training
        from curation.demo.airflow_server import free_port
        training.open_captioner({student!r}, device="cpu")  # what it imports
        decode, seen = training.decode_stored, []
        def deadly(data):
            seen.append(1)
            if len(seen) == 2 * 3 + 1:  # in the middle of the fourth step; the last checkpoint is the second's
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(data)
        for time in range(2):
            where, port, children = {str(tmp_path)!r}, str(free_port()), []
            for rank in range(2):
                if child := os.fork():
                    children.append(child)
                    continue
                os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}}
                if (time, rank) == (0, 1):
                    training.decode_stored = deadly
                ended = 1
                try:
                    training.main([where + "/job.json", where + "/made.json"])
                    ended = 0
                finally:
                    os._exit(ended)
            print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    """)
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CURATION_CACHE": str(tmp_path / "cache")}
    where = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True,
                          env=os.environ | quiet | where)  # fmt: skip
    assert done.stdout.splitlines() == [f"1 {-signal.SIGKILL}", "0 0"], done.stderr[-3000:]
    made = registry.Manifest.model_validate_json((tmp_path / "made.json").read_bytes())
    assert registry.versions(store, "two") == [made.version]
    assert (made.metrics["resumed_from"], made.metrics["steps"]) == (2, 6)
    alone = train(chosen.model_copy(update={"micro_batch": 4}), kept, tmp_path / "alone")
    losses = [line["loss"] for line in alone.fitted.log]
    assert [line["loss"] for line in made.metrics["log"]] == pytest.approx(losses, rel=1e-4)


def test_without_room_a_batch_is_halved_and_the_result_stays(
    student: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, kept = settings(student, batch_size=8, micro_batch=8), records(store)
    expected = train(chosen.model_copy(update={"micro_batch": 2}), kept, tmp_path / "small")
    loss, steps = training.caption_loss, []

    def short_of_memory(outputs: Any, labels: torch.Tensor, **told: Any) -> Any:
        steps.append(len(labels))
        if len(labels) > (8 if len(steps) < 6 else 2):  # memory gets short after the first checkpoint
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(outputs, labels, **told)

    monkeypatch.setattr(training, "caption_loss", short_of_memory)
    trained = train(chosen, kept, tmp_path / "short")
    assert (trained.fitted.micro_batch, trained.fitted.shortages, trained.fitted.resumed_from) == (2, 2, 4)
    # the same steps but for rounding, which Adam enlarges where a gradient is nothing but rounding
    assert [line["loss"] for line in trained.fitted.log] == pytest.approx(
        [line["loss"] for line in expected.fitted.log], rel=1e-2
    )
    assert train(chosen, kept, tmp_path / "short").fitted.micro_batch == 2  # the next process begins there

    def no_room(outputs: Any, labels: torch.Tensor, **told: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(training, "caption_loss", no_room)
    with pytest.raises(OutageError, match="no room for a single example"):
        train(chosen, kept, tmp_path / "none")


def test_adapters_leave_the_tower_and_are_merged(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = SAVERS["qwen2-vl"](tmp_path / "student")
    job = Job(
        store=store.root, name="adapted", records=records(store).key,
        settings=settings(str(student), max_steps=10, learning_rate=3e-2, lora=Lora(rank=4),
                          precision="bfloat16", gradient_checkpointing=True),
    )  # fmt: skip
    made = train_version(job, work=tmp_path / "work")
    assert made is not None
    assert made.metrics["last_loss"] < 0.5 * made.metrics["first_loss"]
    assert made.metrics["precision"] == "bfloat16"
    folder = registry.local_folder(store, f"registry:adapted@{made.version}")
    before, after = load_file(student / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name]
    assert made.metrics["trainable"] < sum(weight.numel() for weight in before.values()) / 2


def test_hostile_captions_are_cleaned_cut_or_left_out_and_counted(student: str, store: Store) -> None:
    captions = ("a red ball", "a\x00red\u202e ball\ud800", "\x07\x1b", " ".join(["dog"] * 100_000), "")
    kept = write_records(store, [Record("0" * 32, picture(0), captions), Record("1" * 32, b"no picture", ("snow",))])
    captioner = open_captioner(student, device="cpu")
    examples = Examples(captioner, Records(store, kept.key), settings(student, max_tokens=8))
    assert dict(examples.counts) == {"learnt": 4, "cleaned": 3, "truncated": 1, "dropped": 2}
    ids = [examples[number][1] for number in range(4)]
    assert ids[0] == ids[1] == [*captioner.tokens(["a red ball"])[0], captioner.end]
    assert ids[2] == captioner.tokens(["dog"])[0] * 8  # without an end: it must not learn to stop there
    assert ids[3] == ids[0]  # in the place of a picture that does not decode
    assert examples.counts["pictures_broken"] == 1


def test_what_can_not_be_learnt_from_is_told(student: str, store: Store, tmp_path: Path) -> None:
    broken = write_records(store, [Record("0" * 32, b"x", ("snow",))])
    with pytest.raises(BadShardError, match="none of the pictures decodes"):
        train(settings(student), Records(store, broken.key), tmp_path / "work")
    silent = write_records(store, [Record("0" * 32, picture(0), ("\x07",))])
    with pytest.raises(ConfigError, match="no example"):
        train(settings(student), Records(store, silent.key), tmp_path / "work")
    with pytest.raises(ConfigError, match="batch_size 5"):
        train(settings(student, batch_size=5), records(store), tmp_path / "work")
    with pytest.raises(ConfigError, match=r"lora\.modules"):
        train(settings(student, lora=Lora(modules=("absent",))), records(store), tmp_path / "work")
    with pytest.raises(ConfigError, match="no captioned picture"):
        write_records(store, [])
    with pytest.raises(ConfigError, match="not in"):
        Records(store, "captions/records/absent.arrow")
    store.write_bytes("captions/records/cut.arrow", b"ARROW1")
    with pytest.raises(BadShardError, match="expected an Arrow file"):
        Records(store, "captions/records/cut.arrow")


@pytest.mark.shared
def test_real_pictures_join_a_tower_and_a_decoder_that_never_met(store: Store, tmp_path: Path, shared: Path) -> None:
    torch.manual_seed(0)
    student = open_captioner("embedded", device="cpu")
    fresh = lite_blip.LiteBlipVisionModel(student.model.config.vision_config)
    fresh.tower.load_state_dict(student.model.vision_model.tower.state_dict())
    student.model.vision_model = fresh
    student.save(tmp_path / "student")
    kept = write_records(store, read_folder(shared / "data" / "captions" / "flickr8k", split="train", most=8))
    chosen = settings(str(tmp_path / "student"), batch_size=8, micro_batch=4, max_steps=8, learning_rate=2e-3,
                      max_tokens=26, save_every=8)  # fmt: skip
    trained = train(chosen, Records(store, kept.key), tmp_path / "work")
    losses = [line["loss"] for line in trained.fitted.log]
    assert losses[-1] < losses[0] - 0.3, losses
    before, after = fresh.state_dict(), trained.captioner.model.vision_model.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert "grid_projection.weight" in changed
    assert not [name for name in changed if name.startswith("tower.")]  # its batch norms included


def test_a_folder_of_captioned_pictures_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(0))
    lines = [{"image": "a.png", "split": "dev", "en": ["snow"], "alt": "IMG_1"}, {"image": "a.png", "captions": ["x"]}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(read_folder(tmp_path, split="dev")) == [Record("a.png", picture(0), ("snow",), "IMG_1")]
    assert [record.captions for record in read_folder(tmp_path)] == [("snow",), ("x",)]
    asked = ["captions", "records", str(tmp_path), "--split", "dev", "--store", str(tmp_path / "store"), "--json"]
    told = json.loads(CliRunner().invoke(app, asked, catch_exceptions=False).stdout)
    assert Records(Store(tmp_path / "store"), told["key"])[0] == Record("a.png", picture(0), ("snow",), "IMG_1")
    for line in ('{"image": "../captions.jsonl", "en": []}', '{"image": "b.png", "en": []}', "[]", "{"):
        (tmp_path / "captions.jsonl").write_text(line)
        with pytest.raises(ConfigError, match="line 1"):
            list(read_folder(tmp_path))
