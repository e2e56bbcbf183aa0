"""Videos to a folder of frames and a record of several images each."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from curation.captions.text import clean_caption
from curation.errors import ConfigError
from curation.sources.conversations import MARK
from curation.video.frames import Frames, Limits, VideoError, context_scaling, read_frames, tokens_per_frame

RECORDS, OUTCOMES = "records.jsonl", "videos.jsonl"
Describe = Callable[[Sequence[np.ndarray]], list[str]]
_QUALITY = 90
_json = msgspec.json.Encoder(order="sorted").encode


def write_videos(
    videos: Sequence[Path],
    out: Path,
    *,
    count: int | None = 8,
    fps: float | None = None,
    side: int = 336,
    describe: Describe | None = None,
    limits: Limits | None = None,
) -> list[dict[str, Any]]:
    """Write frames and records of videos into a new folder; one that can't be read costs itself alone.

    describe   captions of frames; None: a record has no answer yet
    returns    for each video its name, id, frames, tokens and context scaling, or its fault: what OUTCOMES holds
    raises     ConfigError when the folder stands, or a file is not there: nothing is written then

    The folder holds {id}/{frame:04d}.jpg, RECORDS in the form of multi-image records, and OUTCOMES with a line for
    every video; it appears whole, by a rename. The id is the sha256 of the file, so a file given twice is one record.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: stands already; name a folder that does not")
    if absent := [str(video) for video in videos if not video.is_file()]:
        raise ConfigError(f"no such file: {', '.join(absent)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        outcomes, records = [], {}
        for video in videos:
            outcome: dict[str, Any] = {"video": video.name, "id": _sha256(video)}
            try:
                frames = read_frames(video, count=count, fps=fps, side=side, limits=limits)
            except VideoError as error:
                outcome["fault"] = str(error.fault)
            else:
                captions = [clean_caption(text) for text in describe(frames.images)] if describe else []
                outcome |= _costs(frames)
                paths = _write_frames(building, outcome["id"], frames)
                records[outcome["id"]] = _record(outcome, paths, frames, captions)
            outcomes.append(outcome)
        (building / RECORDS).write_bytes(b"".join(_json(record) + b"\n" for record in records.values()))
        (building / OUTCOMES).write_bytes(b"".join(_json(outcome) + b"\n" for outcome in outcomes))
        building.chmod(0o755)  # mkdtemp's 0700 would hide it from others
        os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return outcomes


def _costs(frames: Frames) -> dict[str, Any]:
    sampled = len(frames.images)
    return {
        "frames": sampled,
        "coded_frames": frames.frames,
        "seconds": round(frames.seconds, 3),
        "tokens": sampled * tokens_per_frame(),
        "context_scaling": context_scaling(sampled),
    }


def _record(outcome: dict[str, Any], paths: list[str], frames: Frames, captions: list[str]) -> dict[str, Any]:
    question = f"These are {len(paths)} frames of a video, in their order. What does each of them show?"
    turns = [{"from": "human", "value": f"{MARK}\n" * len(paths) + question}]
    if any(captions):
        lines = [f"{number}. {caption.replace(MARK, 'image')}" for number, caption in enumerate(captions, 1) if caption]
        turns.append({"from": "gpt", "value": "\n".join(lines)})
    return {
        "id": outcome["id"],
        "images": paths,
        "group": "video",
        "times": [round(moment, 3) for moment in frames.times],
        "tokens": outcome["tokens"],
        "context_scaling": outcome["context_scaling"],
        "conversations": turns,
    }


def _write_frames(folder: Path, identity: str, frames: Frames) -> list[str]:
    from PIL import Image

    (folder / identity).mkdir(exist_ok=True)
    paths = [f"{identity}/{number:04d}.jpg" for number in range(len(frames.images))]
    for path, image in zip(paths, frames.images, strict=True):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=_QUALITY)
        (folder / path).write_bytes(encoded.getvalue())
    return paths


def _sha256(video: Path) -> str:
    with video.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
