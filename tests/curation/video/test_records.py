import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install curation[video]")

from curation.cli import app
from curation.errors import ConfigError
from curation.video.records import write_videos
from tests.curation.video.test_frames import save_video


def test_a_video_is_a_record_of_several_images(tmp_path: Path) -> None:
    good, bad = save_video(tmp_path / "good.mp4"), tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")

    def describe(images: list[np.ndarray]) -> list[str]:
        return [f"grey\x00 of <image> {round(float(image.mean()) / 8)}" for image in images]

    outcomes = write_videos([good, bad], tmp_path / "out", count=4, describe=describe)
    assert [outcome.get("fault") for outcome in outcomes] == [None, "not_a_video"]
    assert (outcomes[0]["frames"], outcomes[0]["tokens"], outcomes[0]["context_scaling"]) == (4, 576, 1)
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    human, answer = (turn["value"] for turn in record["conversations"])
    assert human.count("<image>") == len(record["images"]) == len(record["times"]) == 4
    assert answer.splitlines()[0] == "1. grey of image 0"
    for path in record["images"]:
        with Image.open(tmp_path / "out" / path) as frame:
            assert frame.size == (64, 48)
    assert [json.loads(line) for line in (tmp_path / "out" / "videos.jsonl").read_text().splitlines()] == outcomes


def test_nothing_is_half_written(tmp_path: Path) -> None:
    good = save_video(tmp_path / "good.mp4")
    with pytest.raises(ConfigError, match="no such file"):
        write_videos([good, tmp_path / "absent.mp4"], tmp_path / "out")

    def failing(images: list[np.ndarray]) -> list[str]:
        raise RuntimeError("the captioner is gone")

    with pytest.raises(RuntimeError):
        write_videos([good], tmp_path / "out", describe=failing)
    assert [path.name for path in tmp_path.iterdir()] == ["good.mp4"]
    write_videos([good], tmp_path / "out")
    with pytest.raises(ConfigError, match="stands already"):
        write_videos([good], tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    good = save_video(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    arguments = ["video", str(good), str(tmp_path / "bad.mp4"), "--fps", "1", "--captioner", "", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "good.mp4: 3 frames of 30, 2.9 s, 432 tokens, context scaling 1" in done.output
    assert "bad.mp4: not_a_video" in done.output
