"""Rounds of bootstrapping with models of two layers, by the classes of production."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="needs the extras: pip install curation[models,train]")

import io

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from curation.captions import bootstrap, matching, registry, training
from curation.captions.bootstrap import plan, read_plan, run, step, write_table
from curation.captions.records import Record, Records, write_records
from curation.cli import app
from curation.errors import ConfigError
from curation.store import Store
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm

COLOURS = {"a red ball": (220, 10, 10), "snow": (250, 250, 250), "a dog": (90, 60, 20), "a dog runs": (10, 200, 30)}


def write(store: Store, first: int, each: int, wrong: bool = False) -> str:
    """Key of pictures with their captions; wrong: as alt texts, every second one another picture's."""
    names = list(COLOURS)
    rows = []
    for at in range(each * len(names)):
        file = io.BytesIO()
        noise = np.random.default_rng(first + at).integers(-8, 8, (32, 32, 3))
        Image.fromarray((np.array(COLOURS[names[at % 4]]) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
        text = names[(at + (at // 4) % 2) % 4] if wrong else names[at % 4]
        captions = () if wrong else (text,)
        rows.append(Record(f"{first + at:032x}", file.getvalue(), captions, text if wrong else None))
    return write_records(store, rows).key


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CURATION_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models of two layers: threads would wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    store = Store(tmp_path / "store")
    quick = {"batch_size": 8, "micro_batch": 8, "warmup": 0.1, "device": "cpu", "save_every": 100}
    return {
        "name": "tiny", "rounds": 1,
        "human": write(store, 0, 2), "web": write(store, 100, 4, wrong=True), "held_out": write(store, 200, 2),
        "training": quick | {"student": str(save_tiny_blip(tmp_path / "student")), "max_steps": 20,
                             "learning_rate": 1e-2},
        "matching": quick | {"matcher": str(save_tiny_itm(tmp_path / "itm")), "max_steps": 30, "learning_rate": 1e-2},
        "cleaning": {"min_length": 1, "max_length": 8},
        "protocol": {"num_beams": 1, "min_length": 1, "max_length": 8,
                     "matcher": str(save_tiny_itm(tmp_path / "judge", seed=7))},
        "margin": 0.02,
    }  # fmt: skip


def test_rounds_are_measured_promoted_only_when_better_and_not_done_twice(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    monkeypatch.setattr(bootstrap, "PART_ROWS", 6)
    planned = plan(store, given)
    assert plan(store, given | {"rounds": 3, "processes": 2}).folder == planned.folder  # with more rounds it goes on
    for name in ("captioner", "filter", "judge"):
        step(store, planned, 0, name, by="test")  # type: ignore[arg-type]
    first = {name: registry.promoted(store, name) for name in ("tiny", "tiny-filter")}
    assert all(first.values())
    assert step(store, planned, 1, "clean", by="test")["rows"] > 8

    # killed after the cleaning's second part and after a round: neither is done again
    store.delete(f"{planned.folder}/1-clean.json")
    store.delete(f"{planned.folder}/1-clean/000002.json")
    parts, real = [], bootstrap._clean_part
    monkeypatch.setattr(bootstrap, "_clean_part", lambda stage, rows: parts.append(len(rows)) or real(stage, rows))
    cleaned = step(store, planned, 1, "clean", by="test")
    assert parts == [4]
    assert cleaned["models"] == {
        "captioner": f"registry:tiny@{first['tiny']}", "matcher": f"registry:tiny-filter@{first['tiny-filter']}"
    }  # fmt: skip
    trained: list[str] = []
    for module in (training, matching):
        real_train = module.train_version
        monkeypatch.setattr(
            module, "train_version", lambda job, real=real_train, **rest: trained.append(job.name) or real(job, **rest)
        )

    # round 1 is a worse one, hardly trained: another plan, which has round 0 and the cleaning from this one
    short = {role: given[role] | {"max_steps": 1, "learning_rate": 1e-9} for role in ("training", "matching")}
    worse_plan = plan(store, given | short)
    for entry in list(store.entries(f"{planned.folder}/")):
        if not entry.key.endswith("plan.json"):
            store.write_bytes(entry.key.replace(planned.folder, worse_plan.folder), store.read_bytes(entry.key))
    asked = ["captions", "bootstrap", "tiny", "--store", store.root, "--rounds", "1"]
    for field in ("human", "web", "held_out"):
        asked += [f"--{field.replace('_', '-')}", given[field]]
    for part in ("training", "matching", "cleaning", "protocol"):
        for field, value in (given | short)[part].items():
            asked += ["--set", f"{part}.{field}={value}"]
    told = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert trained == ["tiny", "tiny-filter"]  # round 1 alone
    assert "not promoted: cider" in told
    rows = run(store, worse_plan, by="test")  # all is done
    assert json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)["rounds"] == rows
    assert trained == ["tiny", "tiny-filter"]
    assert [row["round"] for row in rows] == ["start", 0, 1]
    start, good, worse = (row["captioner"]["metrics"]["cider"] for row in rows)
    assert good > start + 0.02
    assert worse < good
    for role, name in (("captioner", "tiny"), ("filter", "tiny-filter")):
        assert [row[role]["promoted"] for row in rows[1:]] == [True, False]
        assert "at least" in rows[2][role]["reason"]
        assert registry.promoted(store, name) == first[name]
    assert set(rows[1]["captioner"]["metrics"]) == {"bleu4", "rouge_l", "cider", "clip_score", "itm_auc"}
    assert rows[2]["cleaned"]["web"] == 16
    assert json.loads(store.read_bytes(f"{worse_plan.folder}/table.json")) == rows

    made = registry.read(store, "tiny", rows[2]["captioner"]["version"])
    assert [(one.kind, one.name) for one in made.data] == [
        ("records", cleaned["records"]), ("cleaned", f"{worse_plan.folder}/1-clean.json"),
        ("records", given["web"]), ("records", given["human"]),
    ]  # fmt: skip
    assert made.code_version
    learnt = Records(store, cleaned["records"])
    kept = sum(len(captions) for captions in learnt.captions()) - 8
    assert kept == cleaned["counts"]["web_kept"] + cleaned["counts"]["synthetic_kept"]


def test_a_filter_with_its_captioners_weights_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    store = Store(tmp_path / "store")
    student, twin = given["training"]["student"], str(tmp_path / "itm")
    with pytest.raises(ConfigError, match=r"matching\.matcher: .* must not share"):
        plan(store, given | {"matching": {"matcher": student}})
    with pytest.raises(ConfigError, match="filter: 'tiny' is the captioner"):
        plan(store, given | {"filter": "tiny"})
    # by content, where the names differ: all but the pictures' towers is frozen, so training leaves the text weights
    written = BlipForConditionalGeneration.from_pretrained(student).state_dict()
    model = BlipForImageTextRetrieval.from_pretrained(twin)
    renamed = {name.replace("text_decoder.bert", "text_encoder"): weight for name, weight in written.items()}
    model.load_state_dict(renamed, strict=False)
    model.save_pretrained(twin)
    short = {"max_steps": 1}
    changed = {"training": given["training"] | short | {"frozen": ["text_decoder."]},
               "matching": given["matching"] | short | {"frozen": ["text_encoder."]}}  # fmt: skip
    planned = plan(store, given | changed)
    with pytest.raises(ConfigError, match=r"share \d+% of their text weights"):
        run(store, planned, by="test")
    assert not registry.versions(store, "tiny-filter")


def test_bad_settings_stop_before_any_work(given: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "unknown field": ({"colour": "red"}, "colour: "),
        "nested": ({"training": {"epochs": 0}}, r"training\.epochs: "),
        "absent records": ({"web": "captions/records/no.arrow"}, "web: .*curation captions records"),
        "held-out learnt": ({"held_out": given["human"]}, "held_out: 8 of its pictures are in human"),
        "no such model": ({"training": {"student": "registry:nobody"}}, r"training\.student: no model 'nobody'"),
        "moving start": ({"training": {"student": "registry:tiny"}}, r"training\.student: .*registry:tiny@VERSION"),
        "name": ({"name": "Tiny!"}, "Tiny!"),
        "lengths": ({"cleaning": {"min_length": 9, "max_length": 3}}, r"cleaning\.min_length"),
        "prompts": ({"protocol": {"prompt": "a picture of"}}, r"protocol\.prompt"),
    }
    for change, said in wrong.values():
        with pytest.raises(ConfigError, match=said):
            plan(store, given | change)
    assert not list(store.entries("captions/bootstrap/"))
    planned = plan(store, given)
    assert read_plan(store, planned.folder) == planned
    with pytest.raises(ConfigError, match="plan it first"):
        read_plan(store, "captions/bootstrap/tiny/no")
    with pytest.raises(ConfigError, match="round 1 comes after round 0"):
        step(store, planned, 1, "clean", by="test")
    with pytest.raises(ConfigError, match="its step captioner is not done"):
        step(store, planned, 0, "filter", by="test")
    assert write_table(store, planned) == []
