"""Frames of a video, sampled uniformly by number or by rate; whatever the file says of itself is checked first."""

from __future__ import annotations

import bisect
import math
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import ConfigError

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

TOKENS_PER_VIEW_SIDE = 24  # of a view of 336 px at patch 14
_PROMPT_TOKENS = 1000  # what LLaVA-NeXT's video demo leaves for words
_CONTEXT = 4096
_LEAST_SHARE = 0.9  # of what the file promises; the last frames of a sound file may be missing by a group of pictures


class VideoFault(StrEnum):
    """Why a video gives no frames."""

    NOT_A_VIDEO = "not_a_video"  # no container that FFmpeg knows, or none with a picture track
    NO_FRAMES = "no_frames"  # a picture track without a frame
    TRUNCATED = "truncated"  # fewer frames than the container's index names
    DURATION_WRONG = "duration_wrong"  # the header promises more time than the frames last
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"  # more pixels in a frame than the limit
    DEADLINE = "deadline"  # the time for one file was over
    BROKEN = "broken"  # the decoder gave no picture where the container has one


class VideoError(ValueError):
    """One video can't be read; `fault` is the reason."""

    def __init__(self, path: Path, fault: VideoFault, found: str) -> None:
        super().__init__(f"{path.name}: {fault}: {found}")
        self.fault = fault


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    hours      of running time        packets   coded frames, 8 bytes of memory each
    pixels     in a frame             seconds   of work: the clock is read at each packet and frame
    """

    hours: float = 12
    packets: int = 2_000_000
    pixels: int = 4096 * 4096
    seconds: float = 120


@dataclass
class Frames:
    """Frames of one video.

    images   uint8 (h, w, 3), RGB     times   seconds from the first frame
    seconds  that the frames last     frames  coded in the file
    """

    images: list[np.ndarray]
    times: list[float]
    seconds: float
    frames: int


def read_frames(
    path: Path, *, count: int | None = 8, fps: float | None = None, side: int = 336, limits: Limits | None = None
) -> Frames:
    """Sample a video: `count` frames from the first to the last, or `fps` a second; all frames where there are fewer.

    side     longer side of a frame at most [px]; frames are never enlarged
    raises   VideoError with its fault; ConfigError for settings that contradict each other

    The container is read once without decoding, so that what it promises is compared with what is there; then each
    frame is decoded from the key frame before it. Memory holds one time stamp a coded frame and the sampled pictures.
    """
    if (count is None) == (fps is None) or (count is not None and count < 1) or (fps is not None and fps <= 0):
        raise ConfigError(f"give a number of frames or a rate, above 0: found count={count}, fps={fps}")
    try:
        import av
    except ImportError as error:
        raise ConfigError("videos need the extra `video`: pip install 'curation[video]'") from error
    limits = limits or Limits()
    clock = _Clock(path, limits.seconds)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError(path, VideoFault.NOT_A_VIDEO, "no picture track")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            times, keys = _time_stamps(path, container, stream, limits, clock)
            base = float(stream.time_base or 1)
            seconds = (times[-1] - times[0]) * base
            wanted = [times[at] for at in _chosen([(t - times[0]) * base for t in times], count, fps)]
            images = _decoded(path, container, stream, wanted, keys, side, limits, clock)
    except av.FFmpegError as error:
        known = {av.error.InvalidDataError: VideoFault.NOT_A_VIDEO, av.error.EOFError: VideoFault.NO_FRAMES}
        raise VideoError(path, known.get(type(error), VideoFault.BROKEN), str(error.strerror)) from error
    return Frames(images, [(t - times[0]) * base for t in wanted], seconds, len(times))


def tokens_per_frame(side: int = TOKENS_PER_VIEW_SIDE, stride: int = 2) -> int:
    """Visual tokens of a frame whose side x side features are averaged over stride x stride: 144."""
    return (side // stride) ** 2


def context_scaling(frames: int, stride: int = 2) -> int:
    """Factor by which linear RoPE scaling stretches a context of 4,096 tokens for this many frames.

    Source: LLaVA-NeXT's video demo; 32 frames at stride 2 give 2.
    """
    return math.ceil((frames * tokens_per_frame(stride=stride) + _PROMPT_TOKENS) / _CONTEXT)


class _Clock:
    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._end, self._seconds = path, time.monotonic() + seconds, seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise VideoError(self._path, VideoFault.DEADLINE, f"not done in {self._seconds:g} s")


def _time_stamps(
    path: Path, container: av.container.InputContainer, stream: VideoStream, limits: Limits, clock: _Clock
) -> tuple[list[int], list[int]]:
    """Presentation times of all coded frames and of the key frames, sorted, in the stream's time base."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.pixels:
        raise VideoError(path, VideoFault.TOO_LARGE, f"{width} x {height} px, at most {limits.pixels} in all")
    promised = container.duration / 1_000_000 if container.duration else 0.0
    if promised > limits.hours * 3600:
        raise VideoError(path, VideoFault.TOO_LONG, f"{promised / 3600:.1f} h, at most {limits.hours:g}")
    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        clock.check()
        if packet.pts is None or not packet.size:
            continue
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        if len(times) > limits.packets:
            raise VideoError(path, VideoFault.TOO_LONG, f"more than {limits.packets} coded frames")
    if not times:
        raise VideoError(path, VideoFault.NO_FRAMES, "a picture track without frames")
    if len(times) < _LEAST_SHARE * stream.frames:
        raise VideoError(path, VideoFault.TRUNCATED, f"{len(times)} frames of {stream.frames}")
    times.sort()
    seconds = (times[-1] - times[0]) * float(stream.time_base or 1)
    if seconds > limits.hours * 3600:
        raise VideoError(path, VideoFault.TOO_LONG, f"{seconds / 3600:.1f} h, at most {limits.hours:g}")
    step = seconds / max(1, len(times) - 1)
    longest = max(promised, float((stream.duration or 0) * (stream.time_base or 0)))
    audio = bool(container.streams.audio)  # may go on after the pictures
    if not audio and longest > 1 and seconds + step < _LEAST_SHARE * longest:
        raise VideoError(path, VideoFault.DURATION_WRONG, f"frames for {seconds:.1f} s of {longest:.1f} s")
    return times, sorted(keys)


def _chosen(seconds: list[float], count: int | None, fps: float | None) -> list[int]:
    if count is not None:
        return sorted(set(np.linspace(0, len(seconds) - 1, min(count, len(seconds))).astype(int).tolist()))
    assert fps is not None
    moments = np.arange(0, seconds[-1] + 1e-9, 1 / fps) if seconds[-1] * fps < len(seconds) else np.array(seconds)
    return sorted({min(bisect.bisect_left(seconds, moment - 1e-6), len(seconds) - 1) for moment in moments.tolist()})


def _decoded(
    path: Path,
    container: av.container.InputContainer,
    stream: VideoStream,
    wanted: list[int],
    keys: list[int],
    side: int,
    limits: Limits,
    clock: _Clock,
) -> list[np.ndarray]:
    images: list[np.ndarray] = []
    container.seek(wanted[0], stream=stream)
    at = 0
    frames = container.decode(stream)
    while at < len(wanted):
        frame = next(frames, None)
        clock.check()
        if frame is None:
            raise VideoError(path, VideoFault.BROKEN, f"{at} of {len(wanted)} frames could be decoded")
        if frame.width * frame.height > limits.pixels:
            raise VideoError(path, VideoFault.TOO_LARGE, f"a frame of {frame.width} x {frame.height} px")
        if frame.pts is None or frame.pts < wanted[at]:
            continue
        while at < len(wanted) and wanted[at] <= frame.pts:  # a frame that does not decode is told by its successor
            images.append(_pixels(frame, side))
            at += 1
        if at < len(wanted) and bisect.bisect_right(keys, wanted[at]) > bisect.bisect_right(keys, frame.pts):
            container.seek(wanted[at], stream=stream)  # a key frame lies between: what is before it is skipped
            frames = container.decode(stream)
    return images


def _pixels(frame: av.VideoFrame, side: int) -> np.ndarray:
    scale = min(1.0, side / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    return frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
