"""The stage with real classes of transformers, of two layers each, on real pictures."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from skimage import data

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

import torch

from curation.errors import ConfigError, OutageError
from curation.models.captioner import Captioner
from curation.runner import receipt_of, run_stage
from curation.stages.caption import Caption
from curation.verdicts import Fault
from tests.curation.captions.endpoint_server import EndpointServer
from tests.curation.conftest import World, jpeg
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm, save_tiny_llava_next

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["a red ball", "a dog runs", "snow"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        captioner, matcher = save_tiny_blip(folder / "captioner"), save_tiny_itm(folder / "matcher")
        yield {"captioner": str(captioner), "matcher": str(matcher)}


def batch(images: Sequence[bytes] | None = None) -> pa.RecordBatch:
    pictures = images or [jpeg(picture[:64, :64]) for picture in (data.astronaut(), data.coffee(), data.chelsea())]
    columns = {
        "sample_id": [f"{number:032x}" for number in range(len(pictures))],
        "image": pictures,
        "text": [TEXTS[number % 3] for number in range(len(pictures))],
        "partition": ["en"] * len(pictures),
    }
    return pa.RecordBatch.from_pydict(columns, schema=Caption.consumes)


def measured(stage: Caption, *batches: pa.RecordBatch) -> tuple[list[dict[str, Any]], Counter[str]]:
    tally: Counter[str] = Counter()
    answers = list(stage(iter(batches or [batch()]), tally))
    assert all(answer.schema.equals(stage.produces) for answer in answers)
    return [row for answer in answers for row in answer.to_pylist()], tally


def test_everything_that_was_measured_is_kept(models: dict[str, str]) -> None:
    stage = Caption(**models, policy="both_above_threshold", threshold=0)
    rows, tally = measured(stage)
    for row, text in zip(rows, TEXTS, strict=True):
        assert row["captions"] == [text, row["synthetic"]]
        assert row["caption_sources"] == ["text", "synthetic"]
        assert (row["caption"], row["caption_source"]) == (text, "text")
        assert row["synthetics"] == [row["synthetic"]]
        assert 0 <= row["itm_text"] <= 1 >= row["itm_synthetic"] >= 0
        assert row["fault"] is None
    assert tally["captions"] == 3
    assert set(stage.models) == {"captioner", "matcher", "sampling"}
    assert stage.models["sampling"].startswith("1 x nucleus 0.9, seed 0, repetition penalty 1.1, 5 to 20 tokens")


def test_the_tiles_that_a_captioner_saw_are_kept(models: dict[str, str], tmp_path: Path) -> None:
    captioner = str(save_tiny_llava_next(tmp_path / "next"))
    stage = Caption(captioner=captioner, matcher=models["matcher"], anyres={"grids": [[1, 1], [2, 2]]}, max_length=8)
    small, large = jpeg(data.coffee()[:24, :24]), jpeg(data.coffee()[:200, :300])
    rows, _ = measured(stage, batch([small, large, b"\xff\xd8 no picture"]))
    # of the map of 4 x 4 the outer rows are padding
    kept = [(row["caption_grid"], row["caption_tokens_flat"], row["caption_tokens_unpadded"]) for row in rows]
    assert kept == [("1x1", 8, 4 + 2 * 3), ("2x2", 20, 4 + 2 * 5), (None, None, None)]
    assert measured(Caption(**models))[0][0]["caption_grid"] is None  # one view


@pytest.mark.parametrize("captioner", ["embedded", "http://host/v1#model"])
def test_tiles_are_refused_before_any_work(captioner: str) -> None:
    with pytest.raises(ValidationError, match="cuts no tiles: leave anyres out, or name a captioner of LLaVA-NeXT"):
        Caption(captioner=captioner, anyres={})


def test_an_empty_batch_and_no_batch(models: dict[str, str]) -> None:
    assert measured(Caption(**models), batch().slice(0, 0))[0] == []
    assert list(Caption(**models)(iter([]), Counter())) == []


def test_the_best_of_several_is_ranked_by_clip(models: dict[str, str]) -> None:
    rows, tally = measured(Caption(**models, policy="best_of_n", captions_per_image=4))
    assert tally["captions"] == 12
    for row in rows:
        assert row["captions"] == [row["synthetic"]] == row["synthetics"][:1]
        assert len(row["synthetics"]) == len(set(row["synthetics"])) > 1
        assert row["synthetic_ranks"] == sorted(row["synthetic_ranks"], reverse=True)
    assert rows == measured(Caption(**models, policy="best_of_n", captions_per_image=4))[0]


def test_a_clip_stands_in_for_the_filter(models: dict[str, str]) -> None:
    stage = Caption(
        captioner=models["captioner"], matcher="clip:embedded", policy="best_above_threshold", threshold=0.9
    )
    rows, _ = measured(stage)
    assert [row["captions"] for row in rows] == [[], [], []]  # no cosine of this model is near 0.9
    assert [row["fault"] for row in rows] == [None] * 3
    assert stage.models["matcher"].startswith("cosine of embedded/")


def test_mix_follows_the_samples(models: dict[str, str]) -> None:
    pictures = [jpeg(data.coffee()[:64, :64])] * 20
    rows, _ = measured(Caption(**models, policy="mix", synthetic_share=0.5), batch(pictures))
    sources = [row["caption_source"] for row in rows]
    assert 4 < sources.count("synthetic") < 16
    again, _ = measured(Caption(**models, policy="mix", synthetic_share=0.5, batch_size=3), batch(pictures))
    assert [row["caption_source"] for row in again] == sources


def test_a_batch_without_room_is_halved(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = measured(Caption(**models))
    sizes: list[int] = []
    caption = Captioner.caption

    def short_of_memory(self: Captioner, images: Sequence[np.ndarray], **settings: Any) -> list[str]:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return caption(self, images, **settings)

    monkeypatch.setattr(Captioner, "caption", short_of_memory)
    rows, tally = measured(Caption(**models))
    assert [row["synthetic"] for row in rows] == [row["synthetic"] for row in expected]
    assert sizes == [3, 1, 1, 1]
    assert tally["memory_shortages"] == 1

    def no_memory(self: Captioner, images: Sequence[np.ndarray], **settings: Any) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Captioner, "caption", no_memory)
    with pytest.raises(OutageError, match="no room"):
        measured(Caption(**models))


def test_killed_while_it_captions_a_shard_is_not_there_and_no_picture_is_asked_about_twice(
    models: dict[str, str], world: World
) -> None:
    with EndpointServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        caption = {"captioner": f"{server.url}#m", "matcher": models["matcher"], "batch_size": 1, "device": "cpu"}
        recipe, _ = world.recipe({"stages.caption": caption})
        for stage in recipe.stage_names[: recipe.stage_names.index("caption")]:
            run_stage(world.store, recipe, "crawl", 0, stage)
        script = textwrap.dedent(f"""
            import os, signal
            from curation.recipe import Recipe
            from curation.runner import run_stage
            from curation.stages.caption import Caption
            from curation.store import Store
            match, matched = Caption._match, []
            def deadly(self, rows, tally):
                matched.append(rows)
                if len(matched) == 2:  # the second picture has its caption, the first one is done
                    os.kill(os.getpid(), signal.SIGKILL)
                return match(self, rows, tally)
            Caption._match = deadly
            recipe = Recipe.model_validate_json({recipe.model_dump_json()!r})
            run_stage(Store({world.store.root!r}), recipe, "crawl", 0, "caption")
        """)
        told = os.environ | {"PYTHONPATH": str(ROOT), "CURATION_STORE": world.store.root}
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, env=told)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert receipt_of(world.store, recipe, "crawl", 0, "caption") is None
        assert sorted(server.asked.values()) == [1, 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CURATION_STORE", world.store.root)
            receipt = run_stage(world.store, recipe, "crawl", 0, "caption")
        server.shutdown()
    assert receipt.tally["captions"] == 2
    assert sorted(server.asked.values()) == [1, 1]


def test_what_the_model_writes_is_cleaned_or_refused(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = ["a dog\x00 runs\x1b\n in the snow", "word " * 100_000, ""]
    monkeypatch.setattr(Captioner, "caption", lambda self, images, **settings: made)
    rows, tally = measured(Caption(**models, policy="best_of_n", captions_per_image=2))
    assert [row["synthetic"] for row in rows] == ["a dog runs in the snow", None, None]
    assert [row["fault"] for row in rows] == [None, Fault.BAD_CAPTION, Fault.NO_CAPTION]
    assert tally["captions_refused"] == 2
    rows, _ = measured(Caption(**models, policy="both_above_threshold", threshold=0))
    assert [len(row["captions"]) for row in rows] == [2, 1, 1]  # the original stands on its own
    assert [row["fault"] for row in rows] == [None, None, None]


def test_a_broken_picture_costs_one_sample(models: dict[str, str]) -> None:
    good = jpeg(data.coffee()[:64, :64])
    rows, _ = measured(Caption(**models), batch([good, b"\xff\xd8 no picture", good]))
    assert [row["fault"] for row in rows] == [None, Fault.BAD_IMAGE, None]
    assert rows[1]["captions"] is rows[1]["itm_text"] is None
    assert rows[0]["synthetic"] == rows[2]["synthetic"]


def test_one_model_in_both_roles_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="captioner and matcher are both"):
        Caption(captioner="x/y", matcher="x/y").check()
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    written = BlipForConditionalGeneration.from_pretrained(models["captioner"])
    folder = save_tiny_itm(tmp_path / "twin")
    twin = BlipForImageTextRetrieval.from_pretrained(folder)
    shared = {
        name.replace("text_decoder.bert", "text_encoder"): weight for name, weight in written.state_dict().items()
    }
    twin.load_state_dict(shared, strict=False)
    twin.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"share 9\d% of their text weights"):
        measured(Caption(captioner=models["captioner"], matcher=str(folder)))


def test_a_checkpoint_of_another_kind_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="weights are not in the files"):
        measured(Caption(captioner=models["matcher"], matcher="clip:embedded"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "best_of_n"}, "set captions_per_image to 2"),
        ({"captions_per_image": 3, "num_beams": 2}, "set num_beams to 1"),
        ({"matcher": "clip:embedded", "policy": "both_above_threshold"}, "set threshold"),
        ({"min_length": 30}, "above max_length"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Caption(**settings)
