"""The command on videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np


def video(
    files: Annotated[list[Path], typer.Argument(help="Video files, of any container that FFmpeg reads.")],
    out: Annotated[Path, typer.Option(help="New folder for the frames, records.jsonl and videos.jsonl.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of each video, from the first to the last.")] = 8,
    fps: Annotated[float | None, typer.Option(help="Frames a second instead of a number of frames.")] = None,
    side: Annotated[int, typer.Option(min=1, help="Longer side of a frame [px].")] = 336,
    captioner: Annotated[
        str, typer.Option(help="embedded, a folder or a hub name of an image-to-text model; empty: no captions.")
    ] = "embedded",
    hours: Annotated[float, typer.Option(min=0, help="Longest video that is read.")] = 12,
    seconds: Annotated[float, typer.Option(min=1, help="Time for reading one file.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Sample videos into frames, caption them, and write a record of several images for each.

    A video that can't be read gets a fault (not_a_video, no_frames, truncated, duration_wrong, too_long, too_large,
    deadline, broken) and the others go on; exit code 1 is given. 144 visual tokens a frame at stride 2.

    * `curation video holiday.mp4 --frames 16 --out var/videos`
    """
    from curation.video.frames import Limits
    from curation.video.records import write_videos

    def describe(images: Sequence[np.ndarray]) -> list[str]:
        from curation.models.captioner import load_captioner

        return load_captioner(captioner).caption(images, top_p=0.9, repetition_penalty=1.1)

    outcomes = write_videos(
        files,
        out,
        count=None if fps is not None else frames,
        fps=fps,
        side=side,
        describe=describe if captioner else None,
        limits=Limits(hours=hours, seconds=seconds),
    )
    for outcome in outcomes:
        if as_json:
            typer.echo(json.dumps(outcome, ensure_ascii=False))
        elif "fault" in outcome:
            typer.echo(f"{outcome['video']}: {outcome['fault']}", err=True)
        else:
            typer.echo(
                f"{outcome['video']}: {outcome['frames']} frames of {outcome['coded_frames']}, "
                f"{outcome['seconds']:g} s, {outcome['tokens']} tokens, context scaling {outcome['context_scaling']}"
            )
    if any("fault" in outcome for outcome in outcomes):
        raise typer.Exit(1)
